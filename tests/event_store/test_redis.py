"""What is Redis' own: what survives its end, what happens without it, and what it must be told."""

import asyncio
import contextlib
import signal

import pytest
import structlog
from tests.redis_servers import cli, free_port, redis_cluster, redis_server

from longtide_server.errors import InvalidInput, Overloaded, Unavailable
from longtide_server.event_store import redis as redis_store
from longtide_server.event_store.urls import check_store_url, open_store


async def ids(store):
    return [event.event_id for event in (await store.history("user:ann")).events]


async def test_what_was_acknowledged_survives_a_killed_redis(tmp_path, event):
    """Kills Redis while several callers write; what it was said to hold, it holds, and each batch is whole."""
    acknowledged, enough = [], asyncio.Event()

    async def write_for_ever(store, caller):
        with contextlib.suppress(Unavailable):
            for batch in range(1_000_000):
                sent = [event(f"{caller}-{batch}-{n}", time_s=float(batch)) for n in range(3)]
                await store.write(sent)
                acknowledged.extend(one.event_id for one in sent)
                if len(acknowledged) > 600:
                    enough.set()

    port = free_port()
    with redis_server(tmp_path, port=port) as (_, process):
        store = await open_store(f"redis://127.0.0.1:{port}")
        writers = [asyncio.create_task(write_for_ever(store, caller)) for caller in range(4)]
        await enough.wait()
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*writers)
        with pytest.raises(Unavailable, match="the event store cannot write"):
            await store.write([event("e1")])
        with pytest.raises(Unavailable, match="the event store cannot answer"):
            await store.history("user:ann")
    with redis_server(tmp_path, port=port):
        kept = await ids(store)  # the same store goes on by itself
        assert set(acknowledged) <= set(kept)
        assert len(kept) == len(set(kept))
        assert len(kept) % 3 == 0
        written = await store.write([event(name) for name in acknowledged])
        assert (written.new, written.duplicates) == (0, len(acknowledged))
        await store.close()


async def test_a_cluster_that_loses_a_master_is_unavailable_until_it_is_back(tmp_path, event):
    def everybody(turn):
        return [event(f"e{turn}", user_id=f"user-{n}") for n in range(30)]

    with redis_cluster(tmp_path, node_timeout_ms=1_000) as nodes:
        store = await open_store(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        assert (await store.write(everybody(0))).new == 30
        nodes[1].process.kill()
        for _ in range(2):
            async with asyncio.timeout(8.0):  # soon, also for callers without a deadline
                with pytest.raises(Unavailable, match="the event store cannot write"):
                    await store.write(everybody(1))
        with nodes[1].running():
            new = 0
            for _ in range(100):
                with contextlib.suppress(Unavailable):
                    new = (await store.write(everybody(1))).new
                    break
                await asyncio.sleep(0.2)
            # Whom the first tries reached, they reached once and whole.
            assert 0 < new <= 30
            assert (await store.write(everybody(1))).new == 0
            for n in range(30):
                assert len((await store.history(f"user:user-{n}")).events) == 2
        await store.close()


async def test_scripts_that_redis_has_forgotten_are_sent_again(redis_port, event):
    cli(redis_port, "flushall")
    store = await open_store(f"redis://127.0.0.1:{redis_port}")
    await store.write([event("e1"), event("b1", user_id="bob")])
    cli(redis_port, "script", "flush")
    assert (await store.write([event("e2"), event("b2", user_id="bob")])).new == 2
    cli(redis_port, "script", "flush")
    assert (await store.delete("user:bob", 5.0)).events == 2
    await store.close()


async def test_a_redis_that_is_full_is_unavailable_and_leaves_nothing_half_written(tmp_path, event):
    with redis_server(tmp_path, "--maxmemory", "8mb") as (port, _):
        store = await open_store(f"redis://127.0.0.1:{port}")
        await store.write([event("e1")])
        with pytest.raises(Unavailable, match="maxmemory"):
            for n in range(100):
                await store.write([event(f"{n}-{k}", "x" * 500) for k in range(300)])
        kept = await ids(store)
        assert kept[0] == "e1"
        assert len(kept) % 300 == 1
        cli(port, "config", "set", "maxmemory", "200mb")
        assert (await store.write([event("e2")])).new == 1
        await store.close()


async def test_only_so_many_events_may_wait(redis_port, event, monkeypatch):
    cli(redis_port, "flushall")
    monkeypatch.setattr(redis_store, "MAX_WAITING_EVENTS", 3)
    store = await open_store(f"redis://127.0.0.1:{redis_port}")
    waiting = asyncio.ensure_future(store.write([event("e1"), event("e2"), event("e3")]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 events are waiting"):
        await store.write([event("too many")])
    assert (await waiting).new == 3
    assert (await store.write([event("too many")])).new == 1
    await store.close()


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--appendonly", "no"), "appendonly"),
        (("--appendfsync", "everysec"), "appendfsync"),
        (("--maxmemory-policy", "allkeys-lru"), "maxmemory-policy"),
    ],
)
async def test_settings_that_may_lose_events_are_warned_of(tmp_path, options, setting):
    with redis_server(tmp_path, *options) as (port, _), structlog.testing.capture_logs() as logs:
        await (await open_store(f"redis://127.0.0.1:{port}")).close()
    assert [line["setting"] for line in logs if line["event"] == "redis_may_lose_events"] == [setting]


async def test_safe_settings_are_not_warned_of(redis_port):
    with structlog.testing.capture_logs() as logs:
        await (await open_store(f"redis://127.0.0.1:{redis_port}")).close()
    assert logs == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://host/x", "postgres://host/db", "events.db", ""])
def test_a_url_of_no_store_is_refused(url):
    with pytest.raises(InvalidInput, match="store"):
        check_store_url(url)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "sqlite:////a/x.db", "rediss://h:1/2", "rediss+cluster://h"])
def test_a_url_of_a_store_is_accepted(url):
    check_store_url(url)
