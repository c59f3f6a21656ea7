"""A channel to TorchServe: patient with one that is slow to greet, quick to find one that was away."""

import asyncio
import time
from contextlib import asynccontextmanager

import grpc
import pytest

from longtide_server.errors import DeadlineExceeded, EncoderUnavailable
from longtide_server.torchserve.client import TorchServeClient
from longtide_server.torchserve.torchserve_pb2 import PredictionResponse, PredictionsRequest


@asynccontextmanager
async def answering(port=0):
    """A server that answers as TorchServe does; yields its port."""

    async def predictions(request, context):
        return PredictionResponse(prediction=b"here")

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        predictions, PredictionsRequest.FromString, PredictionResponse.SerializeToString
    )
    service = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Predictions": handler})])
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


@asynccontextmanager
async def slow_to_greet(port, delay_s):
    """Forwards to a port what arrives; a connection is accepted at once and stays silent for a while."""

    async def copied(reader, writer):
        while piece := await reader.read(65_536):
            writer.write(piece)
        writer.close()

    async def connected(reader, writer):
        await asyncio.sleep(delay_s)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copied(reader, there_writer), copied(there_reader, writer))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield proxy.sockets[0].getsockname()[1]
    proxy.close()


@pytest.fixture
async def client_of():
    """Makes a client of a port of this machine."""
    clients = []

    def made(port):
        clients.append(TorchServeClient(f"127.0.0.1:{port}"))
        return clients[-1]

    yield made
    for client in clients:
        await client.close()


async def is_there(client, within_s):
    try:
        return await client.predict("model", {}, within_s) == b"here"
    except (EncoderUnavailable, DeadlineExceeded):
        return False


async def test_a_java_that_is_slow_to_greet_is_waited_for(client_of):
    """Under load, a freshly started one takes longer for its first connection than a reconnection may be apart."""
    async with answering() as port, slow_to_greet(port, 0.7) as slow:
        assert await is_there(client_of(slow), 10.0)


async def test_one_that_was_away_is_found_within_a_second(client_of):
    async with answering() as port:
        client = client_of(port)
        assert await is_there(client, 2.0)
    away_s = time.monotonic() + 2.0
    while time.monotonic() < away_s:
        assert not await is_there(client, 1.0)
        await asyncio.sleep(0.05)
    async with answering(port):
        back_s = time.monotonic()
        async with asyncio.timeout(10):
            while not await is_there(client, 1.0):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert time.monotonic() - back_s < 1.0
