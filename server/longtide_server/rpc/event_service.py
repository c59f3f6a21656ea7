"""The gRPC servicer of events: protobuf to domain and back, no logic."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from longtide.v1 import events_pb2, events_pb2_grpc
from longtide_server.errors import FieldViolation, InvalidInput
from longtide_server.event_store import Written
from longtide_server.event_store.backlog import MAX_WAITING_EVENTS, Backlog
from longtide_server.events import MAX_ID_BYTES, Event, violation
from longtide_server.observer import NOBODY, Observer
from longtide_server.rpc import requests
from longtide_server.rpc.status import Context, answered, remaining_s
from longtide_server.rpc.streams import MAX_ANSWER_BYTES, in_order
from longtide_server.turns import Turns
from longtide_server.users.retention import Retention, too_old

BATCHES_AT_ONCE = 8  # of a stream: one is read while others are written


class EventService(events_pb2_grpc.EventServiceServicer):
    """Takes in events: durable first, then felt, then answered."""

    def __init__(
        self,
        write: Callable[[Sequence[Event]], Awaitable[Written]],
        clock: Callable[[], float],
        retention: Retention = MappingProxyType({}),
        observer: Observer = NOBODY,
    ) -> None:
        self._write_good = write
        self._observer = observer
        self._clock = clock
        self._retention = retention
        # Not larger than the store's own, so that the store refuses nothing that has found room here.
        self._backlog = Backlog(MAX_WAITING_EVENTS, "events")

    async def WriteEvents(
        self,
        request: events_pb2.WriteEventsRequest,
        context: Context,
    ) -> events_pb2.WriteEventsResponse:
        """See the contract."""

        async def answer() -> events_pb2.WriteEventsResponse:
            remaining_s(context)
            requests.check_batch(request.events)
            good, errors = await self._read(request.events)
            self._backlog.enter(len(good))
            written = await self._ended(self._begun(good), errors)
            if len(errors) == len(request.events):
                raise InvalidInput(
                    f"none of the {len(errors)} events can be written",
                    tuple(FieldViolation(f"events[{error.index}].{error.field}", error.reason) for error in errors),
                )
            return events_pb2.WriteEventsResponse(
                written_count=written.new, duplicate_count=written.duplicates, errors=errors
            )

        return await answered(context, answer)

    async def StreamEvents(
        self,
        request_iterator: AsyncIterator[events_pb2.StreamEventsRequest],
        context: Context,
    ) -> AsyncIterator[events_pb2.StreamEventsResponse]:
        """See the contract."""
        last, begun = 0, asyncio.Semaphore(0)

        async def one_by_one() -> AsyncIterator[events_pb2.StreamEventsRequest]:
            """Nothing more is read while a batch waits for room, so a stream never holds two that wait."""
            async for request in request_iterator:
                yield request
                await begun.acquire()

        def write(request: events_pb2.StreamEventsRequest) -> Coroutine[Any, Any, events_pb2.StreamEventsResponse]:
            nonlocal last
            before, last = last, request.sequence_number
            return self._write_batch(request, before, begun)

        async for writing in in_order(one_by_one(), write, BATCHES_AT_ONCE):
            yield await answered(context, partial(_acknowledged, writing))

    async def _write_batch(
        self, request: events_pb2.StreamEventsRequest, last: int, begun: asyncio.Semaphore
    ) -> events_pb2.StreamEventsResponse:
        """`begun` is told when the batch is on its way. Before, no other of its stream is read."""
        number = request.sequence_number
        try:
            if number <= last:
                raise InvalidInput.of("sequence_number", f"is {number}, after {last}")
            requests.check_batch(request.events)
            good, errors = await self._read(request.events)
            await self._backlog.enter_in_turn(len(good))
            writing = self._begun(good)
        finally:
            begun.release()
        written = await self._ended(writing, errors)
        return events_pb2.StreamEventsResponse(
            acknowledged_sequence_number=number,
            written_count=written.new,
            duplicate_count=written.duplicates,
            errors=[events_pb2.StreamEventError(sequence_number=number, error=error) for error in errors],
        )

    def _begun(self, good: Sequence[Event]) -> asyncio.Task[Written]:
        """Events of the backlog on their way into the log; when they are written they leave it."""

        async def write() -> Written:
            try:
                return await self._write_good(good) if good else Written(0, 0)
            finally:
                self._backlog.leave(len(good))

        return asyncio.create_task(write())

    async def _ended(self, writing: asyncio.Task[Written], errors: Sequence[events_pb2.EventError]) -> Written:
        # Shielded: what is on its way stays in the backlog until it is written, though its caller gives up.
        written = await asyncio.shield(writing)
        await self._observe(written, len(errors))
        return written

    async def _read(self, messages: Sequence[events_pb2.Event]) -> tuple[list[Event], list[events_pb2.EventError]]:
        """The good events, and what is wrong with the others; of many, with turns for other callers in between."""
        now_s, turns = self._clock(), Turns()
        good, errors = [], []
        for index, message in enumerate(messages):
            event = requests.read_event(message)
            wrong = violation(event, now_s) or too_old(event, self._retention, now_s)
            if wrong is None:
                good.append(event)
            else:
                errors.append(
                    events_pb2.EventError(
                        index=index, event_id=message.event_id[:MAX_ID_BYTES], field=wrong.field, reason=wrong.reason
                    )
                )
            await turns.pause()
        return good, errors

    async def _observe(self, written: Written, refused: int) -> None:
        now_s, turns = self._clock(), Turns()
        self._observer.events(written.new, written.duplicates, refused, ())
        for appended in written.appended.values():
            self._observer.events(0, 0, 0, (now_s - event.time_s for event in appended.events))
            await turns.pause()


async def _acknowledged(
    writing: deque[asyncio.Task[events_pb2.StreamEventsResponse]],
) -> events_pb2.StreamEventsResponse:
    """One answer for the first batch and those after it that are durable already, as far as a plain client takes it."""
    response = await writing.popleft()
    size = response.ByteSize()
    while writing and writing[0].done() and writing[0].exception() is None:
        following = writing[0].result()
        size += following.ByteSize()
        if size > MAX_ANSWER_BYTES:
            break
        writing.popleft()
        response.acknowledged_sequence_number = following.acknowledged_sequence_number
        response.written_count += following.written_count
        response.duplicate_count += following.duplicate_count
        response.errors.extend(following.errors)
    return response
