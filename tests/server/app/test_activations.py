"""Another snapshot is activated in a whole server, with the encoder in its own process."""

import asyncio
from pathlib import Path

import psutil
import pytest
from tests.redis_servers import cli

from longtide import AsyncClient, UnavailableError
from longtide_server.app import running
from longtide_server.catalog import freshness
from longtide_server.catalog_store.redis import RedisCatalogStore
from longtide_server.errors import Unavailable
from longtide_server.snapshot import CURRENT

SOON_S = 20.0


@pytest.fixture
def models(copied):
    """Somebody's folder: a, b and c lie in it, and nothing says which of them is current."""
    directory = copied("a", "b", "c")
    (directory / CURRENT).unlink()
    return directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def kill_workers():
    for child in psutil.Process().children():
        if "worker" in child.cmdline():
            child.kill()


@pytest.mark.parametrize("workers", [1, 2])
async def test_beside_the_folder_of_one_snapshot_nothing_is_written_or_deleted(config, models, workers):
    settings = config(snapshot_dir=models / "a", keep_snapshots=1, canary_latency_s=SOON_S, workers=workers)
    async with running(settings) as address, AsyncClient(address, timeout=SOON_S) as client:
        for name in ("b", "c"):
            assert (await client.activate_snapshot(name)).active
        assert names(models) == ["a", "b", "c"]
        assert (await client.recommend("ann")).snapshot_id == "c"
    async with running(settings) as address, AsyncClient(address, timeout=SOON_S) as client:
        assert (await client.recommend("ann")).snapshot_id == "a"  # what it was told to serve


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_folder_that_a_server_is_started_in_lies_beside_others(config, models, monkeypatch, workers):
    monkeypatch.chdir(models / "a")
    settings = config(snapshot_dir=Path(), workers=workers)
    async with running(settings) as address, AsyncClient(address, timeout=SOON_S) as client:
        assert [(one.snapshot_id, one.active) for one in await client.list_snapshots()] == [
            ("c", False), ("b", False), ("a", True),
        ]  # fmt: skip


async def test_workers_that_are_started_again_serve_what_was_activated(config, models):
    settings = config(snapshot_dir=models / "a", canary_latency_s=SOON_S, workers=2)
    async with running(settings) as address:
        async with AsyncClient(address, timeout=SOON_S) as client:
            await client.activate_snapshot("b")
        kill_workers()
        async with AsyncClient(address, timeout=SOON_S) as client:
            await client.wait_ready(SOON_S)
            assert (await client.recommend("ann")).snapshot_id == "b"
            assert [one.snapshot_id for one in await client.list_snapshots() if one.active] == ["b"]


async def test_a_catalogue_that_cannot_be_asked_is_not_blamed_on_the_snapshot(config, copied, redis_port, monkeypatch):
    cli(redis_port, "flushall")
    monkeypatch.setattr(freshness, "STALE_AFTER_S", 0.2)
    settings = config(
        snapshot_dir=copied("a", "b"), store=f"redis://127.0.0.1:{redis_port}", catalog_refresh_every_s=0.02,
        canary_latency_s=SOON_S,
    )  # fmt: skip

    async def fails(self, since, limit):
        raise Unavailable("away")

    async with running(settings) as address, AsyncClient(address, timeout=SOON_S) as client:

        async def until(degraded):
            async with asyncio.timeout(SOON_S):
                while (await client.recommend("ann")).degraded != degraded:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        with monkeypatch.context() as patched:
            patched.setattr(RedisCatalogStore, "changes", fails)
            await until(degraded=True)
            with pytest.raises(UnavailableError, match=r"canaries.*the catalogue could not be asked: away"):
                await client.activate_snapshot("b")
        await until(degraded=False)
        assert (await client.activate_snapshot("b")).active
