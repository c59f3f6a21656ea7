"""Load for a server: callers that ask as fast as they are answered, and requests that arrive whether or not they are.

Messages are made before and not read afterwards, so that what is measured is the server and gRPC, not the client.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

from longtide.v1 import events_pb2, recommendation_pb2

RECOMMEND = "/longtide.v1.RecommendationService/Recommend"
WRITE_EVENTS = "/longtide.v1.EventService/WriteEvents"
BARE = "/bare/Call"
DEADLINE_S = 10.0
DEGRADED = recommendation_pb2.RecommendResponse(degraded=True).SerializeToString()


@dataclass
class Load:
    """What became of some load."""

    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    degraded: int = 0

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.latency_ms) / self.seconds

    @property
    def in_full_per_s(self) -> float:
        """Answers a second that were not degraded."""
        return (len(self.latency_ms) - self.degraded) / self.seconds

    @property
    def p50_ms(self) -> float:
        """The median latency."""
        return statistics.median(self.latency_ms)

    def percentile_ms(self, percent: int) -> float:
        """The latency that so many percent do not exceed."""
        return statistics.quantiles(self.latency_ms, n=100)[percent - 1]


Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class Caller:
    """Raw calls over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.recommend: Call = channel.unary_unary(RECOMMEND)
        self.write_events: Call = channel.unary_unary(WRITE_EVENTS)
        self.bare: Call = channel.unary_unary(BARE)


@asynccontextmanager
async def caller(target: str) -> AsyncIterator[Caller]:
    """Raw calls to a server."""
    async with grpc.aio.insecure_channel(target) as channel:
        await channel.channel_ready()
        yield Caller(channel)


def recommend_request(user_id: str, limit: int = 10) -> bytes:
    """A request, as it is sent."""
    return recommendation_pb2.RecommendRequest(user_id=user_id, limit=limit).SerializeToString()


def event_request(user_id: str, item_id: str, event_id: str, time_s: float) -> bytes:
    """A request that writes one event, as it is sent."""
    event = events_pb2.Event(event_id=event_id, user_id=user_id, item_id=item_id, type=events_pb2.EVENT_TYPE_WATCH)
    event.event_time.FromNanoseconds(int(time_s * 1e9))
    return events_pb2.WriteEventsRequest(events=[event]).SerializeToString()


async def closed(ask: Callable[[], Awaitable[bytes]], callers: int, seconds: float) -> Load:
    """So many callers, each asking again as soon as it is answered."""
    load = Load()
    begun = time.perf_counter()
    end = begun + seconds

    async def one() -> None:
        while (sent := time.perf_counter()) < end:
            try:
                answer = await ask()
            except grpc.aio.AioRpcError as exc:
                load.failures.append(f"{exc.code().name}: {exc.details()} {exc.debug_error_string()}")
                continue
            load.latency_ms.append(1e3 * (time.perf_counter() - sent))
            load.degraded += is_degraded(answer)

    await asyncio.gather(*(one() for _ in range(callers)))
    load.seconds = time.perf_counter() - begun
    return load


async def offered(
    before: Callable[[int], Awaitable[object]],
    ask: Callable[[int], Awaitable[bytes]],
    per_s: float,
    seconds: float,
) -> Load:
    """Requests that arrive at a rate, evenly, however long the answers take.

    Of every second request, `before` comes first and the latency is from its end; of the others it is from the moment
    at which they were due, so that whoever is kept waiting is counted.
    """
    load = Load()
    begun = time.perf_counter()

    async def one(number: int, due: float) -> None:
        try:
            if number % 2:
                await before(number)
                due = time.perf_counter()
            answer = await ask(number)
        except grpc.aio.AioRpcError as exc:
            load.failures.append(f"{exc.code().name}: {exc.details()} {exc.debug_error_string()}")
            return
        load.latency_ms.append(1e3 * (time.perf_counter() - due))
        load.degraded += is_degraded(answer)

    tasks = set[asyncio.Task[None]]()
    for number in range(int(per_s * seconds)):
        due = begun + number / per_s
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    load.seconds = time.perf_counter() - begun
    return load


def is_degraded(answer: bytes) -> bool:
    """Whether an answer says that it is degraded; its text follows, so the flag is looked for and not parsed."""
    return DEGRADED in answer and recommendation_pb2.RecommendResponse.FromString(answer).degraded


def turns(values: Sequence[bytes], seed: int = 0) -> Callable[[], bytes]:
    """One of the values after the other, in a random order, for ever."""
    order = list(values)
    random.Random(seed).shuffle(order)
    at = -1

    def following() -> bytes:
        nonlocal at
        at = (at + 1) % len(order)
        return order[at]

    return following
