"""What the server can be told, with the defaults it runs with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from longtide_server.events import EventType

LogFormat = Literal["console", "json"]
"""Lines for people, or JSON for machines."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings of one server."""

    snapshot_dir: Path
    """Where the snapshot is."""
    data_dir: Path
    """Where TorchServe's files and its logs live, and the event log unless `store` says otherwise."""
    store: str = ""
    """URL of the event store, as `event_store.urls` reads it; empty for SQLite in the data directory."""
    retention: Mapping[EventType, float] = field(default_factory=dict)
    """Seconds that events of a type are kept; for ever where a type is missing."""
    listen: str = "127.0.0.1:50051"
    """HOST:PORT of the gRPC server; port 0 picks a free one."""
    workers: int = 1
    """Server processes that answer calls, 1 or more. Of several, each has caches and limits of its own."""
    encoder: Literal["torchserve", "local"] = "torchserve"
    """Who runs the encoder: TorchServe, or the process that answers."""
    torchserve_workers: int = 1
    """TorchServe worker processes, 1 or more; one a GPU."""
    torchserve_ports: tuple[int, int, int, int] = (0, 0, 0, 0)
    """TorchServe's loopback ports: gRPC inference, gRPC management, HTTP inference, HTTP management; 0 picks one."""
    encoder_timeout_s: float = 10.0
    """The longest one call to the encoder may take."""
    default_timeout_s: float = 5.0
    """The deadline of a call that brings none."""
    cached_users: int = 20_000
    """Users who are kept in the memory of a server process: about 10 kB each, and 26 bytes for each of their events."""
    keep_snapshots: int = 5
    """How many snapshots stay in the snapshot directory after one was activated, 1 or more."""
    canary_latency_s: float = 1.0
    """The median time of an answer that a snapshot may need to be activated."""
    max_calls: int = 2_000
    """Calls that may be under way, streams included; further ones are refused with RESOURCE_EXHAUSTED."""
    max_waiting_calls: int = 128
    """Calls that may wait to be taken up; of further ones, gRPC drops some, and all at twice as many (CANCELLED)."""
    max_message_bytes: int = 16 * 1024 * 1024
    """The largest message that is accepted."""
    store_probe_every_s: float = 2.0
    """How often the event store is tried, for the health of the services that need it."""
    catalog_refresh_every_s: float = 1.0
    """How often a shared store is asked for what other servers have changed in the catalogue."""
    explore_share: float = 0.02
    """Share of the places of answers that goes to items which nobody has had yet, 0 to 1."""
    text_model: str = ""
    """The language model that reads new items, as `longtide train --text-model` names it; empty for the default."""
    metrics: str = ""
    """HOST:PORT where Prometheus finds the metrics, port 0 picks a free one; nothing is counted where it is empty."""
    otlp_endpoint: str = ""
    """Base URL of the OpenTelemetry collector that is sent traces over OTLP; none are made where it is empty."""
    log_format: LogFormat = "console"
    """How processes write their logs that this one starts."""
    stop_grace_s: float = 5.0
    """How long calls under way may go on after a stop was asked for."""

    @property
    def store_url(self) -> str:
        """URL of the event store: by default SQLite in the data directory."""
        return self.store or f"sqlite:///{self.data_dir / 'events.db'}"
