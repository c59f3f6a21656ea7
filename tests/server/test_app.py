"""The whole server as it is composed, with the encoder in its own process."""

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import psutil
import pytest
from click.testing import CliRunner
from google.protobuf import timestamp_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.redis_servers import cli

from longtide import AsyncClient, Event, InvalidEventsError, Item, NotFoundError, Source, Tags, UpsertResult
from longtide.v1 import events_pb2, events_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc
from longtide_server import app
from longtide_server.app import running
from longtide_server.app.background import cancelled
from longtide_server.catalog import freshness
from longtide_server.catalog_store.redis import RedisCatalogStore
from longtide_server.cli import cli as commands
from longtide_server.encoder import ON_CPU, ON_GPU, Batches, EncoderAt, LocalEncoder
from longtide_server.errors import EncoderUnavailable, InvalidInput, SnapshotError, Unavailable
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import EventType
from longtide_server.feedback import Line, report, summed
from longtide_server.snapshot import ENCODER, resolve

SERVICES = [f"longtide.v1.{name}Service" for name in ("Event", "Recommendation", "User", "Catalog", "Snapshot")]


@pytest.fixture
async def channel(config):
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel


def event(event_id, item_id="item-3", user_id="ann"):
    return events_pb2.Event(
        event_id=event_id,
        user_id=user_id,
        item_id=item_id,
        type=events_pb2.EVENT_TYPE_VIEW,
        event_time=timestamp_pb2.Timestamp(seconds=1_700_000_000),
    )


async def write(channel, *events):
    return await events_pb2_grpc.EventServiceStub(channel).WriteEvents(events_pb2.WriteEventsRequest(events=events))


async def recommended(channel, user_id="ann"):
    stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
    answer = await stub.Recommend(recommendation_pb2.RecommendRequest(user_id=user_id, limit=12))
    assert not answer.degraded, answer.degraded_reason
    return [item.item_id for item in answer.recommendations]


async def test_every_snapshot_that_is_served_knows_what_is_stored_of_items(config, copied):
    settings = config(snapshot_dir=copied("a", "b"))
    left = sorted(f"item-{n}" for n in range(12) if n not in (3, 4))
    async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
        assert len(await recommended(channel)) == 12
        async with AsyncClient(address) as client:
            await client.upsert_items([Item("item-3", tags=["new"], available=False), Item("item-5", tags=["new"])])
            await client.delete_items(["item-4"])
            assert sorted(await recommended(channel)) == left
            await client.activate_snapshot("b")
            answer = await client.recommend("ann", filter=Tags("new") & ~Tags("old"))
        assert [item.item_id for item in answer] == ["item-5"]
        assert sorted(await recommended(channel)) == left
    async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
        assert sorted(await recommended(channel)) == left


@pytest.fixture(scope="module")
def described_snapshots(tmp_path_factory):
    """Two kinds of letters, told apart by their tags, each liked by people of its own."""
    directory = tmp_path_factory.mktemp("described")
    log, items = directory / "log.csv", directory / "items.csv"
    kinds = {"early": "abcdefgh", "late": "stuvwxyz"}
    rows = [
        f"{kind}-{user},{letters[(user + step) % 8]},{1_700_000_000 + step}"
        for kind, letters in kinds.items()
        for user in range(16)
        for step in range(8)
    ]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    tags = [f"{letter},{kind}" for kind, letters in kinds.items() for letter in letters]
    items.write_text("\n".join(["item_id,tags", *tags]) + "\n")
    small = ("model.dim=8", "model.hidden=8", "train.epochs=12", "train.learning_rate=0.02")
    options = [part for one in small for part in ("--set", one)]
    out = directory / "snapshots"
    done = CliRunner().invoke(
        commands, ["train", str(log), "--items", str(items), "--text-model", "none", "--out", str(out), *options]
    )
    assert done.exit_code == 0, done.output
    return out


