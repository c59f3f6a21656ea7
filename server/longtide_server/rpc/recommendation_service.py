"""The gRPC servicer of recommendations: protobuf to domain and back, no logic."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from longtide.v1 import recommendation_pb2, recommendation_pb2_grpc
from longtide_server.answers import Query
from longtide_server.errors import FieldViolation, InvalidInput, LongtideError
from longtide_server.interest_profile import Interest
from longtide_server.observer import NOBODY, Observer
from longtide_server.rpc import requests
from longtide_server.rpc.status import Context, answered, remaining_s, status_of
from longtide_server.rpc.streams import in_order
from longtide_server.serving.serving import Serving

MESSAGES_AT_ONCE = 4  # of a stream of rows: the next ones' users are read and encoded while these are answered
ROWS_AHEAD = 128  # of a message are encoded while one is answered
ROWS_ENCODING = 1_024  # of all streams: fewer than may wait for the encoder, which has other callers too
ROW_PATIENCE = 6  # a row may take so many times as long as a call: nobody looks at a screen and waits


def _row_query(row: recommendation_pb2.RecommendRequest) -> Query:
    return replace(requests.read_query(row, None), patient=True)


async def _nothing() -> None:
    """Catch up with nobody."""


class RecommendationService(recommendation_pb2_grpc.RecommendationServiceServicer):
    """Answers from the snapshot that is served."""

    def __init__(
        self,
        current: Callable[[], Serving],
        default_timeout_s: float,
        clock: Callable[[], float],
        observer: Observer = NOBODY,
        catch_up: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        """`current` gives the serving that a call uses from its beginning to its end.

        `catch_up` is awaited before anything is looked up in it: what others have changed counts.
        """
        self._catch_up = catch_up
        self._observer = observer
        self._current = current
        self._clock = clock
        self._default_timeout_s = default_timeout_s
        self._encoding = asyncio.Semaphore(ROWS_ENCODING)

    async def Recommend(
        self,
        request: recommendation_pb2.RecommendRequest,
        context: Context,
    ) -> recommendation_pb2.RecommendResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.RecommendResponse:
            query = requests.read_query(request, self._clock())
            await self._catch_up()
            with self._current() as serving:
                return await serving.responses.recommend(query, self._timeout_s(context))

        return await answered(context, answer)

    async def StreamRecommend(
        self,
        request_iterator: AsyncIterator[recommendation_pb2.StreamRecommendRequest],
        context: Context,
    ) -> AsyncIterator[recommendation_pb2.StreamRecommendResponse]:
        """See the contract."""

        def answer(
            message: recommendation_pb2.StreamRecommendRequest,
        ) -> Coroutine[Any, Any, recommendation_pb2.StreamRecommendResponse]:
            left, most = remaining_s(context), ROW_PATIENCE * self._default_timeout_s
            return self._rows(message, most if left is None else min(left, most))

        async for answering in in_order(request_iterator, answer, MESSAGES_AT_ONCE):
            yield await answered(context, answering.popleft)

    async def _rows(
        self, message: recommendation_pb2.StreamRecommendRequest, timeout_s: float
    ) -> recommendation_pb2.StreamRecommendResponse:
        """The results of a message: users are encoded some rows ahead, many in one call, and answered one by one."""
        requests.check_rows(message)
        response = recommendation_pb2.StreamRecommendResponse()
        await self._catch_up()
        encoding, ahead = iter(message.requests), deque[asyncio.Task[recommendation_pb2.RecommendResult | None]]()
        with self._current() as serving:
            try:
                for row in message.requests:
                    for later in itertools.islice(encoding, ROWS_AHEAD - len(ahead)):
                        ahead.append(asyncio.create_task(self._prepared(serving, later, timeout_s)))
                    result = await ahead.popleft()
                    response.results.append(result or await self._row(serving, row, timeout_s))
                    await asyncio.sleep(0)  # other callers have their turn
            finally:
                for task in ahead:
                    task.cancel()
        failed = sum(result.HasField("error") for result in response.results)
        self._observer.rows(len(response.results) - failed, failed)
        return response

    async def _prepared(
        self, serving: Serving, row: recommendation_pb2.RecommendRequest, timeout_s: float
    ) -> recommendation_pb2.RecommendResult | None:
        """Have a row's user encoded. Where the encoding is of this row alone, its result."""
        async with self._encoding:
            if row.session_item_ids:
                return await self._row(serving, row, timeout_s)
            with suppress(LongtideError):  # the row's own turn finds out, and says so
                await serving.recommender.prepare(_row_query(row), timeout_s)
            return None

    async def _row(
        self, serving: Serving, request: recommendation_pb2.RecommendRequest, timeout_s: float
    ) -> recommendation_pb2.RecommendResult:
        result = recommendation_pb2.RecommendResult(user_id=request.user_id, session_id=request.session_id)
        try:
            query = _row_query(request)
            result.response.CopyFrom(await serving.responses.recommend(query, timeout_s))
        except LongtideError as exc:
            _, number = status_of(exc)
            violations = exc.violations if isinstance(exc, InvalidInput) else ()
            wrong = violations[0] if violations else FieldViolation("", str(exc))
            result.error.CopyFrom(recommendation_pb2.RequestError(code=number, field=wrong.field, reason=wrong.reason))
        return result

    async def Rank(
        self,
        request: recommendation_pb2.RankRequest,
        context: Context,
    ) -> recommendation_pb2.RankResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.RankResponse:
            query = requests.read_rank_query(request, self._clock())
            await self._catch_up()
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

    async def ListSimilarItems(
        self,
        request: recommendation_pb2.ListSimilarItemsRequest,
        context: Context,
    ) -> recommendation_pb2.ListSimilarItemsResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.ListSimilarItemsResponse:
            query = requests.read_similar_items(request)
            remaining_s(context)
            await self._catch_up()
            with self._current() as serving:
                found = await serving.finder.find(query)
            return recommendation_pb2.ListSimilarItemsResponse(
                items=[
                    recommendation_pb2.SimilarItem(item_id=item.item_id, title=item.title, similarity=item.similarity)
                    for item in found.items
                ],
                snapshot_id=serving.snapshot.snapshot_id,
                basis=int(found.basis),  # type: ignore[arg-type]
                degraded=bool(found.degraded_reason),
                degraded_reason=found.degraded_reason,
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

    async def PredictBehavior(
        self,
        request: recommendation_pb2.PredictBehaviorRequest,
        context: Context,
    ) -> recommendation_pb2.PredictBehaviorResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.PredictBehaviorResponse:
            query = requests.read_behavior_query(request)
            with self._current() as serving:
                found = await serving.recommender.behavior(query, request.item_ids, self._timeout_s(context))
            return recommendation_pb2.PredictBehaviorResponse(
                types=[
                    recommendation_pb2.TypeProbability(type=int(kind), probability=probability)  # type: ignore[arg-type]
                    for kind, probability in found.types
                ],
                values=[recommendation_pb2.PredictedValue(item_id=item, value=value) for item, value in found.values],
                snapshot_id=serving.snapshot.snapshot_id,
                degraded=bool(found.degraded_reason),
                degraded_reason=found.degraded_reason,
            )

        return await answered(context, answer)

    async def GetInterests(
        self,
        request: recommendation_pb2.GetInterestsRequest,
        context: Context,
    ) -> recommendation_pb2.GetInterestsResponse:
        """See the contract."""

        async def answer() -> recommendation_pb2.GetInterestsResponse:
            owner, limit = requests.read_interests(request)
            await self._catch_up()
            with self._current() as serving:
                found = await serving.recommender.interests(owner, limit, self._timeout_s(context))
            return recommendation_pb2.GetInterestsResponse(
                long_term=map(_interest, found.long_term),
                short_term=map(_interest, found.short_term),
                snapshot_id=serving.snapshot.snapshot_id,
                degraded=bool(found.degraded_reason),
                degraded_reason=found.degraded_reason,
            )

        return await answered(context, answer)

    def _timeout_s(self, context: Context) -> float:
        left = remaining_s(context)
        return self._default_timeout_s if left is None else left


def _interest(interest: Interest) -> recommendation_pb2.Interest:
    message = recommendation_pb2.Interest(share=interest.share)
    match interest.word:
        case "category", tuple(path):
            message.category.names.extend(path)
        case "tag", str(name):
            message.tag = name
        case "brand", str(name):
            message.brand = name
        case "domain", str(name):
            message.domain = name
    return message
