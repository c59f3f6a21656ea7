"""The gRPC servicer of what is kept of a person: lists, joins, exports and deletes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from google.protobuf.timestamp_pb2 import Timestamp

from longtide.v1 import events_pb2, users_pb2, users_pb2_grpc
from longtide_server.errors import InvalidInput
from longtide_server.event_store import EventStore
from longtide_server.events import Event, id_violation, owner_key
from longtide_server.rpc import requests
from longtide_server.rpc.status import Context, answered, remaining_s
from longtide_server.users.history_writer import HistoryWriter

EVENTS_A_MESSAGE = 1_000


class UserService(users_pb2_grpc.UserServiceServicer):
    """Reads the event log, and changes it so that it is felt."""

    def __init__(self, store: EventStore, writer: HistoryWriter, clock: Callable[[], float]) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    async def ListUserEvents(
        self, request: users_pb2.ListUserEventsRequest, context: Context
    ) -> users_pb2.ListUserEventsResponse:
        """See the contract."""

        async def answer() -> users_pb2.ListUserEventsResponse:
            remaining_s(context)
            owner = requests.read_owner("owner", request.owner)
            size, before = requests.read_page(request)
            page = await self._store.page(owner, size + 1, before)
            return users_pb2.ListUserEventsResponse(
                events=[write_event(event) for _, event in page[:size]],
                next_page_token=requests.page_token(page[size - 1][0]) if len(page) > size else "",
            )

        return await answered(context, answer)

    async def MergeUsers(self, request: users_pb2.MergeUsersRequest, context: Context) -> users_pb2.MergeUsersResponse:
        """See the contract."""

        async def answer() -> users_pb2.MergeUsersResponse:
            remaining_s(context)
            source = requests.read_owner("source", request.source)
            requests.raise_for([id_violation("user_id", request.user_id)])
            target = owner_key(request.user_id, "")
            if source == target:
                raise InvalidInput.of("user_id", "is the source itself")
            merged = await self._writer.merge(source, target)
            return users_pb2.MergeUsersResponse(moved_count=merged.events)

        return await answered(context, answer)

    async def ExportUserData(
        self, request: users_pb2.ExportUserDataRequest, context: Context
    ) -> AsyncIterator[users_pb2.ExportUserDataResponse]:
        """See the contract."""

        async def answer() -> list[Event]:
            remaining_s(context)
            history = await self._store.history(requests.read_owner("owner", request.owner))
            return list(history.events)

        events = await answered(context, answer)
        for at in range(0, len(events), EVENTS_A_MESSAGE):
            piece = events[at : at + EVENTS_A_MESSAGE]
            yield users_pb2.ExportUserDataResponse(events=[write_event(event) for event in piece])

    async def DeleteUserData(
        self, request: users_pb2.DeleteUserDataRequest, context: Context
    ) -> users_pb2.DeleteUserDataResponse:
        """See the contract."""

        async def answer() -> users_pb2.DeleteUserDataResponse:
            remaining_s(context)
            owner = requests.read_owner("owner", request.owner)
            deleted = await self._writer.delete(owner, self._clock())
            return users_pb2.DeleteUserDataResponse(
                deleted_count=deleted.events, deleted_time=_timestamp(deleted.until_s)
            )

        return await answered(context, answer)


def write_event(event: Event) -> events_pb2.Event:
    """An event as a message; the reverse of `requests.read_event`."""
    return events_pb2.Event(
        event_id=event.event_id,
        user_id=event.user_id,
        item_id=event.item_id,
        type=event.type,  # type: ignore[arg-type]
        custom_type=event.custom_type,
        event_time=_timestamp(event.time_s),
        value=event.value,
        session_id=event.session_id,
        attribution_token=event.attribution_token,
    )


def _timestamp(time_s: float) -> Timestamp:
    message = Timestamp()
    message.FromMicroseconds(round(time_s * 1e6))
    return message
