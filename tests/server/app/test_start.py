"""What keeps a server from starting is named."""

import psutil
import pytest

from longtide_server.app import running
from longtide_server.errors import InvalidInput, SnapshotError, Unavailable


@pytest.mark.parametrize("store", ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"])
async def test_a_store_that_cannot_be_reached_is_named(config, store):
    with pytest.raises(Unavailable, match="the event store"):
        async with running(config(store=store)):
            pass


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
