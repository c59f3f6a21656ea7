"""Writing events, through a real server: chunks, indexes, resending."""

import itertools
import threading
import time

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2

from longtide import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    Event,
    EventError,
    FieldViolation,
    InvalidEventsError,
    ResourceExhaustedError,
    UnavailableError,
    WriteResult,
)
from longtide._reconnect import Reconnect, worth_a_retry


def events(count, **changes):
    return [Event(changes.get(f"user_{i}", "ada"), "book", event_id=f"e{i}") for i in range(count)]


def test_events_are_written_once(client, server):
    batch = [Event("ada", "book"), Event("ada", "pen", "purchase", value=2.5)]
    assert client.write_events(batch) == WriteResult(written_count=2)
    assert client.write_events(batch) == WriteResult(duplicate_count=2)
    assert {e.item_id for e in server.stored.values()} == {"book", "pen"}


def test_nothing_to_write_is_not_sent(client, server):
    assert client.write_events([]) == WriteResult()
    assert server.requests == []


def test_refused_events_are_reported_by_index_and_the_others_are_written(client, server):
    with pytest.raises(
        InvalidEventsError, match=r"1 of 3 events were refused.*events\[1\].user_id: must not"
    ) as caught:
        client.write_events(events(3, user_1=""))
    refused = EventError(1, "e1", "user_id", "must not be empty")
    assert caught.value.result == WriteResult(2, 0, 1, (refused,))
    assert caught.value.errors == (refused,)
    assert caught.value.violations == (FieldViolation("events[1].user_id", "must not be empty"),)
    assert set(server.stored) == {"e0", "e2"}


def test_indexes_are_the_callers_across_chunks(client, server):
    with pytest.raises(InvalidEventsError) as caught:
        client.write_events(iter(events(10_003, user_7="", user_10001="")))
    assert [len(request.events) for request in server.requests] == [10_000, 3]
    assert [(e.index, e.event_id) for e in caught.value.errors] == [(7, "e7"), (10_001, "e10001")]
    assert caught.value.result.written_count == 10_001


def test_a_chunk_without_a_good_event_does_not_stop_the_others(client, server):
    wholly_bad = {f"user_{i}": "" for i in range(10_000)}
    server.max_violations = 3  # the server need not name them all
    with pytest.raises(InvalidEventsError) as caught:
        client.write_events(events(10_002, **wholly_bad, user_10001=""))
    assert caught.value.result.written_count == 1
    assert caught.value.result.refused_count == 10_001
    assert [error.index for error in caught.value.errors] == [*range(10_000), 10_001]
    assert caught.value.errors[2] == EventError(2, "e2", "user_id", "must not be empty")
    assert caught.value.errors[3] == EventError(3, "e3", "", "the request is wrong")
    assert set(server.stored) == {"e10000"}


def test_many_violations_get_through(client):
    with pytest.raises(InvalidEventsError) as caught:
        client.write_events(events(600, **{f"user_{i}": "" for i in range(600)}))
    assert {error.field for error in caught.value.errors} == {"user_id"}


def test_chunks_stay_below_the_servers_receive_limit(client, server):
    # Five of 1.5 MB: two fit into a message of 3.5 MB, and the server takes no more than 4 MiB.
    large = [Event("ada", "book", session_id="x" * 1_500_000) for _ in range(5)]
    assert client.write_events(large).written_count == 5
    assert [len(request.events) for request in server.requests] == [2, 2, 1]


def test_what_is_not_an_event_is_named(client):
    with pytest.raises(TypeError, match=r"events must be longtide\.Event objects, not dict"):
        client.write_events([{"user_id": "ada"}])


def test_a_stream_is_numbered_from_one_and_acknowledged_in_groups(client, server):
    server.acknowledge_every = 2
    assert client.stream_events(events(40), batch_size=10) == WriteResult(written_count=40)
    assert server.sequence_numbers == [1, 2, 3, 4]
    assert [len(request.events) for request in server.requests] == [10, 10, 10, 10]


def test_refused_events_of_a_stream_are_reported_at_the_end(client):
    with pytest.raises(InvalidEventsError) as caught:
        client.stream_events(events(25, user_3="", user_21=""), batch_size=10)
    assert [(e.index, e.event_id) for e in caught.value.errors] == [(3, "e3"), (21, "e21")]
    assert caught.value.result.written_count == 23


def test_a_stream_keeps_a_thousand_errors_and_counts_them_all(client):
    with pytest.raises(InvalidEventsError) as caught:
        client.stream_events(events(1_500, **{f"user_{i}": "" for i in range(1_500)}))
    assert (len(caught.value.errors), caught.value.result.refused_count) == (1_000, 1_500)


def test_an_empty_stream_writes_nothing(client):
    assert client.stream_events([]) == WriteResult()


