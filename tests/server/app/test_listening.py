"""The services, limits and port of a running server."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.network import network
from tests.server.app.calls import event, recommended, write

from longtide.v1 import (
    events_pb2,
    events_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from longtide_server.app import listening, running
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import EncoderUnavailable
from longtide_server.event_store.sqlite import SqliteEventStore

SERVICES = [f"longtide.v1.{name}Service" for name in ("Event", "Recommendation", "User", "Catalog", "Snapshot")]


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


async def test_a_call_without_a_deadline_to_a_store_that_hangs_ends(config, monkeypatch):
    async def page(self, *_):
        await asyncio.Event().wait()

    monkeypatch.setattr(SqliteEventStore, "page", page)
    async with running(config(default_timeout_s=0.2)) as address, grpc.aio.insecure_channel(address) as channel:
        asked = users_pb2.ListUserEventsRequest(owner=users_pb2.Owner(user_id="ann"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await users_pb2_grpc.UserServiceStub(channel).ListUserEvents(asked)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_call_without_a_deadline_is_answered_though_the_encoder_hangs(config, monkeypatch):
    """The deadline leaves time for an answer from what is left."""

    async def encode(self, batch, timeout_s):
        await asyncio.Event().wait()

    async with running(config(default_timeout_s=0.5)) as address, grpc.aio.insecure_channel(address) as channel:
        await write(channel, event("e1"))
        monkeypatch.setattr(LocalEncoder, "encode", encode)
        await write(channel, event("e2", item_id="b"))
        asked = recommendation_pb2.RecommendRequest(user_id="ann")
        answer = await recommendation_pb2_grpc.RecommendationServiceStub(channel).Recommend(asked)
        assert answer.degraded
        assert len(answer.recommendations) > 0


async def test_clients_that_vanished_without_a_word_lose_their_places(config, monkeypatch):
    monkeypatch.setattr(listening, "KEEPALIVE_MS", 500)
    monkeypatch.setattr(listening, "KEEPALIVE_TIMEOUT_MS", 500)
    async with running(config(max_calls=1)) as address:
        with network(address) as (way, silence):
            async with (
                grpc.aio.insecure_channel(way, options=[("grpc.use_local_subchannel_pool", 1)]) as vanishing,
                grpc.aio.insecure_channel(address) as channel,
            ):
                stream = events_pb2_grpc.EventServiceStub(vanishing).StreamEvents()
                await stream.write(events_pb2.StreamEventsRequest(sequence_number=1, events=[event("e1")]))
                await stream.read()
                silence()
                with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
                    await recommended(channel, "ann")
                async with asyncio.timeout(20.0):
                    while True:
                        try:
                            assert len(await recommended(channel, "ann")) == 11
                            break
                        except grpc.aio.AioRpcError as exc:
                            assert exc.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                            await asyncio.sleep(0.1)
