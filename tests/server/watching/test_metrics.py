"""Every metric, counted by a real server and scraped over HTTP."""

import asyncio
import sqlite3
import time
import urllib.request
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from tests.redis_servers import free_port, redis_server

from longtide.v1 import (
    events_pb2,
    events_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from longtide_server.app import running
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, InvalidInput, Overloaded
from longtide_server.event_store import sqlite_log
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.rpc import health
from longtide_server.watching.metrics import Metrics, kind_of

SOON_S = 10.0


class Scrape:
    """The samples of one scrape: `scrape("requests_total", rpc="Recommend")` adds up those that have the labels."""

    def __init__(self, text):
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name, **labels):
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == f"longtide_{name}" and labels.items() <= sample.labels.items()
        )

    def labels(self, name):
        """The labels of the samples of a name that are not zero."""
        return [sample.labels for sample in self._samples if sample.name == f"longtide_{name}" and sample.value]


@asynccontextmanager
async def observed(config, **changes):
    """A server with metrics: stubs, and what scrapes it."""
    port = free_port()
    settings = config(**({"metrics": f"127.0.0.1:{port}"} | changes))
    async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:

        async def scrape():
            def read():
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SOON_S) as page:
                    return page.read().decode()

            return Scrape(await asyncio.to_thread(read))

        async def until(name, value):
            """Scrape until the samples of a name add up to a value."""
            async with asyncio.timeout(SOON_S):
                while (found := await scrape())(name) != value:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            return found

        yield SimpleNamespace(
            events=events_pb2_grpc.EventServiceStub(channel),
            recommendations=recommendation_pb2_grpc.RecommendationServiceStub(channel),
            users=users_pb2_grpc.UserServiceStub(channel),
            snapshots=snapshots_pb2_grpc.SnapshotServiceStub(channel),
            scrape=scrape,
            until=until,
        )


@pytest.fixture
async def server(config):
    async with observed(config) as server:
        yield server


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """Takes the only place of a writer in the event log, as another process could; returns what gives it back."""
    monkeypatch.setattr(sqlite_log, "BUSY_TIMEOUT_S", 0.1)
    others = []

    def locked():
        other = sqlite3.connect(tmp_path / "data" / "events.db", isolation_level=None)
        others.append(other)
        other.execute("BEGIN IMMEDIATE")
        return other.rollback

    yield locked
    for other in others:
        other.close()


def event(event_id, item_id="item-3", user_id="ann", ago_s=60.0):
    sent = events_pb2.Event(event_id=event_id, user_id=user_id, item_id=item_id, type=events_pb2.EVENT_TYPE_VIEW)
    sent.event_time.CopyFrom(Timestamp(seconds=int(time.time() - ago_s)))
    return sent


def batch(*events):
    return events_pb2.WriteEventsRequest(events=events)


def ask(user_id="ann", **fields):
    return recommendation_pb2.RecommendRequest(user_id=user_id, **fields)


def rows(*requests):
    return recommendation_pb2.StreamRecommendRequest(requests=requests)


async def received(stream):
    return [answer async for answer in stream]


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


# RPCs


async def test_rpcs_are_counted_by_name_and_status_and_timed(server):
    await server.events.WriteEvents(batch(event("e1")))
    for _ in range(3):
        await server.recommendations.Recommend(ask())
    await refused(server.recommendations.Recommend(ask("")))
    await refused(server.snapshots.GetSnapshot(snapshots_pb2.GetSnapshotRequest(snapshot_id="none")))
    scrape = await server.scrape()
    assert scrape("requests_total", rpc="WriteEvents", code="OK") == 1
    assert scrape("requests_total", rpc="Recommend", code="OK") == 3
    assert scrape("requests_total", rpc="Recommend", code="INVALID_ARGUMENT") == 1
    assert scrape("requests_total", rpc="GetSnapshot", code="NOT_FOUND") == 1
    assert scrape("requests_total") == 6
    assert scrape("request_duration_seconds_count", rpc="Recommend") == 4
    assert 0 < scrape("request_duration_seconds_sum", rpc="Recommend") < SOON_S
    assert scrape("request_duration_seconds_bucket", rpc="Recommend", le="0.00025") < 4
    assert scrape("request_duration_seconds_bucket", rpc="Recommend", le="10.0") == 4