async def within_two_seconds(client, item_id):
    """What is recommended to ann once an item is among it."""
    async with asyncio.timeout(2.0):
        while True:
            found = {item.item_id: item.title for item in await client.recommend("ann", 17)}
            if item_id in found:
                return found
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_item_that_is_written_is_recommended_within_two_seconds(config, described_snapshots, workers):
    """Whichever worker is asked: each connection may be to another one."""
    settings = config(snapshot_dir=described_snapshots, explore_share=0.0, workers=workers)
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        assert "new" not in [item.item_id for item in await client.recommend("ann", 17)]
        await client.upsert_items([Item("new", "A new one", tags=["early"]), Item("other", tags=["late"])])
        found = await within_two_seconds(client, "new")
        assert [*found].index("new") < 6  # ann likes the early ones
        assert found["new"] == "A new one"
        for _ in range(6):
            async with AsyncClient(address) as another:
                assert [*await within_two_seconds(another, "new")].index("new") < 6
        await client.upsert_items([Item("new", available=False)], ["available"])
        for _ in range(6):
            async with AsyncClient(address) as another:
                assert "new" not in [item.item_id for item in await another.recommend("ann", 17)]
    async with running(settings) as address, AsyncClient(address) as client:  # and what is stored is placed again
        await within_two_seconds(client, "other")


@pytest.mark.parametrize(("on_gpu", "batches"), [(True, ON_GPU), (False, ON_CPU)])
async def test_torchserve_is_called_with_what_suits_it(config, copied, monkeypatch, on_gpu, batches):
    """Without a GPU, and without TorchServe, which the end-to-end tests start."""
    told = []

    class Started:
        grpc_address = "127.0.0.1:1"

        def __init__(self, settings):
            told.append(settings.workers)
            self.on_gpu = on_gpu

        async def start(self):
            pass

        async def stop(self):
            pass

    monkeypatch.setattr(app, "TorchServe", Started)
    settings = config(snapshot_dir=copied("a"), torchserve_workers=3)
    settings.data_dir.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        found = await app.TorchServes(settings).start(resolve(settings.snapshot_dir) / ENCODER, stack)
    assert found == EncoderAt("127.0.0.1:1", replace(batches, calls=3))
    assert told == [3]


async def test_calls_are_as_large_as_suits_the_encoder(config, monkeypatch):
    encode, sizes = LocalEncoder.encode, []

    async def seen(self, batch, timeout_s):
        sizes.append(len(batch))
        return await encode(self, batch, timeout_s)

    monkeypatch.setattr(LocalEncoder, "encode", seen)
    monkeypatch.setattr(LocalEncoder, "batches", Batches(users=2))
    async with running(config()) as address, AsyncClient(address) as client:
        await client.write_events([Event(f"u{n}", "item-3", "view") for n in range(9)])
        assert len([answer async for answer in client.recommend_many([f"u{n}" for n in range(9)])]) == 9
    assert max(sizes) == 2


async def test_a_state_follows_an_event_before_anybody_asks(config, monkeypatch):
    encoded = asyncio.Semaphore(0)
    encode = LocalEncoder.encode

    async def counted(self, batch, timeout_s):
        found = await encode(self, batch, timeout_s)
        encoded.release()
        return found

    monkeypatch.setattr(LocalEncoder, "encode", counted)
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        await write(channel, event("e1"))
        await recommended(channel)
        await encoded.acquire()
        await write(channel, event("e2", "item-4"))
        async with asyncio.timeout(2.0):
            await encoded.acquire()


async def test_answers_say_so_while_the_catalogue_of_others_cannot_be_asked(config, redis_port, monkeypatch):
    cli(redis_port, "flushall")
    monkeypatch.setattr(freshness, "STALE_AFTER_S", 0.2)
    settings = config(store=f"redis://127.0.0.1:{redis_port}", catalog_refresh_every_s=0.02)
    async with running(settings) as address, AsyncClient(address) as client:

        async def becomes(reason):
            async with asyncio.timeout(5.0):
                while True:
                    answer = await client.recommend("ann")
                    if reason in answer.degraded_reason and answer.degraded == bool(reason):
                        return
                    await asyncio.sleep(0.01)

        async def fails(self, since, limit):
            raise Unavailable("away")

        await becomes("")
        with monkeypatch.context() as patched:
            patched.setattr(RedisCatalogStore, "changes", fails)
            await becomes("the catalogue could not be asked: away")
        await becomes("")


