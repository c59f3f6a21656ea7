"""What a person can see, join, take along and have deleted, through a real gRPC server over a real log."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import pytest

from longtide.v1 import users_pb2, users_pb2_grpc
from longtide_server.errors import Unavailable
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import Event, EventType
from longtide_server.rpc.user_service import UserService
from longtide_server.users.history_writer import HistoryWriter
from longtide_server.users.user_states import UserStates

NOW_S = 1_700_000_000.0
ANN = users_pb2.Owner(user_id="ann")
SESSION = users_pb2.Owner(session_id="s")


@asynccontextmanager
async def serving(service):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    users_pb2_grpc.add_UserServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield users_pb2_grpc.UserServiceStub(channel)
    await server.stop(None)


@pytest.fixture
async def users(world, tmp_path):
    """The service over a log in a file, and the states that are kept of it."""
    store = SqliteEventStore(tmp_path / "events.db")
    states = UserStates(world.snapshot, store, world.coalescing, 10)
    writer = HistoryWriter(store)
    writer.add(states)
    async with serving(UserService(store, writer, lambda: NOW_S)) as stub:
        yield SimpleNamespace(stub=stub, store=store, states=states, writer=writer)
    await store.close()


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_events_are_listed_from_the_newest_in_pages(users, event):
    await users.writer.write([event(f"e{n}", time_s=float(n)) for n in range(5)])
    pages, token = [], ""
    while True:
        request = users_pb2.ListUserEventsRequest(owner=ANN, page_size=2, page_token=token)
        page = await users.stub.ListUserEvents(request)
        pages.append([one.event_id for one in page.events])
        token = page.next_page_token
        if not token:
            break
    assert pages == [["e4", "e3"], ["e2", "e1"], ["e0"]]


async def test_a_full_last_page_has_no_next_one(users, event):
    await users.writer.write([event("e0"), event("e1")])
    page = await users.stub.ListUserEvents(users_pb2.ListUserEventsRequest(owner=ANN, page_size=2))
    assert (len(page.events), page.next_page_token) == (2, "")
    nobody = await users.stub.ListUserEvents(users_pb2.ListUserEventsRequest(owner=SESSION))
    assert (len(nobody.events), nobody.next_page_token) == (0, "")


async def test_everything_is_exported_as_it_was_written(users, event, monkeypatch):
    monkeypatch.setattr("longtide_server.rpc.user_service.EVENTS_A_MESSAGE", 2)
    full = Event("e2", "ann", "b", EventType.CUSTOM, 2.5, -0.5, "bookmarked", "s1", "t1")
    await users.writer.write([event("e3", time_s=3.0), full, event("e1", time_s=1.0)])
    pieces = [piece async for piece in users.stub.ExportUserData(users_pb2.ExportUserDataRequest(owner=ANN))]
    assert [len(piece.events) for piece in pieces] == [2, 1]
    found = [one for piece in pieces for one in piece.events]
    assert [one.event_id for one in found] == ["e1", "e2", "e3"]
    one = found[1]
    assert (one.user_id, one.item_id, one.type, one.value) == ("ann", "b", 12, -0.5)
    assert (one.custom_type, one.session_id, one.attribution_token) == ("bookmarked", "s1", "t1")
    assert one.event_time.ToMilliseconds() == 2_500
    assert not found[0].HasField("value")


async def test_a_merge_is_felt_at_once_and_by_either_name(users, event):
    await users.writer.write([event("e1", "a", 1.0), event("s1", "b", 2.0, "", session_id="s")])
    assert (await users.states.get("user:ann")).items.tolist() == [1]
    assert (await users.states.get("session:s")).items.tolist() == [2]
    request = users_pb2.MergeUsersRequest(source=SESSION, user_id="ann")
    assert (await users.stub.MergeUsers(request)).moved_count == 1
    assert (await users.stub.MergeUsers(request)).moved_count == 0
    assert (await users.states.get("user:ann")).items.tolist() == [1, 2]
    await users.writer.write([event("s2", "c", 3.0, "", session_id="s")])
    assert (await users.states.get("user:ann")).items.tolist() == [1, 2, 3]
    assert (await users.states.get("session:s")).items.tolist() == [1, 2, 3]


async def test_a_history_of_somebody_else_is_not_merged(users, event):
    await users.writer.write([event("s1", user_id="", session_id="s")])
    await users.stub.MergeUsers(users_pb2.MergeUsersRequest(source=SESSION, user_id="ann"))
    code, reason = await code_of(users.stub.MergeUsers(users_pb2.MergeUsersRequest(source=SESSION, user_id="bob")))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "the source was merged into another user before")


async def test_a_deletion_is_felt_at_once_and_keeps_late_duplicates_out(users, event):
    sent = [event("e1", "a", 1.0), event("e2", "b", 2.0)]
    await users.writer.write(sent)
    assert (await users.states.get("user:ann")).items.tolist() == [1, 2]
    answer = await users.stub.DeleteUserData(users_pb2.DeleteUserDataRequest(owner=ANN))
    assert (answer.deleted_count, answer.deleted_time.seconds) == (2, NOW_S)
    assert (await users.states.get("user:ann")).items.tolist() == []
    written = await users.writer.write(sent)
    assert (written.new, written.duplicates) == (0, 2)
    assert (await users.states.get("user:ann")).items.tolist() == []
    assert (await users.stub.DeleteUserData(users_pb2.DeleteUserDataRequest(owner=ANN))).deleted_count == 0
    await users.writer.write([event("e3", "c", NOW_S + 1)])
    assert (await users.states.get("user:ann")).items.tolist() == [3]


async def test_a_name_stands_alone_after_a_deletion(users, event):
    await users.writer.write([event("s1", "a", 1.0, "", session_id="s"), event("e1", "b", 2.0)])
    await users.writer.merge("session:s", "user:ann")
    assert (await users.states.get("session:s")).items.tolist() == [1, 2]
    await users.writer.delete("user:ann", NOW_S)
    await users.writer.write([event("s2", "c", NOW_S + 1, "", session_id="s")])
    assert (await users.states.get("session:s")).items.tolist() == [3]
    await users.writer.write([event("e2", "d", NOW_S + 1)])
    assert (await users.states.get("session:s")).items.tolist() == [3]
    assert (await users.states.get("user:ann")).items.tolist() == [4]


async def test_a_deletion_by_another_name_is_felt_by_that_of_the_owner(users, event):
    await users.store.write([event("s1", "a", 1.0, "", session_id="s"), event("e1", "b", 2.0)])
    await users.store.merge("session:s", "user:ann")
    assert (await users.states.get("user:ann")).items.tolist() == [1, 2]
    await users.writer.delete("session:s", NOW_S)
    assert (await users.states.get("user:ann")).items.tolist() == []


async def test_a_merge_into_another_name_is_felt_by_the_owner(users, event):
    await users.writer.write([event("e1", "a", 1.0), event("t1", "c", 3.0, "", session_id="t")])
    await users.writer.merge("user:guest", "user:ann")
    assert (await users.states.get("user:ann")).items.tolist() == [1]
    await users.writer.merge("session:t", "user:guest")
    assert (await users.states.get("user:ann")).items.tolist() == [1, 3]


@pytest.mark.parametrize("call", ["merge", "delete"])
async def test_what_a_caller_gave_up_on_is_felt_all_the_same(users, event, call):
    await users.writer.write([event("e1", "a", 1.0), event("s1", "b", 2.0, "", session_id="s")])
    assert (await users.states.get("user:ann")).items.tolist() == [1]
    change = users.writer.delete("user:ann", NOW_S) if call == "delete" else users.writer.merge("session:s", "user:ann")
    task = asyncio.create_task(change)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await users.store.write([])  # behind it in the writer's queue
    await asyncio.sleep(0.05)
    assert (await users.states.get("user:ann")).items.tolist() == ([] if call == "delete" else [1, 2])


async def test_a_change_that_failed_is_looked_up(users, event, monkeypatch):
    await users.writer.write([event("e1", "a", 1.0)])
    await users.states.get("user:ann")
    delete = users.store.delete

    async def fails_after_all(owner, now_s):
        await delete(owner, now_s)
        raise Unavailable("the answer was lost")

    monkeypatch.setattr(users.store, "delete", fails_after_all)
    with pytest.raises(Unavailable):
        await users.writer.delete("user:ann", NOW_S)
    assert (await users.states.get("user:ann")).items.tolist() == []


@pytest.mark.parametrize(
    ("call", "request_", "reason"),
    [
        ("ListUserEvents", users_pb2.ListUserEventsRequest(), "owner: must name a user_id or a session_id"),
        ("DeleteUserData", users_pb2.DeleteUserDataRequest(), "owner: must name a user_id or a session_id"),
        ("MergeUsers", users_pb2.MergeUsersRequest(user_id="ann"), "source: must name a user_id or a session_id"),
        ("MergeUsers", users_pb2.MergeUsersRequest(source=SESSION), "user_id: must not be empty"),
        ("MergeUsers", users_pb2.MergeUsersRequest(source=ANN, user_id="ann"), "user_id: is the source itself"),
        ("ListUserEvents", users_pb2.ListUserEventsRequest(owner=ANN, page_token="x"), "page_token: is not one"),
    ],
)
async def test_what_is_wrong_is_named(users, call, request_, reason):
    code, details = await code_of(getattr(users.stub, call)(request_))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(reason)


async def test_an_export_of_nobody_is_refused(users):
    with pytest.raises(grpc.aio.AioRpcError, match="must name a user_id or a session_id"):
        [piece async for piece in users.stub.ExportUserData(users_pb2.ExportUserDataRequest())]


async def test_a_log_that_cannot_be_read_is_unavailable(users):
    await users.store.close()
    code, details = await code_of(users.stub.DeleteUserData(users_pb2.DeleteUserDataRequest(owner=ANN)))
    assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "the event store is closing")