async def test_a_stream_counts_once_and_only_the_clients_streams_are_not_timed(server):
    message = rows(ask("ann"), ask("bob"))
    assert len(await received(server.recommendations.StreamRecommend(iter([message] * 3)))) == 3
    sent = [events_pb2.StreamEventsRequest(sequence_number=n, events=[event(f"e{n}")]) for n in (1, 2)]
    assert await received(server.events.StreamEvents(iter(sent)))
    await refused(received(server.events.StreamEvents(iter(sent[:1] * 2))))
    owner = users_pb2.Owner(user_id="ann")
    assert await received(server.users.ExportUserData(users_pb2.ExportUserDataRequest(owner=owner)))
    scrape = await server.scrape()
    assert scrape("requests_total", rpc="StreamRecommend", code="OK") == 1
    assert scrape("requests_total", rpc="StreamEvents") == 2
    assert scrape("requests_total", rpc="StreamEvents", code="OK") == 1
    assert scrape("requests_total", rpc="StreamEvents", code="INVALID_ARGUMENT") == 1
    assert scrape("requests_total", rpc="ExportUserData", code="OK") == 1
    assert scrape.labels("request_duration_seconds_count") == [{"rpc": "ExportUserData"}]


async def test_a_caller_who_has_gone_and_a_deadline_that_has_passed_are_told_apart(server, lock):
    with_nothing_to_say = server.recommendations.StreamRecommend()
    await with_nothing_to_say.wait_for_connection()
    with_nothing_to_say.cancel()
    await server.until("requests_total", 1)
    unlock = lock()
    code = await refused(server.events.WriteEvents(batch(event("e1")), timeout=0.03))
    unlock()
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    scrape = await server.until("requests_total", 2)
    assert scrape("requests_total", rpc="StreamRecommend", code="CANCELLED") == 1
    assert scrape("requests_total", rpc="WriteEvents", code="DEADLINE_EXCEEDED") == 1


async def test_rows_of_a_stream_are_counted(server):
    message = rows(ask("ann"), ask("bob"), ask(""))
    await received(server.recommendations.StreamRecommend(iter([message, message])))
    scrape = await server.scrape()
    assert scrape("stream_recommend_rows_total", outcome="answered") == 4
    assert scrape("stream_recommend_rows_total", outcome="failed") == 2


# Answers


async def test_stages_are_timed_where_something_is_done(server):
    await server.events.WriteEvents(batch(event("e1"), event("e2", "item-4")))
    await server.recommendations.Recommend(ask())  # history from the log, both events encoded
    scrape = await server.scrape()
    stages = ("state", "encoder", "neighbors", "fusion")
    assert {stage: scrape("stage_duration_seconds_count", stage=stage) for stage in stages} == dict.fromkeys(stages, 1)
    assert all(0 < scrape("stage_duration_seconds_sum", stage=stage) < SOON_S for stage in stages)
    await server.recommendations.Recommend(ask())  # the kept answer
    await server.recommendations.Recommend(ask(limit=3))  # the kept encoding
    scrape = await server.scrape()
    assert [scrape("stage_duration_seconds_count", stage=stage) for stage in stages] == [1, 1, 2, 2]


async def test_kept_answers_are_counted(server):
    await server.events.WriteEvents(batch(event("e1")))
    for _ in range(5):
        await server.recommendations.Recommend(ask())
    await server.recommendations.Recommend(ask(exclude_item_ids=["item-5"]))
    await server.recommendations.Recommend(ask(limit=3))
    scrape = await server.scrape()
    found = {result: scrape("kept_answer_lookups_total", result=result) for result in ("hit", "miss", "bypass")}
    assert found == {"hit": 4, "miss": 2, "bypass": 1}
    assert scrape("kept_answers") == 2


async def test_of_whom_is_deleted_no_answer_is_kept(server):
    for user_id in ("ann", "bob"):
        await server.recommendations.Recommend(ask(user_id))
    assert (await server.scrape())("kept_answers") == 2
    await server.users.DeleteUserData(users_pb2.DeleteUserDataRequest(owner=users_pb2.Owner(user_id="ann")))
    assert (await server.scrape())("kept_answers") == 1


async def test_user_states_are_counted(server):
    for user in ("ann", "bob", "ann", "ann"):
        await server.recommendations.Recommend(ask(user))
    scrape = await server.scrape()
    assert scrape("user_state_lookups_total", result="miss") == 2
    assert scrape("user_state_lookups_total", result="hit") == 2
    assert scrape("user_states") == 2


