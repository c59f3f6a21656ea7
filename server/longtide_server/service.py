"""The gRPC servicers of events and recommendations: protobuf to domain and back, no logic."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import MappingProxyType

from longtide.v1 import events_pb2, events_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc
from longtide_server import requests
from longtide_server.errors import FieldViolation, InvalidInput, LongtideError
from longtide_server.event_store import Written
from longtide_server.events import MAX_ID_BYTES, Event, violation
from longtide_server.recommender import Query
from longtide_server.retention import Retention, too_old
from longtide_server.serving import Serving
from longtide_server.status import Context, answered, remaining_s, status_of

BATCHES_AT_ONCE = 8  # of a stream: one is read while others are written
ROWS_AT_ONCE = 32  # of a stream's message: together they hold the event loop for some tens of milliseconds


class EventService(events_pb2_grpc.EventServiceServicer):
    """Takes in events: durable first, then felt, then answered."""

    def __init__(
        self,
        write: Callable[[Sequence[Event]], Awaitable[Written]],
        clock: Callable[[], float],
        retention: Retention = MappingProxyType({}),
    ) -> None:
        self._write_good = write
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
            written, errors = await self._write(request.events)
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
        last, writing = 0, deque[asyncio.Task[events_pb2.StreamEventsResponse]]()
        reading: asyncio.Future[events_pb2.StreamEventsRequest | None] | None = _next(request_iterator)
        try:
            while reading is not None or writing:
                # With enough on its way nothing more is read: gRPC's flow control holds the client back.
                may_read = reading if len(writing) < BATCHES_AT_ONCE else None
                awaited = [future for future in (may_read, *list(writing)[:1]) if future is not None]
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if may_read is not None and may_read.done():
                    request = may_read.result()
                    reading = None if request is None else _next(request_iterator)
                    if request is not None:
                        writing.append(asyncio.create_task(self._write_batch(request, last)))
                        writing[-1].add_done_callback(_heard)
                        last = request.sequence_number
                if writing and writing[0].done():
                    yield await answered(context, lambda: _acknowledged(writing))
        finally:
            if reading is not None:
                reading.cancel()

    async def _write_batch(self, request: events_pb2.StreamEventsRequest, last: int) -> events_pb2.StreamEventsResponse:
        number = request.sequence_number
        if number <= last:
            raise InvalidInput.of("sequence_number", f"is {number}, after {last}")
        requests.check_batch(request.events)
        written, errors = await self._write(request.events)
        return events_pb2.StreamEventsResponse(
            acknowledged_sequence_number=number,
            written_count=written.new,
            duplicate_count=written.duplicates,
            errors=[events_pb2.StreamEventError(sequence_number=number, error=error) for error in errors],
        )

    async def _write(self, messages: Sequence[events_pb2.Event]) -> tuple[Written, list[events_pb2.EventError]]:
        now_s = self._clock()
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
        if not good:
            return Written(0, 0), errors
        return await self._write_good(good), errors


def _next(
    requests: AsyncIterator[events_pb2.StreamEventsRequest],
) -> asyncio.Future[events_pb2.StreamEventsRequest | None]:
    """The next message of a stream, or None at its end."""
    return asyncio.ensure_future(anext(requests, None))


async def _acknowledged(
    writing: deque[asyncio.Task[events_pb2.StreamEventsResponse]],
) -> events_pb2.StreamEventsResponse:
    """One answer for the first batch and those after it that are durable already."""
    response = await writing.popleft()
    while writing and writing[0].done() and writing[0].exception() is None:
        following = await writing.popleft()
        response.acknowledged_sequence_number = following.acknowledged_sequence_number
        response.written_count += following.written_count
        response.duplicate_count += following.duplicate_count
        response.errors.extend(following.errors)
    return response


def _heard(task: asyncio.Task[events_pb2.StreamEventsResponse]) -> None:
    """A batch that fails after its stream has ended is nobody's error; asyncio would report it as one."""
    if not task.cancelled():
        task.exception()


