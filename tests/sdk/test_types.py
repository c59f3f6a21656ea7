"""Values that callers make: what is filled in, and what is refused before it is sent."""

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import grpc
import pytest

from longtide import (
    Event,
    EventError,
    EventType,
    InvalidArgumentError,
    InvalidEventsError,
    Recommendation,
    Recommendations,
    UnavailableError,
    WriteResult,
)
from longtide._convert import event_message
from longtide.v1 import events_pb2


def test_a_short_event_is_a_view_now_with_an_id_of_its_own():
    before = datetime.now(UTC)
    event = Event("ada", "book")
    assert event.type is EventType.VIEW
    assert before <= event.time <= datetime.now(UTC)
    assert len(event.event_id) == 32
    assert event.event_id != Event("ada", "book").event_id
    assert (event.value, event.session_id, event.custom_type, event.attribution_token) == (None, "", "", "")


def test_an_event_is_a_value():
    event = Event("ada", "book", event_id="e1", time=0)
    assert event == Event("ada", "book", "view", event_id="e1", time=0.0)
    assert dataclasses.replace(event, item_id="pen").event_id == "e1"
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.user_id = "bob"


@pytest.mark.parametrize(
    "time",
    [
        datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC),
        datetime(2026, 1, 2, 5, 4, 5, 250_000, tzinfo=timezone(timedelta(hours=2))),
        1_767_323_045.25,
        Decimal("1767323045.25"),
    ],
)
def test_one_moment_in_every_form(time):
    message = event_message(Event("ada", "book", time=time))
    assert (message.event_time.seconds, message.event_time.nanos) == (1_767_323_045, 250_000_000)


def test_every_field_reaches_the_wire():
    event = Event(
        "ada",
        "book",
        EventType.CUSTOM,
        time=1.5,
        value=0.0,
        event_id="e1",
        session_id="s1",
        custom_type="lend",
        attribution_token="t1",
    )
    expected = events_pb2.Event(
        event_id="e1",
        user_id="ada",
        item_id="book",
        type=events_pb2.EVENT_TYPE_CUSTOM,
        custom_type="lend",
        value=0.0,
        session_id="s1",
        attribution_token="t1",
    )
    expected.event_time.seconds, expected.event_time.nanos = 1, 500_000_000
    assert events_pb2.Event.FromString(event_message(event).SerializeToString()) == expected


def test_no_value_is_not_the_value_zero():
    assert not event_message(Event("ada", "book")).HasField("value")


def test_event_types_are_those_of_the_contract():
    contract = {name.removeprefix("EVENT_TYPE_").lower() for name in events_pb2.EventType.keys()}  # noqa: SIM118
    assert set(EventType) == contract - {"unspecified"}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"user_id": 7}, TypeError, "user_id must be a str, not int: 7"),
        ({"item_id": None}, TypeError, "item_id must be a str, not NoneType"),
        ({"item_id": "\ud800"}, ValueError, "item_id cannot be encoded as UTF-8"),
        ({"type": "veiw"}, ValueError, "'veiw' is not an event type; use one of view, click"),
        ({"type": 1}, TypeError, "type must be an EventType or its name, not int"),
        ({"time": datetime(2026, 1, 1)}, ValueError, "time must know its time zone"),
        ({"time": "2026-01-01"}, TypeError, "time must be a number, not str"),
        ({"time": float("nan")}, ValueError, "time nan s is outside"),
        ({"time": 1e300}, ValueError, r"time 1e\+300 s is outside"),
        ({"value": "5"}, TypeError, "value must be a number, not str: '5'"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        Event(**{"user_id": "ada", "item_id": "book", **arguments})


def test_what_the_server_may_judge_is_sent():
    assert event_message(Event("", "x" * 600, "rate", value=float("nan"), time=-1)).user_id == ""


def test_recommendations_are_a_sequence():
    items = tuple(Recommendation(name, "", 0.5, (), ()) for name in "abc")
    answer = Recommendations("ada", items, "snapshot-1")
    assert [item.item_id for item in answer] == ["a", "b", "c"]
    assert (len(answer), answer[0], answer[1:], items[2] in answer) == (3, items[0], items[1:], True)
    assert not Recommendations("ada")


def test_a_refused_row_is_not_taken_for_an_empty_answer():
    refused = Recommendations("", error=InvalidArgumentError("user_id: must not be empty"))
    for use in (list, len, bool, lambda row: row[0]):
        with pytest.raises(InvalidArgumentError, match="must not be empty"):
            use(refused)


def test_errors_survive_a_process_boundary():
    result = WriteResult(1, 0, 1, (EventError(1, "e1", "user_id", "must not be empty"),))
    for error in (
        UnavailableError("gone", status=grpc.StatusCode.UNAVAILABLE, reason="DOWN", retry_delay_s=1.5),
        InvalidEventsError(result),
    ):
        for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(same) is type(error)
            assert (str(same), same.__dict__) == (str(error), error.__dict__)