async def test_over_a_shared_store_a_state_that_lacks_only_news_is_a_hit(config, redis_port):
    async with observed(config, store=f"redis://127.0.0.1:{redis_port}") as server:
        await server.recommendations.Recommend(ask("shared"))
        await server.events.WriteEvents(batch(event("s1", user_id="shared")))
        await server.recommendations.Recommend(ask("shared"))
        scrape = await server.scrape()
    assert scrape("user_state_lookups_total", result="miss") == 1
    assert scrape("user_state_lookups_total", result="hit") == 1
    assert scrape("store_call_duration_seconds_count", operation="history") == 2


async def test_what_answers_had_to_do_without_is_counted(config, tmp_path, monkeypatch):
    with redis_server(tmp_path / "redis") as (port, process):
        async with observed(config, store=f"redis://127.0.0.1:{port}") as server:
            await server.events.WriteEvents(batch(event("e1")))
            monkeypatch.setattr(LocalEncoder, "encode", failing(EncoderUnavailable("down")))
            assert (await server.recommendations.Recommend(ask())).degraded
            scrape = await server.scrape()
            assert [scrape("degraded_answers_total", missing=what) for what in ("encoder", "store")] == [1, 0]
            process.kill()
            process.wait()
            assert (await server.recommendations.Recommend(ask("bob"))).degraded
            scrape = await server.scrape()
            assert [scrape("degraded_answers_total", missing=what) for what in ("encoder", "store")] == [1, 1]
            assert scrape("stage_duration_seconds_count", stage="state") == 2
            await received(server.recommendations.StreamRecommend(iter([rows(ask("bob"), ask("cara"))])))
            scrape_of_rows = await server.scrape()
            assert scrape_of_rows("degraded_answers_total", missing="store") == 3
            assert scrape("store_errors_total", operation="history", kind="unavailable") >= 1


# The encoder


def failing(error):
    async def encode(self, batch, timeout_s):
        raise error

    return encode


def held(monkeypatch):
    """From now on the encoder does not answer before the event is set; the calls that have begun are counted."""
    encode, allowed, begun = LocalEncoder.encode, asyncio.Event(), asyncio.Semaphore(0)

    async def waiting(self, batch, timeout_s):
        begun.release()
        await allowed.wait()
        return await encode(self, batch, timeout_s)

    monkeypatch.setattr(LocalEncoder, "encode", waiting)
    return allowed, begun


async def test_calls_to_the_encoder_and_their_sizes_are_counted(server, monkeypatch):
    people = ("ann", "bob", "cara", "dan")
    await server.events.WriteEvents(
        batch(*(event(f"{user}-{n}", f"item-{n}", user) for user in people for n in range(3)))
    )
    allowed, begun = held(monkeypatch)
    asking = [asyncio.ensure_future(server.recommendations.Recommend(ask("ann")))]
    await begun.acquire()
    asking += [asyncio.ensure_future(server.recommendations.Recommend(ask(user))) for user in people[1:]]
    await server.until("encoder_queue_users", 3)
    allowed.set()
    await asyncio.gather(*asking)
    scrape = await server.scrape()
    assert scrape("encoder_queue_users") == 0
    assert scrape("encoder_call_duration_seconds_count") == 2
    assert scrape("encoder_call_duration_seconds_sum") > 0
    assert scrape("encoder_batch_users_sum") == 1 + 3
    assert scrape("encoder_batch_users_bucket", le="1.0") == 1
    assert scrape("encoder_batch_users_bucket", le="4.0") == 2
    assert scrape("encoder_batch_events_sum") == 3 + 9
    assert scrape("encoder_errors_total") == 0


@pytest.mark.parametrize(
    "error, kind",
    [
        (EncoderUnavailable("down"), "unavailable"),
        (DeadlineExceeded("slow"), "deadline_exceeded"),
        (Overloaded("full"), "overloaded"),
        (ValueError("odd"), "unexpected"),
    ],
)
async def test_what_goes_wrong_with_the_encoder_is_counted_by_kind(server, monkeypatch, error, kind):
    await server.events.WriteEvents(batch(event("e1")))
    monkeypatch.setattr(LocalEncoder, "encode", failing(error))
    assert (await server.recommendations.Recommend(ask())).degraded
    scrape = await server.scrape()
    assert scrape.labels("encoder_errors_total") == [{"kind": kind}]
    assert scrape("encoder_call_duration_seconds_count") == 0
    assert scrape("encoder_batch_users_count") == 1


