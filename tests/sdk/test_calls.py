"""What holds for every call: errors, retries, deadlines, readiness."""

import asyncio
import re
import threading
import time

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2
from tests.network import network

from longtide import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    Event,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    LongtideError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnknownError,
    _channel,
)
from longtide._channel import RETRIED_METHODS
from longtide._reconnect import Reconnect
from longtide.v1 import catalog_pb2, events_pb2, recommendation_pb2, snapshots_pb2, users_pb2


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.INVALID_ARGUMENT, InvalidArgumentError),
        (code_pb2.NOT_FOUND, NotFoundError),
        (code_pb2.FAILED_PRECONDITION, FailedPreconditionError),
        (code_pb2.UNAUTHENTICATED, UnauthenticatedError),
        (code_pb2.PERMISSION_DENIED, PermissionDeniedError),
        (code_pb2.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (code_pb2.DEADLINE_EXCEEDED, DeadlineExceededError),
        (code_pb2.INTERNAL, InternalError),
        (code_pb2.DATA_LOSS, UnknownError),
    ],
)
def test_each_status_has_its_error_and_is_not_retried(client, server, rich_status, code, kind):
    server.failures.append(rich_status(code, "in plain words"))
    with pytest.raises(LongtideError, match="in plain words") as caught:
        client.recommend("ada")
    assert type(caught.value) is kind
    assert caught.value.status.value[0] == code
    assert caught.value.message == "in plain words"
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert len(server.requests) == 1


def test_details_are_read(client, server, rich_status):
    server.failures.append(
        rich_status(
            code_pb2.RESOURCE_EXHAUSTED,
            "too many calls",
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
            error_details_pb2.ErrorInfo(reason="TOO_MANY_CALLS", domain="longtide"),
            error_details_pb2.Help(),  # of no use to the SDK
        )
    )
    with pytest.raises(ResourceExhaustedError) as caught:
        client.rank("ada", ["a"])
    assert (caught.value.retry_delay_s, caught.value.reason, caught.value.violations) == (1.5, "TOO_MANY_CALLS", ())


def test_violations_are_read(client, server, bad_request):
    server.failures.append(bad_request([("limit", "is 0; 1 to 1000 are allowed"), ("user_id", "must not be empty")]))
    with pytest.raises(InvalidArgumentError) as caught:
        client.similar_users("", limit=0)
    assert caught.value.violations == (
        FieldViolation("limit", "is 0; 1 to 1000 are allowed"),
        FieldViolation("user_id", "must not be empty"),
    )


def test_a_write_refused_for_another_reason_than_its_events_fails_as_such(client, server, bad_request):
    server.failures.append(bad_request([("events", "at most 10000 are allowed")]))
    with pytest.raises(InvalidArgumentError) as caught:
        client.write_events([Event("ada", "book")])
    assert type(caught.value) is InvalidArgumentError


@pytest.mark.parametrize("code", [code_pb2.UNAVAILABLE, code_pb2.CANCELLED])
def test_what_a_server_that_starts_or_ends_says_is_retried(client, server, rich_status, code):
    server.failures.extend([rich_status(code, "starting")] * 3)
    assert len(client.recommend("ada")) == 10
    assert len(server.requests) == 4


def test_retries_end(client, server, rich_status):
    server.failures.extend([rich_status(code_pb2.UNAVAILABLE, "starting")] * 5)
    with pytest.raises(UnavailableError, match="starting"):
        client.recommend("ada")
    assert len(server.requests) == 4


def test_a_call_that_the_server_dropped_says_unavailable(client, server, rich_status):
    server.failures.extend([rich_status(code_pb2.CANCELLED, "")] * 5)
    with pytest.raises(UnavailableError, match=r"CANCELLED|dropped") as caught:
        client.recommend("ada")
    assert caught.value.status == grpc.StatusCode.CANCELLED


def test_a_large_write_is_retried_too(client, server, rich_status):
    server.failures.append(rich_status(code_pb2.UNAVAILABLE, "starting"))
    assert client.write_events([Event("ada", "book", session_id="x" * 3_000_000)]).written_count == 1
    assert len(server.requests) == 2


def test_a_connection_that_has_gone_silent_is_given_up_for_another(connect, server, monkeypatch):
    monkeypatch.setattr(_channel, "_KEEPALIVE_MS", 500)
    monkeypatch.setattr(_channel, "_KEEPALIVE_TIMEOUT_MS", 500)
    with network(f"127.0.0.1:{server.port}") as (target, silence), connect(target, timeout=20.0) as client:
        client.recommend("ada")
        silence()
        assert len(client.recommend("ada")) == 10


def test_every_unary_call_but_an_activation_and_a_deletion_is_retried_and_no_stream():
    services = [
        *events_pb2.DESCRIPTOR.services_by_name.values(),
        *recommendation_pb2.DESCRIPTOR.services_by_name.values(),
        *users_pb2.DESCRIPTOR.services_by_name.values(),
        *catalog_pb2.DESCRIPTOR.services_by_name.values(),
        *snapshots_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    unary = {
        service.full_name: {m.name for m in service.methods if not (m.client_streaming or m.server_streaming)}
        for service in services
    }
    unary["longtide.v1.SnapshotService"].remove("ActivateSnapshot")
    unary["longtide.v1.UserService"].remove("DeleteUserData")
    assert {service: set(methods) for service, methods in RETRIED_METHODS.items()} == unary


def test_a_call_has_the_clients_timeout_or_its_own(connect, server):
    server.holding = True
    with connect(server.target, timeout=0.2) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.recommend("ada")
        assert 0.15 < time.monotonic() - started < 2
        with pytest.raises(DeadlineExceededError):
            client.recommend("ada", timeout=0.6)
        assert time.monotonic() - started > 0.75


def test_metadata_goes_with_every_call(connect, server):
    with connect(server.target, metadata=[("authorization", "Bearer x")]) as client:
        for call in (
            lambda: client.recommend("ada"),
            lambda: client.write_events([Event("ada", "book")]),
            lambda: client.stream_events([Event("ada", "book")]),
            lambda: list(client.recommend_many(["ada"])),
        ):
            server.metadata = {}
            call()
            assert server.metadata["authorization"] == "Bearer x"
            assert server.metadata["user-agent"].startswith("longtide-python/")


EVERY_KIND_OF_CALL = {
    "unary": lambda client: client.recommend("ada", timeout=20.0),
    "write": lambda client: client.write_events([Event("ada", "book")], timeout=20.0),
    "stream of events": lambda client: client.stream_events([Event("ada", "book")], timeout=20.0),
    "stream of rows": lambda client: list(client.recommend_many(["ada"])),
    "export": lambda client: client.export_user_data("ada", timeout=20.0),
    "pages": lambda client: list(client.list_items(timeout=20.0)),
    "health": lambda client: client.wait_ready(20.0),
}


@pytest.mark.parametrize("call", EVERY_KIND_OF_CALL.values(), ids=EVERY_KIND_OF_CALL)
def test_a_call_on_a_closed_client_says_so(connect, server, call):
    with connect(server.target) as client:
        client.close()
        with pytest.raises(UnknownError, match="the client was closed") as caught:
            call(client)
    assert caught.value.status == grpc.StatusCode.CANCELLED
    assert server.requests == []


@pytest.mark.parametrize("kind", [kind for kind in EVERY_KIND_OF_CALL if kind != "health"])
def test_a_call_that_is_cut_off_by_the_closing_of_its_client_says_so(server, kind):
    server.holding = True
    with Client(server.target) as client:
        threading.Timer(0.3, client.close).start()
        with pytest.raises(UnknownError, match="the client was closed"):
            EVERY_KIND_OF_CALL[kind](client)
    assert len(server.requests) == 1


async def test_no_task_is_cancelled_by_the_closing_of_a_client(server):
    """A task group would take it for the wish of whoever cancelled the task, and lose the work without a word."""
    server.holding, server.together = True, threading.Barrier(7)
    client = AsyncClient(server.target, timeout=20.0)

    async def listed(iterator):
        return [one async for one in iterator]

    under_way = [
        asyncio.create_task(call)
        for call in (
            client.recommend("ada"),
            client.write_events([Event("ada", "book")]),
            client.stream_events([Event("ada", "book")]),
            listed(client.recommend_many(["ada"])),
            client.export_user_data("ada"),
            listed(client.list_items()),
        )
    ]
    await asyncio.to_thread(server.together.wait, 10)
    await client.close()
    for outcome in await asyncio.gather(*under_way, return_exceptions=True):
        assert (type(outcome), str(outcome)) == (UnknownError, "the client was closed")


async def test_a_task_that_is_cancelled_stays_so_while_its_client_closes(server):
    server.holding, server.together = True, threading.Barrier(2)
    client = AsyncClient(server.target, timeout=20.0)
    call = asyncio.create_task(client.recommend("ada"))
    await asyncio.to_thread(server.together.wait, 10)
    call.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize(
    ("key", "value", "error", "what"),
    [
        ("Authorization", "Bearer x", ValueError, "'Authorization' may only hold a-z, 0-9, -, _ and ."),
        ("", "x", ValueError, "'' may only hold"),
        ("two words", "x", ValueError, "'two words' may only hold"),
        ("key", "secr\u00e9t", ValueError, "the value of 'key' must be printable ASCII; for bytes, name it 'key-bin'"),
        ("key", "secret\n", ValueError, "the value of 'key' must be printable ASCII"),
        ("key", 7, TypeError, "the value of 'key' must be a str or bytes, not int"),
        ("key-bin", "secret", TypeError, "the value of 'key-bin' must be bytes, not str"),
        (7, "x", TypeError, "7 must be a str, not int"),
    ],
)
def test_metadata_that_grpc_cannot_send_is_refused_at_once(connect, key, value, error, what):
    with pytest.raises(error, match=re.escape(f"metadata: {what}")) as caught:
        connect("127.0.0.1:1", metadata=[(key, value)])
    assert "secr" not in str(caught.value)  # it may be one


def test_metadata_may_be_bytes(connect, server):
    with connect(server.target, metadata=[("trace-bin", b"\x00\xff"), ("x.y_z-1", b"plain")]) as client:
        client.recommend("ada")
    assert (server.metadata["trace-bin"], server.metadata["x.y_z-1"]) == (b"\x00\xff", "plain")


def test_credentials_make_the_connection_secure(connect, server):
    # The server speaks no TLS, so a client that does cannot reach it.
    secure = grpc.ssl_channel_credentials()
    with connect(server.target, credentials=secure) as client, pytest.raises(UnavailableError):
        client.recommend("ada")
    assert server.requests == []


def test_a_ready_server_is_ready(client):
    assert client.wait_ready(timeout=5) is None


def test_waiting_ends_when_the_server_becomes_ready(client, server):
    server.serving(False)
    threading.Timer(0.3, server.serving, [True]).start()
    started = time.monotonic()
    client.wait_ready(timeout=10)
    assert 0.2 < time.monotonic() - started < 5


def test_waiting_covers_a_server_that_does_not_listen_yet(client, server):
    server.stop()
    threading.Timer(0.3, server.start).start()
    client.wait_ready(timeout=10)
    assert len(client.recommend("ada")) == 10


def test_waiting_in_vain_tells_the_last_reason(client, server):
    server.serving(False)
    with pytest.raises(UnavailableError, match=r"not ready within 0\.3 s: the server says NOT_SERVING"):
        client.wait_ready(timeout=0.3)


def test_a_server_without_health_check_is_not_waited_for(client, server):
    server.health.enter_graceful_shutdown()
    server.health._server_status.clear()  # an unknown service: NOT_FOUND
    started = time.monotonic()
    with pytest.raises(NotFoundError):
        client.wait_ready(timeout=30)
    assert time.monotonic() - started < 5


def test_an_async_client_outside_a_loop_says_so():
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient("127.0.0.1:1")


def test_reconnecting_doubles_its_delay_until_there_is_progress():
    lost = UnavailableError("gone")
    reconnect = Reconnect(60.0)
    for longest in (0.05, 0.1, 0.2, 0.4):
        assert longest / 2 <= reconnect.delay_s(lost, progress=0, now_s=100.0) <= longest
    assert reconnect.delay_s(lost, progress=1, now_s=100.0) <= 0.05


def test_reconnecting_gives_up_without_progress():
    lost = UnavailableError("gone")
    reconnect = Reconnect(10.0)
    reconnect.delay_s(lost, progress=5, now_s=100.0)
    reconnect.delay_s(lost, progress=5, now_s=109.0)
    reconnect.delay_s(lost, progress=6, now_s=200.0)
    with pytest.raises(UnavailableError, match="gone"):
        reconnect.delay_s(lost, progress=6, now_s=210.0)