async def test_what_trends_and_what_is_like_an_item_are_asked_of_a_running_server(config, described_snapshots):
    async with running(config(snapshot_dir=described_snapshots)) as address, AsyncClient(address) as client:
        await client.write_events([Event(f"u{n}", "w", "view") for n in range(5)])
        others = {"encoder": 0, "neighbors": 0, "transitions": 0, "popularity": 0}
        [trend] = await client.recommend("somebody new", 1, source_weights=others | {"trending": 1})
        assert (trend.item_id, trend.sources[0].source) == ("w", Source.TRENDING)
        alike = [item.item_id for item in await client.similar_items("a", 7, "content")]
        assert sorted(alike) == list("bcdefgh")  # its tag is theirs


async def trending_now(client, count):
    """What trends, first to last."""
    others = {"encoder": 0, "neighbors": 0, "transitions": 0, "popularity": 0}
    found = await client.recommend("somebody new", count, source_weights=others | {"trending": 1})
    return [item.item_id for item in found if item.sources[0].source == Source.TRENDING]


async def test_what_trends_does_so_after_a_restart_and_under_another_snapshot(config, copied):
    settings = config(snapshot_dir=copied("a", "b"))
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event(f"u{n}", "item-7", "view") for n in range(3)])
        await client.write_events([Event("u9", "item-5", "view")])
        assert await trending_now(client, 2) == ["item-7", "item-5"]
    async with running(settings) as address, AsyncClient(address) as client:
        assert await trending_now(client, 2) == ["item-7", "item-5"]
        await client.write_events([Event(f"v{n}", "item-5", "view") for n in range(5)])
        await client.activate_snapshot("b")
        assert await trending_now(client, 2) == ["item-5", "item-7"]
        await client.write_events([Event(f"w{n}", "item-7", "view") for n in range(9)])
        assert await trending_now(client, 2) == ["item-7", "item-5"]


async def how_new_suits(client, user_id):
    """The score of the item "new" among the early ones."""
    return next(item.score for item in await client.rank(user_id, ["new", *"abcdefgh"]) if item.item_id == "new")


async def test_new_items_stay_where_people_pulled_them_after_a_restart(config, described_snapshots):
    """An item of the late kind, chosen by early people, suits ann the better, who is one of them."""
    settings = config(snapshot_dir=described_snapshots, explore_share=0.0)

    async def suits_ann(client):
        await within_two_seconds(client, "new")  # so that it is placed
        return await how_new_suits(client, "ann")

    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        await client.upsert_items([Item("new", tags=["late"])])
        before = await suits_ann(client)
        for n in range(30):
            await client.write_events([Event(f"early-{n}", letter, "view") for letter in "abcdef"])
            await client.recommend(f"early-{n}")
            await client.write_events([Event(f"early-{n}", "new", "view")])
        pulled = await suits_ann(client)
        assert pulled > 1.5 * before
    async with running(settings) as address, AsyncClient(address) as client:
        assert await suits_ann(client) == pytest.approx(pulled, rel=1e-3)


async def test_people_who_never_ask_pull_new_items_too(config, described_snapshots):
    """An item of the late kind suits ann the better, who is an early one, once early people have turned to it."""
    settings = config(snapshot_dir=described_snapshots, explore_share=0.0)
    early = [Event(f"early-{n}", letter, "view") for n in range(30) for letter in "abcdef"]
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        await client.write_events(early)
    async with running(settings) as address, AsyncClient(address) as client:
        await client.upsert_items([Item("new", tags=["late"])])
        await within_two_seconds(client, "new")
        before = await how_new_suits(client, "ann")
        await client.write_events([Event(f"early-{n}", "new", "view") for n in range(30)])
        async with asyncio.timeout(10.0):
            while True:
                await asyncio.sleep(0.05)
                if await how_new_suits(client, "ann") > 1.5 * before:
                    break


async def test_a_share_of_the_places_is_for_items_that_were_just_written(config, described_snapshots):
    settings = config(snapshot_dir=described_snapshots, explore_share=1.0)
    async with running(settings) as address, AsyncClient(address) as client:
        await client.write_events([Event("ann", letter, "view", time=time.time()) for letter in "abc"])
        await client.upsert_items([Item(f"new-{n}", tags=["late"]) for n in range(20)])
        async with asyncio.timeout(2.0):
            while True:
                await asyncio.sleep(0.01)
                first, *others = await client.recommend("ann", 6)
                if Source.EXPLORATION in {item.sources[0].source for item in others}:
                    break
        assert first.sources[0].source != Source.EXPLORATION


