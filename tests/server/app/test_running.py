"""The whole server as it is composed, with the encoder in its own process."""

import asyncio
import os
import time

import grpc
import pytest
from tests.server.app.calls import event, recommended, write

from longtide import AsyncClient, Event, InvalidEventsError
from longtide_server.app import running
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import EventType
from longtide_server.feedback import Line, report, summed


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


async def test_two_servers_over_one_redis_are_one(two_servers):
    here, there = two_servers
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