@pytest.mark.parametrize("batch_size", [0, 10_001])
def test_a_batch_size_that_the_server_refuses_is_named(client, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be 1 to 10000, not {batch_size}"):
        client.stream_events([], batch_size)


def test_a_stream_survives_a_restart_of_the_server(client, server):
    def source():
        for index, event in enumerate(events(100)):
            if index == 45:
                server.restart()
            yield event

    result = client.stream_events(source(), batch_size=10)
    assert len(server.stored) == 100
    assert result.written_count + result.duplicate_count == 100


def test_a_stream_goes_on_after_a_pause_that_a_busy_server_asked_for(client, server, rich_status):
    details = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=200_000_000))
    server.failures.append(rich_status(code_pb2.RESOURCE_EXHAUSTED, "too much is waiting", details))
    result = client.stream_events([Event("ada", f"book-{n}") for n in range(10)], batch_size=4)
    assert result.written_count == 10


def test_the_pause_is_as_long_as_was_asked_for():
    busy = ResourceExhaustedError("too much is waiting", retry_delay_s=1.5)
    assert Reconnect(60.0).delay_s(busy, 0, 0.0) == 1.5
    assert Reconnect(60.0).delay_s(UnavailableError("gone"), 0, 0.0) <= 0.05
    assert worth_a_retry(busy)


def test_a_stream_waits_while_grpc_refuses_it_since_too_many_calls_are_under_way(client, server):
    server.max_calls = 1
    server.restart()
    server.holding = True
    with Client(server.target) as other:
        other.wait_ready()
        threading.Thread(target=other.recommend, args=["bob"], kwargs={"timeout": 30}).start()
        while not server.requests:
            time.sleep(0.01)
        with pytest.raises(ResourceExhaustedError, match="Concurrent RPC limit exceeded") as caught:
            client.recommend("ada")
        assert (caught.value.reason, caught.value.retry_delay_s) == ("", None)
        threading.Timer(0.3, server.released.set).start()
        assert client.stream_events(events(10), batch_size=4).written_count == 10


def test_a_stream_is_not_refused_for_ever(client, server, rich_status):
    server.failures.extend([rich_status(code_pb2.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")] * 100)
    with pytest.raises(ResourceExhaustedError, match="Concurrent RPC limit exceeded"):
        client.stream_events(events(1), reconnect_timeout=0.3)
    assert len(server.requests) > 1


def test_a_message_that_is_too_large_is_not_sent_again(client, server):
    with pytest.raises(ResourceExhaustedError, match="larger than max"):
        client.stream_events([Event("ada", "book", session_id="x" * 5_000_000)], reconnect_timeout=30.0, timeout=20.0)
    assert server.requests == []


@pytest.mark.parametrize("last_words", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, None])
def test_a_batch_whose_acknowledgement_was_lost_is_sent_again_and_counts_as_duplicates(
    client, server, last_words, monkeypatch
):
    # One batch at a time, so that it is certain which acknowledgements arrived.
    monkeypatch.setattr("longtide._ledger.MAX_IN_FLIGHT_BATCHES", 1)
    server.last_words = last_words
    server.lose_acknowledgement_of = 3
    result = client.stream_events(events(50), batch_size=10)
    assert result == WriteResult(written_count=40, duplicate_count=10)
    assert server.sequence_numbers == [1, 2, 3, 3, 4, 5]
    assert len(server.stored) == 50


def test_a_stream_waits_for_a_server_that_is_away(client, server):
    def source():
        yield from events(10)
        server.stop()
        threading.Timer(0.3, server.start).start()
        yield Event("ada", "last", event_id="last")

    client.stream_events(source(), batch_size=1)
    assert len(server.stored) == 11


def test_a_stream_gives_up_on_a_server_that_stays_away(client, server):
    server.stop()
    started = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        client.stream_events(events(10), reconnect_timeout=0.3)
    assert time.monotonic() - started < 5
    assert caught.value.__cause__ is not None


def test_a_stream_that_gets_no_acknowledgement_fails_and_has_read_only_so_far_ahead(client, server):
    server.holding = True
    taken = itertools.count()
    endless = (Event("ada", f"book-{next(taken)}") for _ in itertools.count())
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.3 s"):
        client.stream_events(endless, batch_size=10, timeout=0.3)
    assert next(taken) == 64 * 10


def test_an_error_other_than_unavailable_ends_the_stream(client, server, rich_status):
    details = error_details_pb2.ErrorInfo(reason="DISK_FULL")
    server.failures.append(rich_status(code_pb2.RESOURCE_EXHAUSTED, "the disk is full", details))
    with pytest.raises(ResourceExhaustedError, match="the disk is full"):
        client.stream_events(events(1))
    assert len(server.requests) == 1


def test_an_error_of_the_callers_own_iterable_is_passed_on(client):
    def source():
        yield from events(10)
        raise UnavailableError("the caller's own trouble")

    with pytest.raises(UnavailableError, match="the caller's own trouble"):
        client.stream_events(source(), batch_size=5)


async def test_the_async_client_takes_async_iterables(server):
    async def source():
        for event in events(25):
            yield event

    async with AsyncClient(server.target) as client:
        assert await client.stream_events(source(), batch_size=10) == WriteResult(written_count=25)
        assert await client.write_events(source()) == WriteResult(duplicate_count=25)