async def test_events_are_felt_at_once_and_survive_a_restart(config):
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        assert len(await recommended(channel)) == 12
        assert (await write(channel, event("e1"), event("e2", "item-4"))).written_count == 2
        before = await recommended(channel)
        assert sorted(before) == sorted(f"item-{n}" for n in range(12) if n not in (3, 4))
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        assert await recommended(channel) == before
        assert (await write(channel, event("e1"))).duplicate_count == 1


async def test_states_survive_a_restart(config, monkeypatch):
    encoded = []
    encode = LocalEncoder.encode

    async def counted(self, batch, timeout_s):
        encoded.extend(len(steps.items) for steps in batch)
        return await encode(self, batch, timeout_s)

    monkeypatch.setattr(LocalEncoder, "encode", counted)
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        await write(channel, *(event(f"e{n}", f"item-{n}") for n in range(5)))
        before = await recommended(channel)
    assert encoded == [5]
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        assert await recommended(channel) == before
        assert encoded == [5]
        await write(channel, event("e5", "item-6"))
        await recommended(channel)
    assert encoded == [5, 1]


async def test_states_that_nobody_saves_into_any_more_do_not_stay(config):
    folder = config().data_dir / "states"
    old, signals = folder / "worker-1" / "another.arrow", folder / "another.signals"
    for file in (old, signals):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (1_000.0, 1_000.0))
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        await write(channel, event("e1"))
        await recommended(channel)
    assert not old.exists()
    assert signals.exists()
    assert len(list(folder.glob("*.arrow"))) == 1


async def test_more_calls_than_are_allowed_are_refused_and_the_others_answered(config, monkeypatch):
    encode = LocalEncoder.encode

    async def slow(self, batch, timeout_s):
        await asyncio.sleep(0.3)
        return await encode(self, batch, timeout_s)

    monkeypatch.setattr(LocalEncoder, "encode", slow)
    async with running(config(max_calls=4)) as address, grpc.aio.insecure_channel(address) as channel:
        await write(channel, *(event(f"e{n}", user_id=f"u{n}") for n in range(12)))
        asked = (recommended(channel, f"u{n}") for n in range(12))
        found = await asyncio.gather(*asked, return_exceptions=True)
        refused = [one for one in found if isinstance(one, grpc.aio.AioRpcError)]
        assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert 0 < len(refused) < 12
        assert all(len(one) == 11 for one in found if one not in refused)
        assert len(await recommended(channel, "u0")) == 11


async def test_calls_that_would_wait_long_to_be_taken_up_are_dropped(config, monkeypatch):
    """The event loop stands still while many calls arrive from other threads."""

    async def still(self, batch, timeout_s):
        time.sleep(1.0)  # noqa: ASYNC251
        raise EncoderUnavailable("stood still")

    def ask(user):
        try:
            with grpc.insecure_channel(address) as channel:
                stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
                stub.Recommend(recommendation_pb2.RecommendRequest(user_id=user), timeout=10.0)
        except grpc.RpcError as exc:
            return exc.code()
        return grpc.StatusCode.OK

    async with running(config(max_waiting_calls=2)) as address, grpc.aio.insecure_channel(address) as channel:
        await write(channel, event("e1"))
        monkeypatch.setattr(LocalEncoder, "encode", still)
        with ThreadPoolExecutor(40) as threads:
            first = threads.submit(ask, "ann")
            await asyncio.sleep(0.2)
            codes = [threads.submit(ask, f"u{n}") for n in range(39)]
            found = [await asyncio.wrap_future(one) for one in (first, *codes)]
    assert set(found) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


async def test_two_servers_over_one_redis_are_one(config, redis_port, tmp_path):
    cli(redis_port, "flushall")
    store = f"redis://127.0.0.1:{redis_port}"
    async with (
        running(config(store=store, data_dir=tmp_path / "one")) as one,
        running(config(store=store, data_dir=tmp_path / "other")) as other,
        AsyncClient(one) as here,
        AsyncClient(other) as there,
    ):
        for n in range(8):
            writer, reader = (here, there) if n % 2 else (there, here)
            sent = Event("ann", f"item-{n}", time=1_700_000_000 + n)
            assert (await writer.write_events([sent])).written_count == 1
            assert (await reader.write_events([sent])).duplicate_count == 1
            assert f"item-{n}" not in [item.item_id for item in await reader.recommend("ann", 12)]
        assert [item.item_id for item in await here.recommend("ann", 12)] == [
            item.item_id for item in await there.recommend("ann", 12)
        ]
        await here.delete_user_data("ann")
        assert len(await there.recommend("ann", 12)) == 12


