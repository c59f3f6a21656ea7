"""A channel to a running server."""

import grpc
import pytest

from longtide_server.app import running


@pytest.fixture
async def channel(config):
    async with running(config()) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel
