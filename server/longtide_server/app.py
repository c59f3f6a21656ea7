"""The composition root: the only place that builds the server's objects, starts them and stops them, in order."""

from __future__ import annotations

import asyncio
import fcntl
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import longtide_handlers
from longtide.v1 import (
    events_pb2,
    events_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from longtide_server.config import ServerConfig
from longtide_server.encoder import MODEL_NAME, CoalescingEncoder, Encoder, LocalEncoder, TorchServeEncoder
from longtide_server.errors import InvalidInput
from longtide_server.event_store.urls import open_store
from longtide_server.feedback import Feedback
from longtide_server.recommender import Recommender
from longtide_server.retention import keep_expiring
from longtide_server.service import EventService, RecommendationService, wall_clock_s
from longtide_server.snapshot import ENCODER, Snapshot, load_snapshot
from longtide_server.torchserve.archive import build_archive
from longtide_server.torchserve.client import TorchServeClient
from longtide_server.torchserve.config import TorchServeConfig
from longtide_server.torchserve.process import TorchServe
from longtide_server.user_service import UserService
from longtide_server.user_state import UserStates

HANDLER = Path(longtide_handlers.__file__).parent / "encoder_handler.py"
SERVICES = (
    events_pb2.DESCRIPTOR.services_by_name["EventService"].full_name,
    recommendation_pb2.DESCRIPTOR.services_by_name["RecommendationService"].full_name,
    users_pb2.DESCRIPTOR.services_by_name["UserService"].full_name,
)

log = structlog.get_logger(__name__)


@asynccontextmanager
async def running(config: ServerConfig) -> AsyncIterator[str]:
    """Run a server; yields its HOST:PORT once it answers. On the way out calls under way are finished first.

    SnapshotError when the snapshot cannot be served, Unavailable when a part does not start, InvalidInput when the
    address cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        snapshot = await asyncio.to_thread(load_snapshot, config.snapshot_dir)
        stack.enter_context(held(config.data_dir))
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.so_reuseport", 0),
                # The SDK pings idle streams once a minute; without this gRPC would end them for that.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
            ]
        )
        port = _bind(server, config.listen)  # fails now, and not after TorchServe has started
        store = await open_store(config.store_url)
        stack.push_async_callback(store.close)
        encoder = CoalescingEncoder(await _encoder(config, snapshot, stack), config.encoder_timeout_s)
        stack.push_async_callback(encoder.close)
        states = UserStates(snapshot, store, encoder, config.cached_users, config.encoder_timeout_s)
        stack.push_async_callback(states.close)
        if config.retention:
            expiring = asyncio.create_task(keep_expiring(store, config.retention, states.forget, wall_clock_s))
            stack.push_async_callback(_cancelled, expiring)
        events = EventService(states.write, wall_clock_s, config.retention)
        events_pb2_grpc.add_EventServiceServicer_to_server(events, server)
        feedback = Feedback(store, snapshot.snapshot_id, wall_clock_s)
        stack.push_async_callback(feedback.flush)
        stack.push_async_callback(_cancelled, asyncio.create_task(feedback.keep_flushing()))
        recommender = Recommender(snapshot, states, feedback.shown)
        recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(
            RecommendationService(recommender, config.default_timeout_s, wall_clock_s), server
        )
        users_pb2_grpc.add_UserServiceServicer_to_server(UserService(store, states, wall_clock_s), server)
        status = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        await server.start()
        stack.push_async_callback(server.stop, config.stop_grace_s)
        stack.push_async_callback(status.enter_graceful_shutdown)
        for name in ("", *SERVICES):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        address = f"{config.listen.rpartition(':')[0]}:{port}"
        log.info("serving", address=address, snapshot=snapshot.snapshot_id, encoder=config.encoder)
        try:
            yield address
        finally:
            log.info("stopping")


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Hold a data directory: two servers on one would tread on each other. InvalidInput when another holds it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("wb")
    except OSError as exc:
        raise InvalidInput.of("data_dir", f"{data_dir} cannot be used: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise InvalidInput.of("data_dir", f"{data_dir} is in use by another server") from exc
        yield


def check_listen(listen: str) -> None:
    """Whether an address can be listened on, without a server. InvalidInput when it cannot."""
    host, port = _host_and_port(listen)
    try:
        with socket.create_server((host.strip("[]"), port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as exc:
        raise InvalidInput.of("listen", f"{listen} cannot be listened on: {exc.strerror}") from exc


async def _encoder(config: ServerConfig, snapshot: Snapshot, stack: AsyncExitStack) -> Encoder:
    weights = snapshot.path / ENCODER
    if config.encoder == "local":
        return await asyncio.to_thread(LocalEncoder, weights)
    work_dir = config.data_dir / "torchserve"
    archive = work_dir / "encoder.mar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(
        build_archive, archive, model_name=MODEL_NAME, version="1.0", handler=HANDLER, weights=weights
    )
    grpc_inference, grpc_management, http_inference, http_management = config.torchserve_ports
    torchserve = TorchServe(
        TorchServeConfig(
            work_dir=work_dir,
            archive=archive,
            model_name=MODEL_NAME,
            workers=config.torchserve_workers,
            grpc_inference_port=grpc_inference,
            grpc_management_port=grpc_management,
            http_inference_port=http_inference,
            http_management_port=http_management,
        )
    )
    stack.push_async_callback(torchserve.stop)
    await torchserve.start()
    return TorchServeEncoder(TorchServeClient(torchserve.grpc_address))


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel until it is true: Python 3.11's `wait_for`, which redis-py uses, may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.5)


def _bind(server: grpc.aio.Server, listen: str) -> int:
    _host_and_port(listen)
    try:
        return server.add_insecure_port(listen)
    except RuntimeError as exc:
        raise InvalidInput.of("listen", f"{listen} cannot be listened on; is something else there?") from exc


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:  # gRPC would take it modulo 65,536
        raise InvalidInput.of("listen", f"{listen!r} is not HOST:PORT")
    return host, int(port)