async def test_the_breaker_is_open_until_the_encoder_is_back(server, monkeypatch):
    await server.events.WriteEvents(batch(event("e1")))
    assert (await server.scrape())("encoder_breaker_open") == 0
    with monkeypatch.context() as broken:
        broken.setattr(LocalEncoder, "encode", failing(EncoderUnavailable("down")))
        for _ in range(3):
            await server.recommendations.Recommend(ask())
        assert (await server.scrape())("encoder_breaker_open") == 1
    await server.until("encoder_breaker_open", 0)


# Events and their store


async def test_events_are_counted_by_what_became_of_them(server):
    await server.events.WriteEvents(batch(event("e1"), event("e2"), event("e1")))
    await server.events.WriteEvents(batch(event("e1"), event("e3"), event("bad", item_id="")))
    await refused(server.events.WriteEvents(batch(event("bad", item_id=""))))
    sent = events_pb2.StreamEventsRequest(sequence_number=1, events=[event("e4"), event("e4")])
    await received(server.events.StreamEvents(iter([sent])))
    scrape = await server.scrape()
    found = {outcome: scrape("events_total", outcome=outcome) for outcome in ("new", "duplicate", "refused")}
    assert found == {"new": 4, "duplicate": 3, "refused": 2}


async def test_the_lag_of_new_events_is_counted(server):
    old = event("old", ago_s=600.0)
    await server.events.WriteEvents(batch(old, event("recent", ago_s=30.0), event("ahead", ago_s=-30.0)))
    await server.events.WriteEvents(batch(old))
    scrape = await server.scrape()
    assert scrape("event_lag_seconds_count") == 3
    assert scrape("event_lag_seconds_bucket", le="0.1") == 1
    assert scrape("event_lag_seconds_bucket", le="60.0") == 1 + 1
    assert scrape("event_lag_seconds_bucket", le="300.0") == 1 + 1
    assert scrape("event_lag_seconds_bucket", le="3600.0") == 1 + 1 + 1
    assert 630 <= scrape("event_lag_seconds_sum") < 630 + SOON_S


async def test_what_the_store_does_and_fails_to_do_is_counted(lock, server):
    await server.events.WriteEvents(batch(event("e1")))
    scrape = await server.scrape()
    assert scrape("store_call_duration_seconds_count", operation="write") == 1
    assert scrape("store_errors_total") == 0
    unlock = lock()
    assert await refused(server.events.WriteEvents(batch(event("e2")))) == grpc.StatusCode.UNAVAILABLE
    unlock()
    scrape = await server.scrape()
    assert scrape("store_errors_total", operation="write", kind="unavailable") == 1
    assert scrape("store_call_duration_seconds_count", operation="write") == 1


async def test_a_call_to_a_store_that_hangs_is_counted_and_timed_when_nobody_waits_any_longer(server, monkeypatch):
    async def hangs(self, owner, size, before=None):
        await asyncio.Event().wait()

    monkeypatch.setattr(SqliteEventStore, "page", hangs)
    listing = users_pb2.ListUserEventsRequest(owner=users_pb2.Owner(user_id="ann"))
    assert await refused(server.users.ListUserEvents(listing, timeout=0.2)) == grpc.StatusCode.DEADLINE_EXCEEDED
    scrape = await server.until("store_errors_total", 1)
    assert scrape.labels("store_errors_total") == [{"operation": "page", "kind": "deadline_exceeded"}]
    assert scrape("store_call_duration_seconds_count", operation="page") == 1
    assert 0.1 < scrape("store_call_duration_seconds_sum", operation="page") < SOON_S


async def test_a_probe_of_a_store_that_hangs_is_counted(config, monkeypatch):
    async def hangs(self):
        await asyncio.Event().wait()

    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(SqliteEventStore, "probe", hangs)
    async with observed(config, store_probe_every_s=SOON_S) as server:
        scrape = await server.until("store_errors_total", 1)
        assert scrape.labels("store_errors_total") == [{"operation": "probe", "kind": "deadline_exceeded"}]


async def test_whether_the_store_works_is_shown(config, lock):
    async with observed(config, store_probe_every_s=0.05) as server:
        await server.until("store_up", 1)
        unlock = lock()
        await server.until("store_up", 0)
        unlock()
        await server.until("store_up", 1)


