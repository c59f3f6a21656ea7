"""What the health service says is true: with the event store gone, with the encoder gone, and when they are back."""

import asyncio
import sqlite3
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from tests.redis_servers import free_port, redis_server

from longtide import AsyncClient, Event
from longtide_server.app import running
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import EncoderUnavailable, Unavailable
from longtide_server.event_store import sqlite_log
from longtide_server.rpc import health
from longtide_server.rpc.health import keep_probing

SOON_S = 20.0
NEED_THE_STORE = {"longtide.v1.EventService", "longtide.v1.UserService"}
DO_WITHOUT = {"", "longtide.v1.RecommendationService", "longtide.v1.SnapshotService"}
ALL = NEED_THE_STORE | DO_WITHOUT


class Server:
    """A server to ask how it is."""

    def __init__(self, channel, client):
        self.client = client
        self._health = health_pb2_grpc.HealthStub(channel)

    async def serving(self):
        """The services that are SERVING."""
        found = set()
        for service in ALL:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(service=service))
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                found.add(service)
        return found

    async def until(self, services):
        """Wait until exactly these are SERVING."""
        async with asyncio.timeout(SOON_S):
            while await self.serving() != services:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def served(settings):
    async with (
        running(settings) as address,
        grpc.aio.insecure_channel(address) as channel,
        AsyncClient(address) as client,
    ):
        yield Server(channel, client)


async def test_while_the_event_log_is_locked_recommendations_are_served_and_nothing_else(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_log, "BUSY_TIMEOUT_S", 0.1)
    async with served(config(store_probe_every_s=0.02)) as server:
        await server.client.write_events([Event("ann", "item-3")])
        assert await server.serving() == ALL
        other = sqlite3.connect(tmp_path / "data" / "events.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await server.until(DO_WITHOUT)
        assert len(await server.client.recommend("ann", 12)) == 11
        other.rollback()
        other.close()
        await server.until(ALL)
        await server.client.write_events([Event("ann", "item-4")])


async def test_while_redis_is_away_recommendations_are_served_and_nothing_else(config, tmp_path):
    port = free_port()
    with redis_server(tmp_path / "redis", port=port) as (_, process):
        async with served(config(store=f"redis://127.0.0.1:{port}", store_probe_every_s=0.02)) as server:
            assert await server.serving() == ALL
            process.kill()
            process.wait()
            await server.until(DO_WITHOUT)
            assert (await server.client.recommend("ann", 12)).degraded
            with redis_server(tmp_path / "redis", port=port):
                await server.until(ALL)
                await server.client.write_events([Event("ann", "item-4")])


async def test_without_the_encoder_everything_is_served(config, monkeypatch):
    async def down(self, batch, timeout_s):
        raise EncoderUnavailable("down")

    async with served(config(store_probe_every_s=0.02)) as server:
        monkeypatch.setattr(LocalEncoder, "encode", down)
        await server.client.write_events([Event("ann", "item-3")])
        assert (await server.client.recommend("ann", 12)).degraded
        assert await server.serving() == ALL


# The loop


class Store:
    """A store that is tried: each probe ends as the next of `ends` says; told what was found."""

    def __init__(self, *ends):
        self.ends = list(ends)
        self.told = []
        self.over = asyncio.Event()

    async def probe(self):
        if not self.ends:
            self.over.set()
            await asyncio.sleep(SOON_S)
        end = self.ends.pop(0)
        if end is not None:
            raise end

    async def tell(self, works):
        self.told.append(works)


async def probed(store):
    """Probe until the ends are used up."""
    probing = asyncio.create_task(keep_probing(store, 0.0, store.tell))
    async with asyncio.timeout(SOON_S):
        await store.over.wait()
    probing.cancel()


async def test_only_changes_are_told():
    down = Unavailable("it is away")
    store = Store(None, None, down, down, None, down)
    with capture_logs() as logs:
        await probed(store)
    assert store.told == [True, False, True, False]
    assert [(line["event"], line.get("reason")) for line in logs] == [
        ("event_store_fails", "it is away"),
        ("event_store_back", None),
        ("event_store_fails", "it is away"),
    ]


async def test_a_store_that_fails_in_a_way_of_its_own_fails_too():
    store = Store(ValueError("odd"), None)
    with capture_logs() as logs:
        await probed(store)
    assert store.told == [False, True]
    assert [line["event"] for line in logs if "exc_info" in line] == ["event_store_failed_oddly"]


async def test_a_store_that_does_not_answer_fails(monkeypatch):
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.01)
    store = Store()
    assert await health.why_failing(store) == "it did not answer within 0.01 s"
    assert store.over.is_set()


@pytest.mark.parametrize("error", [Unavailable("it is away"), None])
async def test_why_a_store_fails_is_said(error):
    assert await health.why_failing(Store(error)) == ("it is away" if error else "")