async def test_two_servers_over_one_redis_have_one_catalogue(config, redis_port, tmp_path):
    cli(redis_port, "flushall")
    store = f"redis://127.0.0.1:{redis_port}"
    async with (
        running(config(store=store, data_dir=tmp_path / "one")) as one,
        running(config(store=store, data_dir=tmp_path / "other")) as other,
        AsyncClient(one) as here,
        AsyncClient(other) as there,
    ):
        mask = Item("i1", "Mask", price=12.5, text_vector=[1, 2], attributes={"refill": True})
        assert await here.upsert_items([mask]) == UpsertResult(1)
        assert await there.get_item("i1") == mask
        [error] = (await there.upsert_items([Item("i2", text_vector=[1, 2, 3]), Item("i3")])).errors
        assert (error.index, error.item_id, error.field) == (0, "i2", "text_vector")
        await there.upsert_items([Item("i1", price=9.0)], ["price"])
        assert (await here.get_item("i1")).price == 9.0
        assert [item.item_id async for item in here.list_items(page_size=1)] == ["i1", "i3"]
        assert await here.delete_items(["i1", "i1", "i9"]) == 1
        with pytest.raises(NotFoundError):
            await there.get_item("i1")


async def test_the_catalogue_survives_a_restart(config):
    items = [Item(f"i{n:04}", f"Title {n}") for n in range(1_200)]
    async with running(config()) as address, AsyncClient(address) as client:
        before_s = time.time()
        assert await client.upsert_items(items) == UpsertResult(1_200)
    async with running(config()) as address, AsyncClient(address) as client:
        found = [item async for item in client.list_items(page_size=1_000)]
        assert found == items
        assert all(before_s - 1 < item.update_time.timestamp() < time.time() + 1 for item in found)


async def test_a_task_is_cancelled_even_if_it_swallows_that_once():
    """As Python 3.11's wait_for does when what it waits for is done at that moment."""
    begun = asyncio.Event()

    async def stubborn():
        with contextlib.suppress(asyncio.CancelledError):
            begun.set()
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    task = asyncio.create_task(stubborn())
    await begun.wait()
    async with asyncio.timeout(5.0):
        await cancelled(task)
    assert task.cancelled()


async def test_a_session_becomes_a_users(config):
    async with running(config()) as address, AsyncClient(address) as client:
        await client.write_events([Event(None, "item-3", session_id="s"), Event("ann", "item-5")])
        assert "item-3" not in [item.item_id for item in await client.recommend(session_id="s", limit=12)]
        assert await client.merge_users("ann", session_id="s") == 1
        for answer in (await client.recommend("ann", 12), await client.recommend(session_id="s", limit=12)):
            assert {f"item-{n}" for n in range(12)} - {item.item_id for item in answer} == {"item-3", "item-5"}
        assert {event.item_id async for event in client.list_user_events("ann")} == {"item-3", "item-5"}
        assert len(await client.export_user_data(session_id="s")) == 2


async def test_what_comes_of_recommendations_is_reported(config, tmp_path):
    async with running(config()) as address, AsyncClient(address) as client:
        answer = await client.recommend("ann", 5, surface="home")
        sent = [Event("ann", answer[0].item_id, "click", attribution_token=answer.attribution_token)]
        await client.write_events(sent)
        async for _ in client.recommend_many(["ann", "bob"], 5, surface="mail"):
            pass
    store = SqliteEventStore(tmp_path / "data" / "events.db", writes=False)
    found = summed((await report(store, {EventType.PURCHASE})).lines, ["snapshot_id", "surface"])
    await store.close()
    assert found == {(answer.snapshot_id, "home"): Line(5, 1, 0), (answer.snapshot_id, "mail"): Line(10, 0, 0)}


