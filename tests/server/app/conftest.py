"""Running servers."""

import grpc
import pytest
from tests.redis_servers import cli

from longtide import AsyncClient
from longtide_server.app import running


@pytest.fixture
async def channel(config):
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
async def two_servers(config, redis_port, tmp_path):
    """Clients of two servers over one Redis."""
    cli(redis_port, "flushall")
    store = f"redis://127.0.0.1:{redis_port}"
    async with (
        running(config(store=store, data_dir=tmp_path / "one")) as one,
        running(config(store=store, data_dir=tmp_path / "other")) as other,
        AsyncClient(one) as here,
        AsyncClient(other) as there,
    ):
        yield here, there