class RecommendationService(recommendation_pb2_grpc.RecommendationServiceServicer):
    """Answers from the snapshot that is served."""

    def __init__(self, current: Callable[[], Serving], default_timeout_s: float, clock: Callable[[], float]) -> None:
        """`current` gives the serving that a call uses from its beginning to its end."""
        self._current = current
        self._clock = clock
        self._default_timeout_s = default_timeout_s

    async def Recommend(
        self,
        request: recommendation_pb2.RecommendRequest,
        context: Context,
    ) -> recommendation_pb2.RecommendResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.RecommendResponse:
            query = requests.read_query(request, self._clock())
            with self._current() as serving:
                return await serving.responses.recommend(query, self._timeout_s(context))

        return await answered(context, answer)

    async def StreamRecommend(
        self,
        request_iterator: AsyncIterator[recommendation_pb2.StreamRecommendRequest],
        context: Context,
    ) -> AsyncIterator[recommendation_pb2.StreamRecommendResponse]:
        """See the contract."""
        async for message in request_iterator:

            async def answer(
                message: recommendation_pb2.StreamRecommendRequest = message,
            ) -> recommendation_pb2.StreamRecommendResponse:
                requests.check_rows(message)
                response = recommendation_pb2.StreamRecommendResponse()
                with self._current() as serving:
                    for at in range(0, len(message.requests), ROWS_AT_ONCE):
                        timeout_s = min(self._timeout_s(context), self._default_timeout_s)
                        rows = message.requests[at : at + ROWS_AT_ONCE]
                        results = (self._row(serving, row, timeout_s) for row in rows)
                        response.results.extend(await asyncio.gather(*results))
                        await asyncio.sleep(0)  # other callers have their turn
                return response

            yield await answered(context, answer)

    async def _row(
        self, serving: Serving, request: recommendation_pb2.RecommendRequest, timeout_s: float
    ) -> recommendation_pb2.RecommendResult:
        result = recommendation_pb2.RecommendResult(user_id=request.user_id, session_id=request.session_id)
        try:
            query: Query = requests.read_query(request, None)
            result.response.CopyFrom(await serving.responses.recommend(query, timeout_s))
        except LongtideError as exc:
            _, number = status_of(exc)
            violations = exc.violations if isinstance(exc, InvalidInput) else ()
            field = violations[0].field if violations else ""
            result.error.CopyFrom(recommendation_pb2.RequestError(code=number, field=field, reason=str(exc)))
        return result

    async def Rank(
        self,
        request: recommendation_pb2.RankRequest,
        context: Context,
    ) -> recommendation_pb2.RankResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.RankResponse:
            query = requests.read_rank_query(request, self._clock())
            with self._current() as serving:
                ranked, reason = await serving.recommender.rank(query, request.item_ids, self._timeout_s(context))
            return recommendation_pb2.RankResponse(
                items=[
                    recommendation_pb2.RankedItem(item_id=item.item_id, score=item.score, known=item.known)
                    for item in ranked
                ],
                snapshot_id=serving.snapshot.snapshot_id,
                degraded=bool(reason),
                degraded_reason=reason,
            )

        return await answered(context, answer)

    async def ListSimilarUsers(
        self,
        request: recommendation_pb2.ListSimilarUsersRequest,
        context: Context,
    ) -> recommendation_pb2.ListSimilarUsersResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.ListSimilarUsersResponse:
            owner, limit, least = requests.read_similar_users(request)
            with self._current() as serving:
                users, reason = await serving.recommender.similar_users(owner, limit, least, self._timeout_s(context))
            return recommendation_pb2.ListSimilarUsersResponse(
                users=[
                    recommendation_pb2.SimilarUser(
                        user_id=user.user_id, similarity=user.similarity, next_item_ids=user.next_item_ids
                    )
                    for user in users
                ],
                snapshot_id=serving.snapshot.snapshot_id,
                degraded=bool(reason),
                degraded_reason=reason,
            )

        return await answered(context, answer)

    def _timeout_s(self, context: Context) -> float:
        left = remaining_s(context)
        return self._default_timeout_s if left is None else left


def wall_clock_s() -> float:
    """Seconds since 1970."""
    return time.time()
