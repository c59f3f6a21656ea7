"""The rules that make an event valid, one by one."""

import math

import numpy as np
import pytest

from longtide_server.events import Event, EventType, owner_key, user_of, values_as_read, violation

NOW_S = 1_700_000_000.0
GOOD = Event("e1", "ann", "a", EventType.VIEW, NOW_S)


def complaint(**changes):
    """The field and the reason that a good event, so changed, is refused for."""
    wrong = violation(GOOD._replace(**changes), NOW_S)
    return wrong and (wrong.field, wrong.reason)


def test_a_good_event_is_good():
    assert complaint() is None


@pytest.mark.parametrize("field", ["event_id", "item_id"])
def test_an_id_is_not_empty(field):
    assert complaint(**{field: ""}) == (field, "must not be empty")


def test_where_there_is_no_user_there_is_a_session():
    assert complaint(user_id="") == ("user_id", "must not be empty where there is no session_id")
    assert complaint(user_id="", session_id="s1") is None


def test_an_owner_is_the_user_or_else_the_session():
    assert Event("e1", "ann", "a", 1, 0.0, session_id="s1").owner == owner_key("ann", "s1") == "user:ann"
    assert Event("e1", "", "a", 1, 0.0, session_id="s1").owner == owner_key("", "s1") == "session:s1"
    assert (user_of("user:ann"), user_of("session:ann"), user_of("user:")) == ("ann", "", "")


@pytest.mark.parametrize("field", ["event_id", "user_id", "item_id", "session_id", "attribution_token"])
def test_an_id_has_at_most_512_bytes(field):
    assert complaint(**{field: "x" * 512}) is None
    assert complaint(**{field: "x" * 513}) == (field, "is 513 bytes long; at most 512 are allowed")


def test_bytes_are_counted_and_not_letters():
    assert complaint(user_id="é" * 256) is None
    assert complaint(user_id="é" * 256 + "x") == ("user_id", "is 513 bytes long; at most 512 are allowed")
    assert complaint(user_id="🌊" * 128) is None
    assert complaint(user_id="🌊" * 129) == ("user_id", "is 516 bytes long; at most 512 are allowed")


def test_a_session_and_an_attribution_are_not_needed():
    assert complaint(session_id="", attribution_token="") is None


@pytest.mark.parametrize("number", [-1, 0, 13, 2**31 - 1])
def test_an_unknown_type_is_refused(number):
    assert complaint(type=number) == ("type", f"{number} is not an event type; use 1 (view) to 12 (custom)")


@pytest.mark.parametrize("number", range(1, 11))
def test_the_plain_types_need_nothing_else(number):
    assert complaint(type=number) is None


def test_a_custom_event_names_its_type():
    assert complaint(type=EventType.CUSTOM, custom_type="bookmarked") is None
    assert complaint(type=EventType.CUSTOM) == ("custom_type", "must not be empty")
    assert complaint(type=EventType.CUSTOM, custom_type="x" * 513)[0] == "custom_type"


def test_only_a_custom_event_names_its_type():
    assert complaint(custom_type="bookmarked") == ("custom_type", "must be empty unless the type is custom")


def test_a_rating_has_a_value():
    assert complaint(type=EventType.RATE, value=0.0) is None
    assert complaint(type=EventType.RATE) == ("value", "a rate event needs the rating as its value")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_is_finite(value):
    assert complaint(value=value) == ("value", f"{value} is not a finite number (of 32 bits)")


@pytest.mark.parametrize("value", [0.0, -3.5, 3.4e38, -3.4e38])
def test_any_finite_number_of_32_bits_is_a_value(value):
    assert complaint(value=value) is None


@pytest.mark.parametrize("value", [3.5e38, -1e300])
def test_a_value_that_the_encoder_could_not_read_is_refused(value):
    assert complaint(value=value) == ("value", f"{value} is not a finite number (of 32 bits)")


def test_of_what_is_stored_already_the_encoder_reads_what_it_can():
    read = values_as_read(np.array([4.5, math.nan, 1e300, -1e39, 3.4e38]))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.array([4.5, math.nan, math.nan, math.nan, 3.4e38], np.float32))


def test_time_begins_in_1970():
    assert complaint(time_s=0.0) is None
    assert complaint(time_s=-0.5) == ("event_time", "-0.5 s is not a time since 1970-01-01")


def test_a_time_is_at_most_a_day_ahead():
    assert complaint(time_s=NOW_S + 86_400) is None
    assert complaint(time_s=NOW_S + 86_401) == (
        "event_time",
        "is 86401 s ahead of the server's clock; at most 86400 s",
    )


@pytest.mark.parametrize("time_s", [math.nan, math.inf, -math.inf])
def test_a_time_is_a_number(time_s):
    assert complaint(time_s=time_s) == ("event_time", f"{time_s:g} s is not a time since 1970-01-01")


def test_the_first_broken_rule_is_named():
    assert complaint(item_id="", type=0, value=math.nan)[0] == "item_id"
