"""Events and recommendations behind a real gRPC server: what is answered, and how what is wrong is told."""

import asyncio
import itertools
import math
import sqlite3
import time
from contextlib import asynccontextmanager
from types import MappingProxyType, SimpleNamespace

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from longtide.v1 import events_pb2, events_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded, Unavailable
from longtide_server.event_store import sqlite
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import EventType
from longtide_server.items.item import Item
from longtide_server.rpc import event_service, recommendation_service, requests
from longtide_server.rpc.event_service import EventService
from longtide_server.rpc.recommendation_service import RecommendationService
from longtide_server.rpc.status import remaining_s
from longtide_server.users.history_writer import HistoryWriter
from longtide_server.users.user_states import UserStates

NOW_S = 1_700_000_000
NOW = Timestamp(seconds=NOW_S)
SOON_S = 5.0


@asynccontextmanager
async def serving(world, default_timeout_s=SOON_S, retention=MappingProxyType({})):
    """Both services of a world, and plain stubs in front of them."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)])
    events = EventService(world.writer.write, lambda: NOW_S, retention)
    events_pb2_grpc.add_EventServiceServicer_to_server(events, server)
    recommendations = RecommendationService(lambda: world.serving, default_timeout_s, lambda: NOW_S)
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(recommendations, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield SimpleNamespace(
            events=events_pb2_grpc.EventServiceStub(channel),
            recommendations=recommendation_pb2_grpc.RecommendationServiceStub(channel),
        )
    await server.stop(None)


@pytest.fixture
async def stubs(world):
    async with serving(world) as stubs:
        yield stubs


def message(event_id="e1", seconds=NOW_S, **changes):
    """A good event's message; a test changes what it is about."""
    sent = events_pb2.Event(event_id=event_id, user_id="ann", item_id="a", type=events_pb2.EVENT_TYPE_VIEW)
    sent.event_time.FromSeconds(seconds)
    for name, value in changes.items():
        if value is None:
            sent.ClearField(name)
        else:
            setattr(sent, name, value)
    return sent


def batch(*events):
    return events_pb2.WriteEventsRequest(events=events)


def numbered(sequence_number, *events):
    return events_pb2.StreamEventsRequest(sequence_number=sequence_number, events=events)


def recommend(user_id="ann", **fields):
    return recommendation_pb2.RecommendRequest(user_id=user_id, **fields)


