"""The asynchronous client: the same calls as the synchronous one, on an asyncio loop."""

# ruff: noqa: ASYNC109 - a timeout is part of every call of the SDK; gRPC sends it to the server as a deadline.

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from longtide import _convert
from longtide._answers import Behavior, Interests, Ranking, Recommendations, SimilarItems, SimilarUsers
from longtide._async_stream import AsyncStream
from longtide._batches import (
    MAX_BATCH_EVENTS,
    MAX_BATCH_ITEMS,
    ROWS_PER_MESSAGE,
    Batch,
    async_batches,
    checked_batch_size,
)
from longtide._channel import (
    ACTIVATION_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
    HEALTH_CHECK_METHOD,
    ROWS_TIMEOUT_S,
    channel_options,
    checked_metadata,
)
from longtide._errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    LongtideError,
    ResourceExhaustedError,
    UnavailableError,
    client_closed,
    error_from_rpc,
    stream_error_from_rpc,
)
from longtide._filters import ItemFilter
from longtide._health import POLL_S, attempt_s, not_ready, require_serving
from longtide._item_tally import ItemTally
from longtide._items import Item, UpsertResult
from longtide._ledger import Ledger, Tally
from longtide._reconnect import Reconnect, worth_a_retry
from longtide._rows import Rows
from longtide._types import DeletedData, Event, SnapshotInfo, WriteResult
from longtide.internal.v1 import standard_pb2
from longtide.v1 import catalog_pb2, events_pb2, snapshots_pb2, users_pb2
from longtide.v1.catalog_pb2_grpc import CatalogServiceStub
from longtide.v1.events_pb2_grpc import EventServiceStub
from longtide.v1.recommendation_pb2_grpc import RecommendationServiceStub
from longtide.v1.snapshots_pb2_grpc import SnapshotServiceStub
from longtide.v1.users_pb2_grpc import UserServiceStub

Q = TypeVar("Q")
R = TypeVar("R")


