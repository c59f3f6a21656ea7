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

    async def WriteEvents(
        self,
        request: events_pb2.WriteEventsRequest,
        context: Context,
    ) -> events_pb2.WriteEventsResponse:
        """See the contract."""

        async def answer() -> events_pb2.WriteEventsResponse:
            remaining_s(context)
            requests.check_batch(request.events)
            written, errors = await self._write(request.events, asyncio.Lock())
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
        last, reading = 0, asyncio.Lock()

        def write(request: events_pb2.StreamEventsRequest) -> Coroutine[Any, Any, events_pb2.StreamEventsResponse]:
            nonlocal last
            before, last = last, request.sequence_number
            return self._write_batch(request, before, reading)

        async for writing in in_order(request_iterator, write, BATCHES_AT_ONCE):
            yield await answered(context, partial(_acknowledged, writing))

    async def _write_batch(
        self, request: events_pb2.StreamEventsRequest, last: int, reading: asyncio.Lock
    ) -> events_pb2.StreamEventsResponse:
        number = request.sequence_number
        if number <= last:
            raise InvalidInput.of("sequence_number", f"is {number}, after {last}")
        requests.check_batch(request.events)
        written, errors = await self._write(request.events, reading)
        return events_pb2.StreamEventsResponse(
            acknowledged_sequence_number=number,
            written_count=written.new,
            duplicate_count=written.duplicates,
            errors=[events_pb2.StreamEventError(sequence_number=number, error=error) for error in errors],
        )

    async def _write(
        self, messages: Sequence[events_pb2.Event], reading: asyncio.Lock
    ) -> tuple[Written, list[events_pb2.EventError]]:
        """`reading`: of batches that are to be written in the order in which their reading began."""
        async with reading:
            good, errors = await self._read(messages)
            writing = asyncio.ensure_future(self._write_good(good)) if good else None
        written = Written(0, 0) if writing is None else await writing
        await self._observe(written, len(errors))
        return written, errors

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