async def refused(call):
    """The status that a call ends with, and its details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    found = SimpleNamespace(code=error.code(), message=error.details(), violations=[], reason="", retry_s=None)
    metadata = dict(error.trailing_metadata())
    if "grpc-status-details-bin" not in metadata:
        return found
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    bad, info, retry = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(bad):
            found.violations = [(wrong.field, wrong.description) for wrong in bad.field_violations]
        if detail.Unpack(info):
            assert info.domain == "longtide"
            found.reason = info.reason
        if detail.Unpack(retry):
            found.retry_s = retry.retry_delay.ToSeconds()
    return found


def is_bad_request(found, *fields):
    """Whether a call was refused for these fields and will be, however often it is tried again."""
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in found.violations] == list(fields)
    assert all(description in found.message for _, description in found.violations)
    assert (found.reason, found.retry_s) == ("INVALID_INPUT", None)
    return True


# Writing events.


async def test_good_events_are_written_and_duplicates_counted(stubs, world):
    answer = await stubs.events.WriteEvents(batch(message("e1"), message("e2"), message("e1")))
    assert (answer.written_count, answer.duplicate_count, list(answer.errors)) == (2, 1, [])
    answer = await stubs.events.WriteEvents(batch(message("e2"), message("e3")))
    assert (answer.written_count, answer.duplicate_count) == (1, 1)
    assert list(world.store.events) == ["e1", "e2", "e3"]


async def test_a_written_event_is_felt_by_the_next_answer(stubs):
    before = await stubs.recommendations.Recommend(recommend())
    await stubs.events.WriteEvents(batch(message("e1", item_id="a")))
    after = await stubs.recommendations.Recommend(recommend())
    assert [item.item_id for item in before.recommendations] == ["a", "b", "c", "d", "e"]
    assert "a" not in [item.item_id for item in after.recommendations]


BAD_EVENTS = {
    "no event_id": ({"event_id": ""}, "event_id"),
    "no user_id": ({"user_id": ""}, "user_id"),
    "no item_id": ({"item_id": ""}, "item_id"),
    "a long event_id": ({"event_id": "é" * 257}, "event_id"),
    "a long user_id": ({"user_id": "x" * 513}, "user_id"),
    "a long item_id": ({"item_id": "x" * 513}, "item_id"),
    "a long session_id": ({"session_id": "x" * 513}, "session_id"),
    "no type": ({"type": 0}, "type"),
    "an unknown type": ({"type": 13}, "type"),
    "no custom_type": ({"type": events_pb2.EVENT_TYPE_CUSTOM}, "custom_type"),
    "a custom_type too many": ({"custom_type": "bookmarked"}, "custom_type"),
    "no time": ({"event_time": None}, "event_time"),
    "a time before 1970": ({"seconds": -1}, "event_time"),
    "a time in the far future": ({"seconds": NOW_S + 86_401}, "event_time"),
    "no rating": ({"type": events_pb2.EVENT_TYPE_RATE}, "value"),
    "a value that is no number": ({"value": math.nan}, "value"),
    "an infinite value": ({"value": math.inf}, "value"),
}


@pytest.mark.parametrize(("changes", "field"), BAD_EVENTS.values(), ids=BAD_EVENTS)
async def test_a_bad_event_is_refused_alone(stubs, world, changes, field):
    bad = message(**({"event_id": "bad"} | changes))
    answer = await stubs.events.WriteEvents(batch(message("e0"), bad, message("e2")))
    assert (answer.written_count, answer.duplicate_count) == (2, 0)
    [error] = answer.errors
    assert (error.index, error.event_id, error.field) == (1, bad.event_id, field)
    assert error.reason
    assert list(world.store.events) == ["e0", "e2"]


@pytest.mark.parametrize(("changes", "field"), BAD_EVENTS.values(), ids=BAD_EVENTS)
async def test_a_batch_without_a_good_event_is_refused_whole(stubs, world, changes, field):
    found = await refused(stubs.events.WriteEvents(batch(message(**changes))))
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert found.message == "none of the 1 events can be written"
    assert [name for name, _ in found.violations] == [f"events[0].{field}"]
    assert world.store.events == {}


async def test_only_the_first_20_bad_events_are_named(stubs):
    found = await refused(stubs.events.WriteEvents(batch(*(message("x" * 600) for _ in range(10_000)))))
    assert found.message == "none of the 10000 events can be written"
    assert [field for field, _ in found.violations] == [f"events[{index}].event_id" for index in range(20)]


async def test_a_batch_is_neither_empty_nor_too_large(stubs, world):
    found = await refused(stubs.events.WriteEvents(batch()))
    assert is_bad_request(found, "events")
    found = await refused(stubs.events.WriteEvents(batch(*[message()] * 10_001)))
    assert is_bad_request(found, "events")
    assert found.message == "events: holds 10001 events; 1 to 10000 are allowed"
    assert world.store.events == {}


async def test_the_largest_batch_is_taken(stubs):
    answer = await stubs.events.WriteEvents(batch(*(message(f"e{n}") for n in range(10_000))))
    assert answer.written_count == 10_000


# Streams of events.


async def test_every_batch_of_a_stream_is_acknowledged(stubs, world):
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    await stream.write(numbered(3, message("e1"), message("e2")))
    answer = await stream.read()
    assert (answer.acknowledged_sequence_number, answer.written_count, answer.duplicate_count) == (3, 2, 0)
    assert list(world.store.events) == ["e1", "e2"]
    await stream.write(numbered(7, message("e2"), message("bad", user_id=""), message("e3")))
    answer = await stream.read()
    assert (answer.acknowledged_sequence_number, answer.written_count, answer.duplicate_count) == (7, 1, 1)
    [refusal] = answer.errors
    assert (refusal.sequence_number, refusal.error.index, refusal.error.event_id) == (7, 1, "bad")
    assert refusal.error.field == "user_id"
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK


async def test_a_streamed_batch_without_a_good_event_is_acknowledged(stubs):
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    await stream.write(numbered(1, message(user_id="")))
    answer = await stream.read()
    assert (answer.acknowledged_sequence_number, answer.written_count, len(answer.errors)) == (1, 0, 1)
    await stream.write(numbered(2, message("e2")))
    assert (await stream.read()).acknowledged_sequence_number == 2


async def test_batches_are_read_while_others_are_written_and_acknowledged_in_order(stubs, world):
    world.store.answering_allowed.clear()
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    for number in range(1, 4):
        await stream.write(numbered(number, message(f"e{number}"), message("e1")))
    for _ in range(3):
        await world.store.write_done.acquire()
    world.store.answering_allowed.set()
    await stream.done_writing()
    answers = [answer async for answer in stream]
    numbers = [answer.acknowledged_sequence_number for answer in answers]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 3
    assert sum(answer.written_count for answer in answers) == 3
    assert sum(answer.duplicate_count for answer in answers) == 3
    assert list(world.store.events) == ["e1", "e2", "e3"]


@pytest.fixture
def read(monkeypatch):
    """The ids of events that were read, each of which takes a millisecond."""
    ids, read_event = [], requests.read_event

    def slow(message):
        time.sleep(0.001)
        ids.append(message.event_id)
        return read_event(message)

    monkeypatch.setattr(requests, "read_event", slow)
    return ids


async def test_others_have_their_turn_while_a_large_batch_is_read(stubs, read):
    turns = []

    async def take_turns():
        while True:
            turns.append(len(read))
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    await stubs.events.WriteEvents(batch(*(message(f"e{n}") for n in range(100))), timeout=SOON_S)
    other.cancel()
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 8


async def test_a_small_batch_of_a_stream_does_not_overtake_a_large_one(stubs, world, read):
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    await stream.write(numbered(1, *(message(f"e{n}") for n in range(50))))
    await stream.write(numbered(2, message("last")))
    await stream.done_writing()
    async for _ in stream:
        pass
    assert [*world.store.events] == [*(f"e{n}" for n in range(50)), "last"]


async def test_acknowledgements_with_many_errors_stay_small_enough_for_a_plain_client(world):
    async with serving(world, retention={EventType.VIEW: 1.0}) as stubs:
        world.store.answering_allowed.clear()
        stream = stubs.events.StreamEvents(timeout=2 * SOON_S)
        for number in range(1, 8):
            old = [message(f"{number:04d}-{n:0400d}", seconds=1_000) for n in range(2_000)]
            await stream.write(numbered(number, message(f"e{number}"), *old))
        for _ in range(7):
            await world.store.write_done.acquire()
        world.store.answering_allowed.set()
        await stream.done_writing()
        answers = [answer async for answer in stream]
    assert answers[-1].acknowledged_sequence_number == 7
    assert sum(len(answer.errors) for answer in answers) == 14_000
    assert max(answer.ByteSize() for answer in answers) <= 3_500_000
    assert len(answers) < 7


async def test_a_flood_is_held_back_while_nothing_can_be_written(stubs, world):
    """What is not read by the server stays with gRPC, whose flow control makes the client wait."""
    world.store.answering_allowed.clear()
    large = [message(f"e{n}", session_id="x" * 500) for n in range(1_000)]
    sent = 0

    async def flood():
        nonlocal sent
        for number in range(1, 101):
            await stream.write(numbered(number, *large))
            sent += 1

    stream = stubs.events.StreamEvents(timeout=2 * SOON_S)
    flooding = asyncio.ensure_future(flood())
    for _ in range(8):
        await world.store.write_done.acquire()
    await asyncio.sleep(0.3)
    assert world.store.write_done.locked()  # no ninth batch was read
    assert sent < 60  # of half a megabyte each: gRPC widens its window to 16 megabytes where the way is fast
    world.store.answering_allowed.set()
    while (answer := await stream.read()).acknowledged_sequence_number < 100:
        pass
    await flooding
    assert answer.acknowledged_sequence_number == 100


async def test_what_follows_a_failed_batch_is_not_acknowledged(stubs, world):
    world.store.answering_allowed.clear()
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    await stream.write(numbered(1, message("e1")))
    await stream.write(numbered(2))
    await stream.write(numbered(3, message("e3")))
    for _ in range(2):
        await world.store.write_done.acquire()
    world.store.answering_allowed.set()
    assert (await stream.read()).acknowledged_sequence_number == 1
    assert is_bad_request(await refused(stream.read()), "events")


@pytest.mark.parametrize("number", [-1, 0, 1, 2])
async def test_sequence_numbers_rise(stubs, world, number):
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    await stream.write(numbered(2, message("e1")))
    assert (await stream.read()).acknowledged_sequence_number == 2
    await stream.write(numbered(number, message("e2")))
    found = await refused(stream.read())
    assert is_bad_request(found, "sequence_number")
    assert found.message == f"sequence_number: is {number}, after 2"
    assert list(world.store.events) == ["e1"]


async def test_the_first_sequence_number_is_positive(stubs):
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    await stream.write(numbered(0, message()))
    assert is_bad_request(await refused(stream.read()), "sequence_number")


async def test_an_empty_streamed_batch_ends_the_stream(stubs):
    stream = stubs.events.StreamEvents(timeout=SOON_S)
    await stream.write(numbered(1))
    assert is_bad_request(await refused(stream.read()), "events")


@pytest.fixture
async def stalled(make_world, tmp_path, monkeypatch):
    """Stubs over a file that cannot be written to until `go_on` is called, where 3 events may wait; and its store."""
    for module in (sqlite, event_service):
        monkeypatch.setattr(module, "MAX_WAITING_EVENTS", 3, raising=False)
    world, store = make_world(), SqliteEventStore(tmp_path / "events.db")
    world.writer = HistoryWriter(store)
    other = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with serving(world) as stubs:
        yield SimpleNamespace(events=stubs.events, go_on=other.rollback, store=store)
    other.close()
    await store.close()


async def acknowledged(stream):
    """The last sequence number that is acknowledged before the stream ends."""
    return [answer.acknowledged_sequence_number async for answer in stream][-1]


async def test_streams_wait_for_room_and_lose_neither_events_nor_their_order(stalled, read):
    streams = {user: stalled.events.StreamEvents(timeout=2 * SOON_S) for user in ("ann", "bob", "cid")}
    for user, stream in streams.items():
        for number in range(1, 9):
            size = 3 if number % 3 == 1 else 1  # a small batch must not overtake the large one before it
            events = [message(f"{user}-{number}-{n}", user_id=user) for n in range(size)]
            await stream.write(numbered(number, *events))
        await stream.done_writing()
    acknowledging = [asyncio.ensure_future(acknowledged(stream)) for stream in streams.values()]
    async with asyncio.timeout(SOON_S):
        while len(read) < 3 + 1 + 3 + 3:  # noqa: ASYNC110  # on its way, and of each stream the batch that waits
            await asyncio.sleep(0.01)
    found = await refused(stalled.events.WriteEvents(batch(message("too much", user_id="dan"))))
    assert (found.code, found.retry_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1)
    assert found.message == "3 events are waiting to be written"
    stalled.go_on()
    assert await asyncio.gather(*acknowledging) == [8, 8, 8]
    for user in streams:
        kept = [event.event_id for event in (await stalled.store.history(f"user:{user}")).events]
        assert kept == sorted(kept)  # all at one time, so in the order of arrival
        assert len(kept) == 3 * 3 + 5


async def test_a_stream_that_waits_for_room_reads_nothing_more(stalled, read):
    stream = stalled.events.StreamEvents(timeout=2 * SOON_S)
    for number in range(1, 9):
        await stream.write(numbered(number, message(f"e{number}")))
    await stream.done_writing()
    await asyncio.sleep(0.3)
    assert read == ["e1", "e2", "e3", "e4"]  # three may wait to be written, and one waits for that
    stalled.go_on()
    assert await acknowledged(stream) == 8


async def test_a_stream_that_ends_while_it_waits_for_room_is_in_nobodys_way(stalled, read):
    gone = stalled.events.StreamEvents(timeout=0.5)
    for number in range(1, 9):
        await gone.write(numbered(number, message(f"gone-{number}")))
    await asyncio.sleep(0.1)
    waiting = stalled.events.StreamEvents(timeout=2 * SOON_S)
    await waiting.write(numbered(1, message("e1"), message("e2"), message("e3")))
    await waiting.done_writing()
    assert (await refused(gone.read())).code == grpc.StatusCode.DEADLINE_EXCEEDED
    stalled.go_on()
    assert await acknowledged(waiting) == 1
    kept = [event.event_id for event in (await stalled.store.history("user:ann")).events]
    assert kept == ["gone-1", "gone-2", "gone-3", "e1", "e2", "e3"]


# Recommendations.


async def test_an_answer_says_everything(stubs, world):
    await world.did("ann", "a")
    answer = await stubs.recommendations.Recommend(recommend(limit=2))
    assert answer.snapshot_id == "world"
    assert answer.attribution_token
    assert (answer.degraded, answer.degraded_reason) == (False, "")
    first, second = answer.recommendations
    assert (first.item_id, first.title, second.item_id) == ("b", "Title b", "c")
    assert first.score > second.score > 0
    assert first.sources[0].source == recommendation_pb2.SOURCE_ENCODER
    assert {share.source for share in second.sources} >= {recommendation_pb2.SOURCE_NEIGHBORS}
    assert [(neighbor.user_id, round(neighbor.similarity, 3)) for neighbor in second.neighbors] == [("bob", 1.0)]


async def test_without_a_limit_10_items_are_meant(make_world):
    letters = "abcdefghijklm"
    world = make_world(degrees=dict.fromkeys(letters, 0), popularity=(1 / 13,) * 13)
    async with serving(world) as stubs:
        assert len((await stubs.recommendations.Recommend(recommend())).recommendations) == 10
        assert len((await stubs.recommendations.Recommend(recommend(limit=12))).recommendations) == 12


BAD_QUERIES = {
    "no user_id": ({"user_id": ""}, "user_id"),
    "a long user_id": ({"user_id": "é" * 257}, "user_id"),
    "a limit of 0": ({"limit": 0}, "limit"),
    "a limit of 1001": ({"limit": 1_001}, "limit"),
    "a negative limit": ({"limit": -1}, "limit"),
    "a similarity that is no number": ({"min_similarity": math.nan}, "min_similarity"),
    "a similarity above 1": ({"min_similarity": 1.1}, "min_similarity"),
    "an empty excluded id": ({"exclude_item_ids": ["a", ""]}, "exclude_item_ids[1]"),
    "a long session id": ({"session_item_ids": ["x" * 513]}, "session_item_ids[0]"),
    "too many excluded ids": ({"exclude_item_ids": ["a"] * 10_001}, "exclude_item_ids"),
    "too many included ids": ({"include_items": {"item_ids": ["a"] * 10_001}}, "include_items.item_ids"),
    "an empty filter": ({"filter": {}}, "filter"),
    "a tag without a name": (
        {"filter": {"none_of": {"filters": [{"tags": {"names": ["x", ""]}}]}}},
        "filter.none_of.filters[0].tags.names[1]",
    ),
    "too long a session": ({"session_item_ids": ["a"] * 1_001}, "session_item_ids"),
}


@pytest.mark.parametrize(("fields", "field"), BAD_QUERIES.values(), ids=BAD_QUERIES)
async def test_a_bad_query_is_refused_by_field(stubs, fields, field):
    assert is_bad_request(await refused(stubs.recommendations.Recommend(recommend(**fields))), field)


async def test_only_items_that_pass_and_are_included_appear(stubs, world):
    await world.did("ann", "a")
    world.live.apply([Item("c", tags=("new",)), Item("d", tags=("new",)), Item("e", tags=("new",))], [])
    request = recommend(filter={"tags": {"names": ["new"]}}, include_items={"item_ids": ["b", "c", "d"]})
    answer = await stubs.recommendations.Recommend(request)
    assert [item.item_id for item in answer.recommendations] == ["c", "d"]
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    await stream.write(rows(recommend(), request))
    results = (await stream.read()).results
    found = [[item.item_id for item in result.response.recommendations] for result in results]
    assert found == [["b", "c", "e", "d"], ["c", "d"]]


async def test_everything_wrong_is_told_at_once_however_much_it_is(stubs):
    everything = recommend(
        "x" * 513,
        limit=0,
        min_similarity=-2,
        exclude_item_ids=["x" * 513] * 100,
        session_item_ids=["x" * 513] * 100,
    )
    found = await refused(stubs.recommendations.Recommend(everything))
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in found.violations][:4] == [
        "user_id",
        "limit",
        "min_similarity",
        "exclude_item_ids[0]",
    ]
    assert len(found.violations) == 20


async def test_a_list_is_ranked(stubs, world):
    await world.did("ann", "a")
    sent = recommendation_pb2.RankRequest(user_id="ann", item_ids=["zz", "d", "b"])
    answer = await stubs.recommendations.Rank(sent)
    assert [(item.item_id, item.known) for item in answer.items] == [("b", True), ("d", True), ("zz", False)]
    assert (answer.snapshot_id, answer.degraded) == ("world", False)


async def test_a_bad_list_is_refused_by_field(stubs):
    sent = recommendation_pb2.RankRequest(user_id="", item_ids=["b", "b"])
    assert is_bad_request(await refused(stubs.recommendations.Rank(sent)), "user_id", "item_ids")
    sent = recommendation_pb2.RankRequest(user_id="ann")
    assert is_bad_request(await refused(stubs.recommendations.Rank(sent)), "item_ids")


async def test_similar_items_are_listed(stubs, world):
    sent = recommendation_pb2.ListSimilarItemsRequest(item_id="a", limit=2, exclude_item_ids=["c"])
    answer = await stubs.recommendations.ListSimilarItems(sent)
    assert [(item.item_id, item.title, round(item.similarity, 3)) for item in answer.items] == [
        ("b", "Title b", 0.866), ("d", "Title d", 0.0),
    ]  # fmt: skip
    assert (answer.snapshot_id, answer.basis) == ("world", recommendation_pb2.SIMILARITY_BASIS_BEHAVIOR)


async def test_similar_items_may_be_recommended_now_and_pass_the_filter(stubs, world):
    world.live.apply([Item("b", available=False), Item("c", title="New c", tags=("x",)), Item("e", tags=("x",))], [])
    sent = recommendation_pb2.ListSimilarItemsRequest(item_id="b", filter={"tags": {"names": ["x"]}})
    answer = await stubs.recommendations.ListSimilarItems(sent)
    assert [(item.item_id, item.title) for item in answer.items] == [("c", "New c"), ("e", "Title e")]


async def test_of_an_unknown_item_nothing_is_similar(stubs):
    sent = recommendation_pb2.ListSimilarItemsRequest(item_id="zz")
    assert (await refused(stubs.recommendations.ListSimilarItems(sent))).code == grpc.StatusCode.NOT_FOUND


async def test_a_bad_question_for_similar_items_is_refused_by_field(stubs):
    sent = recommendation_pb2.ListSimilarItemsRequest(limit=1_001, basis=9, filter={})
    found = await refused(stubs.recommendations.ListSimilarItems(sent))
    assert is_bad_request(found, "item_id", "limit", "basis", "filter")


async def test_similar_users_are_listed(stubs, world):
    await world.did("ann", "a")
    sent = recommendation_pb2.ListSimilarUsersRequest(user_id="ann", limit=2, min_similarity=-1)
    answer = await stubs.recommendations.ListSimilarUsers(sent)
    assert [user.user_id for user in answer.users] == ["bob", "cara"]
    assert list(answer.users[0].next_item_ids) == ["c", "d"]
    assert (answer.snapshot_id, answer.degraded) == ("world", False)


async def test_what_somebody_does_next_is_foreseen(told_world):
    async with serving(told_world) as stubs:
        await told_world.did("ann", "a")
        sent = recommendation_pb2.PredictBehaviorRequest(user_id="ann", item_ids=["d", "zz"])
        answer = await stubs.recommendations.PredictBehavior(sent)
        assert len(answer.types) == 12
        assert answer.types[0].probability == pytest.approx(1 / 12)  # a head of zeros knows nothing
        assert [(one.item_id, one.value) for one in answer.values] == [("d", 3.0)]
        assert (answer.snapshot_id, answer.degraded) == ("world", False)


async def test_a_snapshot_that_foresees_nothing_refuses(stubs):
    found = await refused(stubs.recommendations.PredictBehavior(recommendation_pb2.PredictBehaviorRequest(user_id="a")))
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT")


async def test_interests_are_of_all_times_and_of_late(stubs, world):
    world.live.apply([Item("a", categories=(("Books", "Crime"),)), Item("b", tags=("x",), brand="y", domain="z")], [])
    await world.did("ann", "aaab")
    answer = await stubs.recommendations.GetInterests(recommendation_pb2.GetInterestsRequest(user_id="ann"))
    told = [one.WhichOneof("kind") for one in answer.long_term]
    assert (told[:2], sorted(told[2:])) == (["category", "category"], ["brand", "domain", "tag"])
    assert [list(one.category.names) for one in answer.long_term[:2]] == [["Books"], ["Books", "Crime"]]
    assert {one.tag + one.brand + one.domain for one in answer.long_term[2:]} == {"x", "y", "z"}
    assert answer.short_term[0].share < answer.long_term[0].share < 1.0
    assert (answer.snapshot_id, answer.degraded) == ("world", False)
    few = recommendation_pb2.GetInterestsRequest(user_id="ann", limit=1)
    assert len((await stubs.recommendations.GetInterests(few)).long_term) == 1


async def test_a_bad_question_for_interests_is_refused_by_field(stubs):
    found = await refused(stubs.recommendations.GetInterests(recommendation_pb2.GetInterestsRequest(limit=0)))
    assert is_bad_request(found, "user_id", "limit")


async def test_a_bad_question_for_behaviour_is_refused_by_field(stubs):
    sent = recommendation_pb2.PredictBehaviorRequest(item_ids=["a", "a"], session_item_ids=[""])
    found = await refused(stubs.recommendations.PredictBehavior(sent))
    assert is_bad_request(found, "user_id", "item_ids", "session_item_ids[0]")


async def test_a_bad_question_for_similar_users_is_refused_by_field(stubs):
    sent = recommendation_pb2.ListSimilarUsersRequest(limit=0, min_similarity=math.nan)
    found = await refused(stubs.recommendations.ListSimilarUsers(sent))
    assert is_bad_request(found, "user_id", "limit", "min_similarity")


async def test_a_request_is_now_unless_it_says_otherwise_and_a_rows_time_is_not_known(timed_world):
    """In this world a wait of a day turns the order round."""
    soon, late = ["b", "c", "d"], ["d", "c", "b"]
    async with serving(timed_world) as stubs:
        await stubs.events.WriteEvents(batch(message(seconds=NOW_S - 86_400)))
        at = Timestamp(seconds=NOW_S - 86_400)
        asked = [recommend(limit=3), recommend(limit=3, request_time=at), recommend(limit=3, request_time=NOW)]
        answers = [await stubs.recommendations.Recommend(one) for one in asked]
        assert [[item.item_id for item in one.recommendations] for one in answers] == [late, soon, late]

        stream = stubs.recommendations.StreamRecommend(iter([rows(*asked)]))
        results = [result async for one in stream for result in one.results]
        assert [[item.item_id for item in one.response.recommendations] for one in results] == [soon, soon, late]

        lists = [
            recommendation_pb2.RankRequest(user_id="ann", item_ids=soon),
            recommendation_pb2.RankRequest(user_id="ann", item_ids=soon, request_time=at),
        ]
        ranked = [await stubs.recommendations.Rank(one) for one in lists]
        assert [[item.item_id for item in one.items] for one in ranked] == [late, soon]


# Streams of recommendations.


def rows(*requests):
    return recommendation_pb2.StreamRecommendRequest(requests=requests)


async def test_results_come_in_the_order_of_the_requests(stubs, world):
    await world.did("ann", "a")
    await world.did("bob", "bcde")
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    for users in (["bob", "ann", "nobody"], ["ann", "bob"]):
        await stream.write(rows(*(recommend(user, limit=1) for user in users)))
        results = (await stream.read()).results
        assert [result.user_id for result in results] == users
        best = [result.response.recommendations[0].item_id for result in results]
        assert best == [{"ann": "b", "bob": "a", "nobody": "a"}[user] for user in users]
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


@pytest.fixture
def asked(world):
    """Whether each of those who had the encoder asked were patient; filled as they come."""
    asked, encode = [], world.coalescing.encode

    async def noting(steps, timeout_s, patient=lambda: False):
        asked.append(patient())
        return await encode(steps, timeout_s, patient)

    world.coalescing.encode = noting
    return asked


async def test_rows_are_patient_and_calls_are_not(stubs, world, asked):
    for user in ("ann", "bob", "cid"):
        await world.did(user, "abc")
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    await stream.write(rows(recommend("ann"), recommend("bob", session_item_ids=["d"])))
    assert len((await stream.read()).results) == 2
    assert asked == [True] * 3  # what bob did, and his session after it
    await stubs.recommendations.Recommend(recommend("cid"))
    await stubs.recommendations.Recommend(recommend("ann", session_item_ids=["d"]))
    assert asked[3:] == [False] * 2


async def test_who_is_encoded_for_a_new_snapshot_is_patient(world, asked):
    await world.did("ann", "abc")
    assert await world.serving.warm(["user:ann"], SOON_S, 2) == 1
    assert asked == [True]


async def test_only_so_many_rows_of_all_streams_wait_for_the_encoder(world, asked, monkeypatch):
    monkeypatch.setattr(recommendation_service, "ROWS_ENCODING", 3)
    users = [f"user-{n}" for n in range(10)]
    for user in users:
        await world.did(user, "ab")
    world.encoder.answering_allowed.clear()
    async with serving(world) as stubs:
        streams = [stubs.recommendations.StreamRecommend(timeout=SOON_S) for _ in range(2)]
        for stream, some in zip(streams, (users[:5], users[5:]), strict=True):
            await stream.write(rows(*map(recommend, some)))
        await world.encoder.call_begun.acquire()
        await asyncio.sleep(0.05)
        assert len(asked) == 3
        world.encoder.answering_allowed.set()
        for stream in streams:
            results = (await stream.read()).results
            assert [result.response.degraded_reason for result in results] == [""] * 5
    assert len(asked) == 10


@pytest.mark.parametrize(("fields", "field"), BAD_QUERIES.values(), ids=BAD_QUERIES)
async def test_a_bad_row_fails_alone(stubs, fields, field):
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    bad = recommend(**fields)
    await stream.write(rows(recommend("ann"), bad, recommend("bob")))
    results = (await stream.read()).results
    assert [result.WhichOneof("outcome") for result in results] == ["response", "error", "response"]
    assert (results[1].user_id, results[1].error.code) == (bad.user_id, code_pb2.INVALID_ARGUMENT)
    assert results[1].error.field == field
    assert results[1].error.reason
    assert not results[1].error.reason.startswith(field)  # who shows both says the field once


async def test_a_row_whose_user_cannot_be_looked_up_says_so(stubs, world):
    world.store.failure = Unavailable("the event store cannot be read")
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    await stream.write(rows(recommend("ann")))
    [result] = (await stream.read()).results
    assert len(result.response.recommendations) == 5
    assert result.response.degraded_reason == f"the event log could not be asked: {world.store.failure}"


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_message_of_rows_is_neither_empty_nor_too_large(stubs, count):
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    await stream.write(rows(*[recommend()] * count))
    assert is_bad_request(await refused(stream.read()), "requests")


# What is not the caller's fault.


def calls(stubs, timeout=None):
    """One call of each unary RPC; all of them read or write the log."""
    return [stubs.events.WriteEvents(batch(message()), timeout=timeout), *reading_calls(stubs, timeout)]


def reading_calls(stubs, timeout=None):
    ranked = recommendation_pb2.RankRequest(user_id="ann", item_ids=["a"])
    similar = recommendation_pb2.ListSimilarUsersRequest(user_id="ann")
    return [
        stubs.recommendations.Recommend(recommend(), timeout=timeout),
        stubs.recommendations.Rank(ranked, timeout=timeout),
        stubs.recommendations.ListSimilarUsers(similar, timeout=timeout),
    ]


@pytest.mark.parametrize(
    ("failure", "code", "reason", "retry_s"),
    [
        (Unavailable("the log is locked"), grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", 1),
        (Overloaded("the log is busy"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 1),
        (DeadlineExceeded("the log is slow"), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", None),
    ],
)
async def test_each_failure_has_its_status_and_says_when_to_try_again(stubs, world, failure, code, reason, retry_s):
    world.store.failure = failure
    found = await refused(stubs.events.WriteEvents(batch(message())))
    assert (found.code, found.message) == (code, str(failure))
    assert (found.reason, found.retry_s, found.violations) == (reason, retry_s, [])


async def test_of_an_error_callers_are_told_the_first_line_and_not_more_than_arrives(stubs, world):
    world.store.failure = EncoderUnavailable(
        "TorchServe ended: é" + "é" * 3_000 + "\n--- the end of the log ---\n/secret"
    )
    found = await refused(stubs.events.WriteEvents(batch(message())))
    assert found.code == grpc.StatusCode.UNAVAILABLE
    assert found.message.startswith("TorchServe ended: éé")
    assert found.message.endswith("é ...")
    assert len(found.message.encode()) <= 1_030
    world.store.failure = EncoderUnavailable("TorchServe ended: no memory\n--- the end of the log ---\n/secret")
    assert (await refused(stubs.events.WriteEvents(batch(message())))).message == "TorchServe ended: no memory"


@pytest.mark.parametrize("failure", [Unavailable("locked"), Overloaded("busy"), DeadlineExceeded("slow")])
async def test_while_the_log_is_away_what_is_remembered_answers_and_says_so(stubs, world, failure):
    await world.did("ann", "a")
    before = await stubs.recommendations.Recommend(recommend())
    world.store.failure = failure
    world.store.shared = True  # so that it has to be asked
    for call in reading_calls(stubs):
        answer = await call
        assert (answer.degraded, answer.degraded_reason) == (True, f"the event log could not be asked: {failure}")
    answer = await stubs.recommendations.Recommend(recommend())
    assert answer.recommendations == before.recommendations
    world.store.failure = None
    assert not (await stubs.recommendations.Recommend(recommend())).degraded


async def test_what_nobody_expected_is_told_in_plain_words(stubs, world):
    world.store.failure = RuntimeError("secret")
    for call in calls(stubs):
        found = await refused(call)
        assert found.code == grpc.StatusCode.INTERNAL
        assert found.message == "the server failed in a way it should not; its log says how"
        assert "secret" not in found.message
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    await stream.write(rows(recommend()))
    found = await refused(stream.read())
    assert (found.code, "secret" in found.message) == (grpc.StatusCode.INTERNAL, False)


async def test_without_the_encoder_an_answer_is_marked(stubs, world):
    await world.did("ann", "a")
    world.encoder.failure = EncoderUnavailable("down")
    answer = await stubs.recommendations.Recommend(recommend())
    assert (answer.degraded, answer.degraded_reason) == (True, "the encoder could not be asked: down")
    assert answer.recommendations[0].item_id == "b"
    ranked = await stubs.recommendations.Rank(recommendation_pb2.RankRequest(user_id="ann", item_ids=["a"]))
    assert (ranked.degraded, ranked.degraded_reason) == (True, answer.degraded_reason)
    similar = await stubs.recommendations.ListSimilarUsers(recommendation_pb2.ListSimilarUsersRequest(user_id="ann"))
    assert (similar.degraded, similar.degraded_reason) == (True, answer.degraded_reason)


async def test_a_call_without_a_deadline_has_the_servers(world):
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    async with serving(world, default_timeout_s=0.1) as stubs:
        answer = await stubs.recommendations.Recommend(recommend())
        assert answer.degraded
        assert "did not answer within 0.0" in answer.degraded_reason
        stream = stubs.recommendations.StreamRecommend()
        await stream.write(rows(recommend()))
        assert (await stream.read()).results[0].response.degraded


async def test_rows_without_a_deadline_wait_longer_for_the_encoder_than_a_call(world):
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    async with serving(world, default_timeout_s=0.5) as stubs:
        stream = stubs.recommendations.StreamRecommend()
        await stream.write(rows(recommend()))
        await asyncio.sleep(1.0)
        world.encoder.answering_allowed.set()
        assert not (await stream.read()).results[0].response.degraded


async def test_many_callers_of_a_hanging_encoder_are_all_answered_in_time(stubs, world):
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    asked = [stubs.recommendations.Recommend(recommend(), timeout=2.0) for _ in range(50)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)] == []
    assert all(answer.degraded for answer in answers)


async def test_a_log_slower_than_the_deadline_leaves_time_to_answer(stubs, world):
    world.store.reading_allowed.clear()
    answer = await stubs.recommendations.Recommend(recommend(), timeout=0.2)
    assert answer.degraded_reason == "the event log could not be asked: it did not answer in time"
    assert len(answer.recommendations) == 5


async def test_a_deadline_that_has_passed_is_exceeded(stubs):
    for call in calls(stubs, timeout=-1.0):
        assert (await refused(call)).code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_no_work_begins_after_the_deadline():
    def context(left):
        return SimpleNamespace(time_remaining=lambda: left)

    assert remaining_s(context(2.5)) == 2.5
    assert remaining_s(context(None)) is None
    for left in (0.0, -0.1):
        with pytest.raises(DeadlineExceeded, match="before the work began"):
            remaining_s(context(left))


async def test_an_event_that_is_read_before_its_write_is_answered_counts_once(stubs, world):
    """Between the commit and its answer anybody may read the log."""
    world.store.answering_allowed.clear()
    writing = asyncio.ensure_future(stubs.events.WriteEvents(batch(message("e1", item_id="a"))))
    await world.store.write_done.acquire()
    assert (await world.states.get("user:ann")).items.tolist() == [1]
    world.store.answering_allowed.set()
    await writing
    assert (await world.states.get("user:ann")).items.tolist() == [1]


async def test_a_write_whose_caller_gave_up_is_felt_when_it_is_durable(make_world, tmp_path):
    """The commit goes on without its caller, so what is remembered must go on with it."""
    world = make_world()
    path = tmp_path / "events.db"
    world.store = SqliteEventStore(path)
    world.states = UserStates(world.snapshot, world.store, world.coalescing, 10)
    world.writer = HistoryWriter(world.store)
    world.writer.add(world.states)
    assert (await world.states.get("user:ann")).items.tolist() == []
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with serving(world) as stubs:
        found = await refused(stubs.events.WriteEvents(batch(message("e1")), timeout=0.2))
        assert found.code == grpc.StatusCode.DEADLINE_EXCEEDED
        other.rollback()
        await stubs.events.WriteEvents(batch(message("e2", user_id="bob")))  # the next commit
        assert [event.event_id for event in (await world.store.history("user:ann")).events] == ["e1"]
        assert (await world.states.get("user:ann")).items.tolist() == [1]
    other.close()
    await world.store.close()


async def test_what_is_older_than_events_are_kept_is_refused_alone(world):
    async with serving(world, retention={EventType.VIEW: 10.0}) as stubs:
        sent = [message("old", NOW_S - 11), message("new", NOW_S - 10), message("other", 0, type=4)]
        answer = await stubs.events.WriteEvents(events_pb2.WriteEventsRequest(events=sent))
        assert (answer.written_count, [error.event_id for error in answer.errors]) == (2, ["old"])
        assert answer.errors[0].field == "event_time"


async def test_a_row_may_be_of_an_anonymous_session(stubs, world, event):
    await world.write(event("e1", "a", 1.0, "", session_id="s1"))
    stream = stubs.recommendations.StreamRecommend(timeout=SOON_S)
    await stream.write(rows(recommend("", session_id="s1", limit=12), recommend("s1", limit=12)))
    session, user = (await stream.read()).results
    assert (session.user_id, session.session_id, user.user_id, user.session_id) == ("", "s1", "s1", "")
    assert "a" not in [item.item_id for item in session.response.recommendations]
    assert "a" in [item.item_id for item in user.response.recommendations]
