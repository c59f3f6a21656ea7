"""Calls that bring no deadline, to a server that never answers by itself."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from longtide_server.app.listening import CATALOG, EVENTS, PATIENT, RECOMMENDATIONS, SNAPSHOTS, USERS
from longtide_server.rpc.deadlines import limited

LIMIT_S = 0.1
UNARY = [
    method
    for service in (EVENTS, RECOMMENDATIONS, USERS, CATALOG, SNAPSHOTS)
    for method in service.methods
    if not (method.client_streaming or method.server_streaming)
]


class Silent:
    """Never answers."""

    def __getattr__(self, name):
        async def handler(request, context):
            await asyncio.Event().wait()

        return handler


class Defective:
    """Gives up a wait of its own, and tells nobody why."""

    def __getattr__(self, name):
        async def handler(request, context):
            raise TimeoutError

        return handler


@asynccontextmanager
async def calling(method, servicer=Silent):
    """The method of a servicer, a silent one, as a client calls it."""
    servicer = limited(servicer(), method.containing_service, LIMIT_S, but=PATIENT)
    request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    handler = grpc.unary_unary_rpc_method_handler(
        getattr(servicer, method.name), request.FromString, answer.SerializeToString
    )
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service = method.containing_service.full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method.name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{service}/{method.name}", request.SerializeToString, answer.FromString)
        yield lambda **options: call(request(), **options)
    await server.stop(None)


@pytest.mark.parametrize("method", [one for one in UNARY if one.name not in PATIENT], ids=lambda one: one.name)
async def test_every_call_ends_at_the_servers_deadline(method):
    async with calling(method) as call, asyncio.timeout(10.0):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details() == "there was no answer within 0.1 s, the server's own deadline"


async def test_a_deadline_of_the_callers_counts_instead():
    async with calling(UNARY[0]) as call:
        with pytest.raises(grpc.aio.AioRpcError, match="Deadline Exceeded"):
            await call(timeout=5 * LIMIT_S)


@pytest.mark.parametrize("name", PATIENT)
async def test_what_takes_as_long_as_it_takes_has_none(name):
    (method,) = (one for one in UNARY if one.name == name)
    async with calling(method) as call:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5 * LIMIT_S):
                await call()


async def test_a_timeout_of_the_handlers_own_is_not_called_the_servers_deadline():
    async with calling(UNARY[0], Defective) as call:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call()
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