class AsyncClient:
    """A connection to a Longtide server. Use one per event loop, from any number of tasks, and close it at the end.

        async with AsyncClient("127.0.0.1:50051") as client:
            await client.write_events([Event("ada", "book-1", "purchase")])
            for item in await client.recommend("ada", limit=5):
                print(item.item_id, item.score)

    Every call has a timeout in seconds: its own, or the client's. Three wait for what takes longer than an answer and
    do not have the client's: `recommend_many` (60 s a message, since all other calls go first), `activate_snapshot`
    (300 s) and `wait_ready` (30 s).

    Unary calls are tried up to 4 times while the server is UNAVAILABLE, or gRPC drops the call (CANCELLED), within that
    timeout, but for `activate_snapshot` and `delete_user_data`; what is counted in an answer is then the last try's.
    Of streams, `stream_events` alone tries again. Every call raises LongtideError or one of its kinds; once the client
    is closed, and where closing it cuts a call off, UnknownError with the status CANCELLED.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Connect to `target`, for example `127.0.0.1:50051`, in the background; call it inside a running event loop.

        Without `credentials` the connection is not encrypted. `metadata` goes with every call; TypeError or
        ValueError when gRPC cannot send it: keys are in small letters.
        """
        # gRPC would bind the channel to some other loop without a word.
        asyncio.get_running_loop()
        self._metadata = checked_metadata(metadata)
        options = channel_options()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options)
        self._closed = False
        self._timeout_s = timeout
        self._events = EventServiceStub(self._channel)
        self._recommendations = RecommendationServiceStub(self._channel)
        self._users = UserServiceStub(self._channel)
        self._catalog = CatalogServiceStub(self._channel)
        self._snapshots = SnapshotServiceStub(self._channel)
        self._check_health: grpc.aio.UnaryUnaryMultiCallable[
            standard_pb2.HealthCheckRequest, standard_pb2.HealthCheckResponse
        ] = self._channel.unary_unary(
            HEALTH_CHECK_METHOD,
            request_serializer=standard_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=standard_pb2.HealthCheckResponse.FromString,
        )

    async def write_events(
        self, events: Iterable[Event] | AsyncIterable[Event], *, timeout: float | None = None
    ) -> WriteResult:
        """Write events; they are durable, and part of the next recommendation, when this returns.

        Any number of events goes in messages of at most 10,000; `timeout` is for each message. When the server
        refuses some events, the others are written all the same and InvalidEventsError says which were refused, by
        their index in `events`. After any other error, write the same Event objects again: those already written
        count as duplicates.
        """
        tally = Tally()
        async for batch in async_batches(events, _convert.event_message, MAX_BATCH_EVENTS):
            await self._write(batch, tally, timeout)
        return tally.result()

    async def stream_events(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        batch_size: int = 500,
        *,
        timeout: float | None = None,
        reconnect_timeout: float = 60.0,
    ) -> WriteResult:
        """Write a long or endless stream of events, read as fast as the server takes them and kept in bounded memory.

        Events go in batches of `batch_size` (1 to 10,000); one waits until its batch is full or `events` ends. At
        most 64 batches, or 16 MB, are on their way without an acknowledgement. `timeout` is for each acknowledgement,
        not for the whole stream. When the server becomes UNAVAILABLE, or has too much to do, the stream connects again
        and sends the unacknowledged batches again, until `reconnect_timeout` seconds pass without any acknowledgement.
        No event is lost or written twice, but events of a batch whose acknowledgement was lost count as duplicates.
        While `events` is silent, the stream looks at nothing else: use `write_events` for what trickles in.

        Refused events are reported at the end, as by `write_events`; only the first 1,000 in detail, all in the count.
        """
        source = async_batches(events, _convert.event_message, checked_batch_size(batch_size))
        ledger = Ledger()
        reconnect = Reconnect(reconnect_timeout)
        while lost := await self._stream_batches(source, ledger, self._limit_s(timeout)):
            delay_s = reconnect.delay_s(lost, ledger.acknowledged, time.monotonic())
            await asyncio.sleep(delay_s)
        return ledger.result()

    async def recommend(
        self,
        user_id: str = "",
        limit: int = 10,
        exclude_item_ids: Iterable[str] = (),
        min_similarity: float | None = None,
        session_items: Iterable[str] = (),
        *,
        filter: ItemFilter | None = None,
        include_item_ids: Iterable[str] | None = None,
        source_weights: Mapping[str, float] | None = None,
        interests: ItemFilter | None = None,
        include_seen: bool = False,
        session_id: str = "",
        surface: str = "",
        request_time: datetime | float | None = None,
        timeout: float | None = None,
    ) -> Recommendations:
        """Recommend items to one user, best first; an unknown user gets popular items.

        `limit` is 1 to 1,000. `min_similarity` (-1 to 1) is how similar a user must be to count, by default what the
        snapshot says. `session_items` are items just viewed that were not written as events, oldest first.
        `request_time` is when the user sees the answer, by default now. Where there is no user, `session_id` names the
        anonymous session that asks. `surface` says where the answer will be shown, for `longtide report`.

        Only items that pass `filter`, for example `Category("Beauty") & Price(max=20)`, and, where there are
        `include_item_ids` (10,000 at most), only those may appear. The answer is shorter than `limit` only when fewer
        items may appear.

        `source_weights` says how much sources count (0 to 10), for example `{"trending": 0.5, "neighbors": 0}`; the
        others count as the snapshot has learned. `interests` is the kind of items that somebody new says they like,
        for example `Category("Beauty") | Tags("vegan")`.

        With `include_seen`, what the user has had may appear once more, each item as likely as the log says of what was
        had so often and so long ago; never what they disliked.
        """
        request = _convert.recommend_request(
            user_id,
            limit,
            exclude_item_ids,
            min_similarity,
            session_items,
            request_time,
            session_id,
            surface,
            filter,
            include_item_ids,
            source_weights,
            interests,
            include_seen,
        )
        return _convert.recommendations(user_id, await self._call(self._recommendations.Recommend, request, timeout))

    def recommend_many(
        self,
        user_ids: Iterable[str] | AsyncIterable[str],
        limit: int = 10,
        min_similarity: float | None = None,
        *,
        filter: ItemFilter | None = None,
        include_item_ids: Iterable[str] | None = None,
        source_weights: Mapping[str, float] | None = None,
        include_seen: bool = False,
        surface: str = "",
        request_time: datetime | float | None = None,
        timeout: float = ROWS_TIMEOUT_S,
    ) -> AsyncGenerator[Recommendations, None]:
        """Recommend items to many users, in the order of `user_ids`, which may be endless.

        Memory is constant: `user_ids` is read at most 576 users ahead of the answers, 64 go in a message. `timeout`
        is for each message; all other calls go first, so the server takes its time. `filter`, `include_item_ids`,
        `source_weights` and `include_seen` are as in `recommend`, for every user. `request_time` is when the users will
        see the answers, by default not known. A user that the server refuses has the reason in the row's `error`.
        Closing the iterator cancels the call: to leave it early, wrap it in `contextlib.aclosing`.

        An error of the connection ends the iteration: go on with the users that were not answered.
        """
        if isinstance(user_ids, str):
            raise TypeError(f"user_ids must be an iterable of str, not one str: {user_ids!r}")
        request = _convert.row_request(
            limit, min_similarity, request_time, surface, filter, include_item_ids, source_weights, include_seen
        )
        return self._recommend_rows(user_ids, request, timeout)

    async def rank(
        self,
        user_id: str,
        item_ids: Iterable[str],
        session_items: Iterable[str] = (),
        *,
        session_id: str = "",
        request_time: datetime | float | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """Order 1 to 10,000 given items for one user, best first; items unknown to the snapshot come last.

        `request_time` is when the user sees them, by default now. `user_id` may be empty where `session_id` is not.
        """
        request = _convert.rank_request(user_id, item_ids, session_items, request_time, session_id)
        return _convert.ranking(user_id, await self._call(self._recommendations.Rank, request, timeout))

    async def similar_items(
        self,
        item_id: str,
        limit: int = 10,
        basis: str | None = None,
        *,
        filter: ItemFilter | None = None,
        exclude_item_ids: Iterable[str] = (),
        timeout: float | None = None,
    ) -> SimilarItems:
        """List the items that are like an item, most similar first; NotFoundError when the item is unknown.

        `basis` is `"behavior"`, `"content"` or `"both"`, by default as much as the server's snapshot knows. A snapshot
        that has learned from no content answers by behaviour, whatever was asked for: the answer's `basis` says so.
        """
        request = _convert.similar_items_request(item_id, limit, basis, filter, exclude_item_ids)
        return _convert.similar_items(
            item_id, await self._call(self._recommendations.ListSimilarItems, request, timeout)
        )

    async def similar_users(
        self,
        user_id: str = "",
        limit: int = 10,
        min_similarity: float | None = None,
        *,
        session_id: str = "",
        timeout: float | None = None,
    ) -> SimilarUsers:
        """List the users who were, at some moment, most like this user is now, most similar first."""
        request = _convert.similar_users_request(user_id, limit, min_similarity, session_id)
        return _convert.similar_users(
            user_id, await self._call(self._recommendations.ListSimilarUsers, request, timeout)
        )

    async def predict_behavior(
        self,
        user_id: str = "",
        item_ids: Iterable[str] = (),
        session_items: Iterable[str] = (),
        *,
        session_id: str = "",
        timeout: float | None = None,
    ) -> Behavior:
        """Foresee what a user does next: the type of their next event, and the values they would give to items.

        `item_ids` (at most 10,000) are those of which the values are asked. FailedPreconditionError where the server's
        snapshot has learned from neither types of events nor values.
        """
        request = _convert.behavior_request(user_id, item_ids, session_items, session_id)
        return _convert.behavior(user_id, await self._call(self._recommendations.PredictBehavior, request, timeout))

    async def get_interests(
        self, user_id: str = "", limit: int = 10, *, session_id: str = "", timeout: float | None = None
    ) -> Interests:
        """What a user is interested in, at all times and lately, by categories, tags, brands and domains of items.

        `limit` is 1 to 1,000 interests of each length.
        """
        request = _convert.interests_request(user_id, limit, session_id)
        return _convert.interests(user_id, await self._call(self._recommendations.GetInterests, request, timeout))

    async def list_user_events(
        self, user_id: str = "", *, session_id: str = "", page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[Event]:
        """The events of a user, or of an anonymous session, the newest first, read page by page as they are used.

        `page_size` is 1 to 1,000; `timeout` is for each page. The `event_id`s are those they were written with.
        """
        owner, token = _convert.owner(user_id, session_id), ""
        while True:
            request = _convert.user_events_request(owner, page_size, token)
            page = await self._call(self._users.ListUserEvents, request, timeout)
            for event in _convert.events(page.events):
                yield event
            token = page.next_page_token
            if not token:
                return

    async def merge_users(
        self, user_id: str, *, session_id: str = "", source_user_id: str = "", timeout: float | None = None
    ) -> int:
        """Make the history of an anonymous session, or of a made-up user, part of a known user's, once and for ever.

        Returns how many events moved. What comes later under the old name is the user's too. FailedPreconditionError
        when the history belongs to another user already.
        """
        request = _convert.merge_request(source_user_id, session_id, user_id)
        return (await self._call(self._users.MergeUsers, request, timeout)).moved_count

    async def export_user_data(
        self, user_id: str = "", *, session_id: str = "", timeout: float | None = None
    ) -> list[Event]:
        """Everything that is kept of a user, or of an anonymous session, by time. `timeout` is for all of it."""
        request = users_pb2.ExportUserDataRequest(owner=_convert.owner(user_id, session_id))
        with self._raising(stream_error_from_rpc):
            call = self._users.ExportUserData(request, timeout=self._limit_s(timeout), metadata=self._metadata)
            return [event async for piece in call for event in _convert.events(piece.events)]

    async def delete_user_data(
        self, user_id: str = "", *, session_id: str = "", timeout: float | None = None
    ) -> DeletedData:
        """Delete everything that is kept of a user, or of an anonymous session.

        Events that happened before and arrive later are not taken any more, and count as duplicates. After an error,
        the deletion may have happened: another one deletes what was done since, too.
        """
        request = users_pb2.DeleteUserDataRequest(owner=_convert.owner(user_id, session_id))
        return _convert.deleted_data(await self._call(self._users.DeleteUserData, request, timeout))

    async def upsert_items(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        fields: Iterable[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> UpsertResult:
        """Write items, new or known; they are durable, and count at the next recommendation, when this returns.

        `fields` names the fields of Item to change, for example `["price", "available"]`; of an item that is new, the
        others stay empty. By default every field is replaced. Any number of items goes in messages of at most 1,000;
        `timeout` is for each message. When the server refuses some items, the others are written all the same, and
        `errors` of the result says which were refused and why. After an error that is raised, write the same items
        again: to write an item twice changes nothing.
        """
        tally, mask = ItemTally(), _convert.field_mask(fields)
        async for batch in async_batches(items, _convert.item_message, MAX_BATCH_ITEMS):
            request = catalog_pb2.UpsertItemsRequest(items=batch.messages, update_mask=mask)
            try:
                tally.add(batch, await self._call(self._catalog.UpsertItems, request, timeout))
            except InvalidArgumentError as exc:
                tally.refuse_all(batch, exc)
        return tally.result()

    async def get_item(self, item_id: str, *, timeout: float | None = None) -> Item:
        """One item. NotFoundError when it was never written, or was deleted."""
        request = _convert.item_request(item_id)
        return _convert.item((await self._call(self._catalog.GetItem, request, timeout)).item)

    async def list_items(
        self, filter: ItemFilter | None = None, *, page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[Item]:
        """Every item, or every one that passes a filter, by ascending id (in the order of its bytes).

        They are read page by page as they are used.

        `page_size` is 1 to 1,000; `timeout` is for each page.
        """
        token = ""
        while True:
            request = _convert.items_request(page_size, token, filter)
            page = await self._call(self._catalog.ListItems, request, timeout)
            for message in page.items:
                yield _convert.item(message)
            token = page.next_page_token
            if not token:
                return

    async def delete_items(self, item_ids: Iterable[str], *, timeout: float | None = None) -> int:
        """Delete items: they are not recommended any more. Returns how many of them there were.

        An id that the catalogue does not know is noted all the same: its item is not recommended either. Any number of
        ids goes in messages of 5,000; `timeout` is for each message.
        """
        deleted = 0
        for request in _convert.delete_items_requests(item_ids):
            deleted += (await self._call(self._catalog.DeleteItems, request, timeout)).deleted_count
        return deleted

    async def list_snapshots(self, *, timeout: float | None = None) -> list[SnapshotInfo]:
        """Everything that the server can serve, the newest first."""
        request = snapshots_pb2.ListSnapshotsRequest()
        response = await self._call(self._snapshots.ListSnapshots, request, timeout)
        return [_convert.snapshot_info(snapshot) for snapshot in response.snapshots]

    async def get_snapshot(self, snapshot_id: str, *, timeout: float | None = None) -> SnapshotInfo:
        """What a snapshot is. NotFoundError when the server does not have it."""
        request = _convert.snapshot_request(snapshot_id)
        response = await self._call(self._snapshots.GetSnapshot, request, timeout)
        return _convert.snapshot_info(response.snapshot)

    async def activate_snapshot(self, snapshot_id: str, *, timeout: float = ACTIVATION_TIMEOUT_S) -> SnapshotInfo:
        """Have the server serve another snapshot, older ones included; returns once it does.

        No request is lost meanwhile, and no answer mixes two snapshots. When the timeout passes, the activation goes
        on: `list_snapshots` says how it ended. It is not tried again by itself; to do so is safe, since a snapshot that
        is served already stays.

        NotFoundError when the server does not have the snapshot, FailedPreconditionError while it activates another
        one, InvalidArgumentError when the snapshot is damaged or its answers are not fit to be served,
        UnavailableError when its encoder does not start or something else kept it from being judged. The old snapshot
        is served on then.
        """
        request = _convert.activate_request(snapshot_id)
        response = await self._call(self._snapshots.ActivateSnapshot, request, timeout)
        return _convert.snapshot_info(response.snapshot)

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server says that it is ready.

        Raises UnavailableError or DeadlineExceededError with the last reason when it is not ready in time.
        """
        give_up_s = time.monotonic() + timeout
        while True:
            try:
                return await self._require_serving(attempt_s(give_up_s - time.monotonic()))
            except (UnavailableError, DeadlineExceededError) as exc:
                if time.monotonic() + POLL_S > give_up_s:
                    raise not_ready(exc, timeout) from exc
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """Close the connection and cancel the calls that are still running: see the class."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @contextmanager
    def _raising(self, error: Callable[[grpc.RpcError, bool], LongtideError]) -> Iterator[None]:
        """Has what gRPC raises leave as an error of the tree."""
        try:
            yield
        except grpc.RpcError as exc:
            raise error(exc, self._closed) from exc
        except grpc.aio.UsageError as exc:
            if not self._closed:
                raise
            raise client_closed() from exc
        except asyncio.CancelledError as exc:
            # gRPC cancels what the closing of its channel cuts off. A task that nobody has cancelled must not end as if
            # somebody had: a task group would take that for a wish, and its work would be lost without a word.
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling():
                raise
            raise client_closed() from exc

    def _limit_s(self, timeout: float | None) -> float:
        return self._timeout_s if timeout is None else timeout

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, timeout: float | None) -> R:
        with self._raising(error_from_rpc):
            return await method(request, timeout=self._limit_s(timeout), metadata=self._metadata)

    def _stream(self, method: grpc.aio.StreamStreamMultiCallable[Q, R]) -> AsyncStream[Q, R]:
        with self._raising(stream_error_from_rpc):
            return AsyncStream(method, self._metadata, lambda: self._closed)

    async def _write(self, batch: Batch[events_pb2.Event], tally: Tally, timeout: float | None) -> None:
        request = events_pb2.WriteEventsRequest(events=batch.messages)
        try:
            tally.add(batch, await self._call(self._events.WriteEvents, request, timeout))
        except InvalidArgumentError as exc:
            tally.refuse_all(batch, exc)

    async def _stream_batches(
        self, source: AsyncIterator[Batch[events_pb2.Event]], ledger: Ledger, timeout_s: float
    ) -> LongtideError | None:
        """Streams until everything is acknowledged, or until the server is lost or has too much to do: returns why."""
        async with self._stream(self._events.StreamEvents) as stream:
            for request in ledger.unacknowledged():
                await stream.send(request)
            while True:
                if not ledger.must_wait(stream.ready()) and (batch := await anext(source, None)):
                    await stream.send(ledger.send(batch))
                elif not ledger.in_flight:
                    await stream.finish()
                    return None
                else:
                    # Only around the answer: an UnavailableError of the caller's own iterable is not ours to hide.
                    try:
                        answer = await stream.receive(timeout_s)
                    except (UnavailableError, ResourceExhaustedError) as exc:
                        if worth_a_retry(exc):
                            return exc
                        raise
                    ledger.acknowledge(answer)

    async def _recommend_rows(
        self, user_ids: Iterable[str] | AsyncIterable[str], request: _convert.RowRequest, timeout_s: float
    ) -> AsyncGenerator[Recommendations, None]:
        source = async_batches(user_ids, request, ROWS_PER_MESSAGE)
        rows = Rows()
        async with self._stream(self._recommendations.StreamRecommend) as stream:
            while True:
                if not rows.must_wait(stream.ready()) and (batch := await anext(source, None)):
                    await stream.send(rows.send(batch))
                elif rows.in_flight:
                    for row in rows.receive(await stream.receive(timeout_s)):
                        yield row
                else:
                    break
            await stream.finish()

    async def _require_serving(self, timeout_s: float) -> None:
        require_serving(await self._call(self._check_health, standard_pb2.HealthCheckRequest(), timeout_s))