def test_a_conflict_is_no_failure_of_the_store_but_has_a_kind():
    assert kind_of(InvalidInput("wrong")) == "refused"


# Snapshots


async def test_the_snapshot_and_activations_are_shown(config, copied, monkeypatch):
    directory = copied("a", "b", "damaged", "unlucky")
    (directory / "damaged" / "catalog.parquet").write_bytes(b"")

    async with observed(config, snapshot_dir=directory, canary_latency_s=SOON_S) as server:

        async def activate(snapshot_id):
            await server.snapshots.ActivateSnapshot(snapshots_pb2.ActivateSnapshotRequest(snapshot_id=snapshot_id))

        await server.recommendations.Recommend(ask())
        scrape = await server.scrape()
        assert scrape.labels("snapshot_info") == [{"snapshot_id": "a"}]
        made_s = scrape("snapshot_created_timestamp_seconds")
        await activate("b")
        await activate("b")
        await refused(activate("damaged"))
        await refused(activate("none"))

        def unlucky(self, weights, sizes):
            raise EncoderUnavailable("no room for another one")

        monkeypatch.setattr(LocalEncoder, "__init__", unlucky)
        await refused(activate("unlucky"))
        scrape = await server.scrape()
        assert scrape.labels("snapshot_info") == [{"snapshot_id": "b"}]
        assert scrape("snapshot_created_timestamp_seconds") == made_s + 1
        outcomes = ("activated", "unchanged", "refused", "failed")
        found = {outcome: scrape("activations_total", outcome=outcome) for outcome in outcomes}
        assert found == {"activated": 1, "unchanged": 1, "refused": 2, "failed": 1}


async def test_what_a_snapshot_holds_counts_until_it_is_let_go(config, copied):
    directory = copied("a", "b")
    async with observed(config, snapshot_dir=directory, canary_latency_s=SOON_S) as server:
        for user in ("ann", "bob"):
            await server.recommendations.Recommend(ask(user))
        await server.snapshots.ActivateSnapshot(snapshots_pb2.ActivateSnapshotRequest(snapshot_id="b"))
        scrape = await server.until("user_states", 2)  # the new one has been warmed with the two
        assert scrape("kept_answers") == 0


# The page


async def test_a_page_has_every_metric_with_its_meaning_and_no_other(server):
    families = (await server.scrape()).families
    assert len(families) == len(list(Metrics().registry.collect()))
    assert all(name.startswith(("longtide_", "process_")) for name in families)
    assert all(family.documentation for family in families.values())
    samples = [sample.name for family in families.values() for sample in family.samples]
    assert not [name for name in samples if name.endswith("_created")]


async def test_two_servers_in_one_process_count_for_themselves(config, tmp_path):
    async with observed(config) as one, observed(config, data_dir=tmp_path / "other") as other:
        await one.recommendations.Recommend(ask())
        assert (await one.scrape())("requests_total") == 1
        assert (await other.scrape())("requests_total") == 0


async def test_port_0_picks_a_free_one_and_is_logged(config):
    with capture_logs() as logs:
        async with running(config(metrics="127.0.0.1:0")):
            [url] = [line["url"] for line in logs if line["event"] == "metrics_shown"]
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=SOON_S).read())
    assert b"longtide_user_states 0.0" in page
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, url, timeout=SOON_S)


async def test_a_taken_port_is_named(config, tmp_path):
    port = free_port()
    async with running(config(metrics=f"127.0.0.1:{port}")):
        taken = config(metrics=f"127.0.0.1:{port}", data_dir=tmp_path / "other")
        with pytest.raises(InvalidInput, match=f"metrics: 127.0.0.1:{port} cannot be listened on: Address already in"):
            async with running(taken):
                pass


@pytest.mark.parametrize("metrics", ["9464", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
async def test_an_address_that_is_none_is_named(config, metrics):
    with pytest.raises(InvalidInput, match=r"metrics: .* is not HOST:PORT"):
        async with running(config(metrics=metrics)):
            pass


async def test_without_the_option_nothing_listens_and_nothing_is_counted(config):
    with capture_logs() as logs:
        async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
            stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
            assert (await stub.Recommend(ask())).recommendations
    assert "metrics_shown" not in [line["event"] for line in logs]