async def test_events_that_have_become_too_old_go_and_are_not_taken_again(config, tmp_path):
    day_s, now_s = 86_400.0, time.time()
    old = [Event("ann", f"item-{n}", "view", time=now_s - 40 * day_s) for n in range(3)]
    kept = Event("ann", "item-7", "purchase", time=now_s - 40 * day_s)
    async with running(config()) as address, AsyncClient(address) as client:
        await client.write_events([*old, kept])
    async with running(config(retention={EventType.VIEW: 30 * day_s})) as address, AsyncClient(address) as client:
        for _ in range(100):
            listed = [event.item_id async for event in client.list_user_events("ann")]
            if listed == ["item-7"]:
                break
            await asyncio.sleep(0.05)
        assert listed == ["item-7"]
        # The state that was read before they went is not used any more.
        assert {f"item-{n}" for n in range(12)} - {item.item_id for item in await client.recommend("ann", 12)} == {
            "item-7"
        }
        with pytest.raises(InvalidEventsError, match="is older than the 30 days that view events are kept"):
            await client.write_events(old)


@pytest.mark.parametrize("store", ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"])
async def test_a_store_that_cannot_be_reached_is_named(config, store):
    with pytest.raises(Unavailable, match="the event store"):
        async with running(config(store=store)):
            pass


async def test_health_answers_for_the_server_and_each_service(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="longtide.v1.Nothing"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_stopping_server_says_so_before_it_is_gone(config):
    async with running(config(stop_grace_s=0.1)) as address:
        channel = grpc.aio.insecure_channel(address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        last = asyncio.ensure_future(watch.read())
    assert (await last).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await channel.close()


async def test_reflection_lists_and_describes_the_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    stream = stub.ServerReflectionInfo()
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await stream.read()).list_services_response.service
    assert {service.name for service in listed} >= {*SERVICES, "grpc.health.v1.Health"}
    await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICES[1]))
    described = (await stream.read()).file_descriptor_response.file_descriptor_proto
    assert any(b"StreamRecommend" in file for file in described)
    await stream.done_writing()


async def test_a_message_over_the_limit_is_refused(config):
    async with running(config(max_message_bytes=10_000)) as address, grpc.aio.insecure_channel(address) as channel:
        assert (await write(channel, event("x" * 500))).written_count == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await write(channel, *(event(f"{n}" * 100) for n in range(100)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await write(channel, event("after"))).written_count == 1


async def test_a_long_id_that_is_refused_does_not_make_the_answer_too_long(channel):
    """A plain client takes in 4 MiB; the server takes in 16."""
    answer = await write(channel, event("good"), event("x" * 5_000_000))
    assert answer.written_count == 1
    assert [error.index for error in answer.errors] == [1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_in_use_is_named(config, tmp_path, workers):
    async with running(config()) as address:
        with pytest.raises(InvalidInput, match=f"{address} cannot be listened on"):
            async with running(config(listen=address, data_dir=tmp_path / "other", workers=workers)):
                pass


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_data_directory_in_use_is_named(config, workers):
    async with running(config()):
        with pytest.raises(InvalidInput, match=r"data_dir: .* is in use by another server"):
            async with running(config(workers=workers)):
                pass


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_event_log_in_use_is_named(config, tmp_path, workers):
    store = f"sqlite:///{tmp_path / 'shared.db'}"
    async with running(config(store=store)):
        with pytest.raises(InvalidInput, match=r"shared\.db is in use by another process"):
            async with running(config(store=store, data_dir=tmp_path / "other", workers=workers)):
                pass


@pytest.mark.parametrize("listen", ["50051", ":50051", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
async def test_an_address_that_is_none_is_named(config, listen):
    with pytest.raises(InvalidInput, match="listen"):
        async with running(config(listen=listen)):
            pass


@pytest.mark.parametrize("workers", [1, 2])
async def test_without_a_snapshot_there_is_no_server(config, tmp_path, workers):
    with pytest.raises(SnapshotError, match="no snapshot here"):
        async with running(config(snapshot_dir=tmp_path, workers=workers)):
            pass


async def test_a_worker_that_cannot_start_says_why_and_none_is_left(config):
    """Traces are made by workers, so it is they who find that it cannot be."""
    before = psutil.Process().children(recursive=True)
    with pytest.raises(InvalidInput, match="otlp_endpoint"):
        async with running(config(workers=2, otlp_endpoint="not-a-url")):
            pass
    assert psutil.Process().children(recursive=True) == before
