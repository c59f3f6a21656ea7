"""The gRPC server: its services, its limits and its port."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from longtide.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from longtide_server.app.addresses import host_and_port
from longtide_server.app.background import cancelled
from longtide_server.app.parts import Parts
from longtide_server.config import ServerConfig
from longtide_server.errors import InvalidInput
from longtide_server.rpc.catalog_service import CatalogService
from longtide_server.rpc.deadlines import limited
from longtide_server.rpc.event_service import EventService
from longtide_server.rpc.health import keep_probing
from longtide_server.rpc.recommendation_service import RecommendationService
from longtide_server.rpc.snapshot_service import Snapshots, SnapshotService
from longtide_server.rpc.user_service import UserService

CONNECTION_AGE_MS = 300_000
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
EVENTS = events_pb2.DESCRIPTOR.services_by_name["EventService"]
RECOMMENDATIONS = recommendation_pb2.DESCRIPTOR.services_by_name["RecommendationService"]
USERS = users_pb2.DESCRIPTOR.services_by_name["UserService"]
SNAPSHOTS = snapshots_pb2.DESCRIPTOR.services_by_name["SnapshotService"]
CATALOG = catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"]
SERVICES = tuple(service.full_name for service in (EVENTS, RECOMMENDATIONS, USERS, CATALOG, SNAPSHOTS))
PATIENT = ("ActivateSnapshot",)
"""Calls that take as long as they take."""
STORE_SERVICES = (EVENTS.full_name, USERS.full_name, CATALOG.full_name)
"""Those that can do nothing without the event store. Recommendations are answered from memory then."""


def new_server(config: ServerConfig, *, one_of_several: bool) -> grpc.aio.Server:
    """A gRPC server without services yet, on no port."""
    # Connections are spread over workers as they are made; a worker that is started again would get none of the old.
    # Those that are as old as this are made anew, between two calls; streams go on to their end.
    spread = [("grpc.max_connection_age_ms", CONNECTION_AGE_MS)] if one_of_several else []
    return grpc.aio.server(
        maximum_concurrent_rpcs=config.max_calls,
        options=[
            # gRPC drops some of the calls that arrive while so many wait to be taken up, and all at twice as many.
            # A longer queue would have every call answered late, or after its caller has gone.
            ("grpc.server.max_pending_requests", config.max_waiting_calls),
            ("grpc.server.max_pending_requests_hard_limit", 2 * config.max_waiting_calls),
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.so_reuseport", int(one_of_several)),
            # The SDK pings idle streams once a minute; without this gRPC would end them for that.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
            # A client that vanished without a word would keep the places of its streams for two hours.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            *spread,
        ],
    )


def bind(server: grpc.aio.Server, listen: str) -> int:
    """Have the server listen on an address; on which port. InvalidInput when it cannot."""
    host_and_port(listen, "listen")
    try:
        return server.add_insecure_port(listen)
    except RuntimeError as exc:
        raise InvalidInput.of("listen", f"{listen} cannot be listened on; is something else there?") from exc


async def start(
    server: grpc.aio.Server, config: ServerConfig, parts: Parts, snapshots: Snapshots, stack: AsyncExitStack
) -> None:
    """Answer calls from now on, on the port that the server is bound to, and say SERVING."""
    store, writer, servings = parts.store, parts.writer, parts.servings
    observer, calls, limit_s = parts.watching.observer, parts.watching.calls, config.default_timeout_s
    events = EventService(writer.write, time.time, config.retention, observer)
    recommendations = RecommendationService(
        lambda: servings.current, limit_s, time.time, observer, parts.catalog.catch_up
    )
    users = UserService(store, writer, time.time)
    catalogs = CatalogService(parts.items, parts.catalog, time.time)
    snapshot_service = SnapshotService(snapshots)
    for servicer, service in (
        (events, EVENTS),
        (recommendations, RECOMMENDATIONS),
        (users, USERS),
        (catalogs, CATALOG),
        (snapshot_service, SNAPSHOTS),
    ):
        calls.watched(limited(servicer, service, limit_s, but=PATIENT), service)
    events_pb2_grpc.add_EventServiceServicer_to_server(events, server)
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(recommendations, server)
    users_pb2_grpc.add_UserServiceServicer_to_server(users, server)
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(catalogs, server)
    snapshots_pb2_grpc.add_SnapshotServiceServicer_to_server(snapshot_service, server)
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    await server.start()
    stack.push_async_callback(server.stop, config.stop_grace_s)
    stack.push_async_callback(status.enter_graceful_shutdown)
    for name in ("", *SERVICES):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def store_works(works: bool) -> None:
        observer.store_works(works)
        healthy = health_pb2.HealthCheckResponse.SERVING if works else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in STORE_SERVICES:
            await status.set(name, healthy)

    probing = asyncio.create_task(keep_probing(store, config.store_probe_every_s, store_works))
    stack.push_async_callback(cancelled, probing)
