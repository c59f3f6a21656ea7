"""How the SDK connects: channel options, metadata, the retries of unary calls, and the methods outside the contract."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from longtide._version import __version__

HEALTH_CHECK_METHOD = "/grpc.health.v1.Health/Check"
DEFAULT_TIMEOUT_S = 5.0
ACTIVATION_TIMEOUT_S = 300.0
ROWS_TIMEOUT_S = 60.0

_RECEIVE_LIMIT_BYTES = 64 * 1024 * 1024
_METADATA_LIMIT_BYTES = 1024 * 1024
_RETRY_BUFFER_BYTES = 8 * 1024 * 1024
_KEEPALIVE_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000
_FIRST_RECONNECT_MS = 100
_LONGEST_RECONNECT_MS = 5_000

RETRIED_METHODS = {
    "longtide.v1.EventService": ("WriteEvents",),
    "longtide.v1.RecommendationService": (
        "Recommend",
        "Rank",
        "ListSimilarItems",
        "ListSimilarUsers",
        "PredictBehavior",
        "GetInterests",
    ),
    "longtide.v1.UserService": ("ListUserEvents", "MergeUsers"),
    "longtide.v1.CatalogService": ("UpsertItems", "GetItem", "ListItems", "DeleteItems"),
    "longtide.v1.SnapshotService": ("ListSnapshots", "GetSnapshot"),
}
"""The unary calls that are safe to repeat: a known `event_id`, an item or a merge changes nothing when it comes again.

Not ActivateSnapshot: where an encoder did not start, the next three would not, minutes later; and after a lost
connection the activation goes on, so that a second one would be refused and hide how the first ends. Nor
DeleteUserData: where only its answer was lost, a second one would take what the person did since.
"""


_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
_METADATA_TEXT = re.compile(rb"[ -~]*")


def checked_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[tuple[str, str | bytes], ...]:
    """The pairs, if gRPC can send them; else TypeError or ValueError. Values may be secrets, and are not named."""
    pairs = tuple(metadata)
    for key, value in pairs:
        if not isinstance(key, str):
            raise TypeError(f"metadata: {key!r} must be a str, not {type(key).__name__}")
        if not _METADATA_KEY.fullmatch(key):
            raise ValueError(f"metadata: {key!r} may only hold a-z, 0-9, -, _ and .")
        binary = key.endswith("-bin")
        if not isinstance(value, bytes if binary else str | bytes):
            kind = "bytes" if binary else "a str or bytes"
            raise TypeError(f"metadata: the value of {key!r} must be {kind}, not {type(value).__name__}")
        sent = value.encode() if isinstance(value, str) else value
        if not binary and not _METADATA_TEXT.fullmatch(sent):
            raise ValueError(f"metadata: the value of {key!r} must be printable ASCII; for bytes, name it '{key}-bin'")
    return pairs


def channel_options() -> list[tuple[str, Any]]:
    """The options of the one channel of a client."""
    return [
        ("grpc.primary_user_agent", f"longtide-python/{__version__}"),
        ("grpc.max_receive_message_length", _RECEIVE_LIMIT_BYTES),
        # The default of 8 KiB cannot carry the violations of a whole refused batch: the error would be lost.
        ("grpc.max_metadata_size", _METADATA_LIMIT_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # The default of 2 minutes would keep a client away from a server that is long back.
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        # A connection of its own: clients of one process would else share one, and with it one of a server's workers.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 1),
        # A request larger than this buffer (256 KiB by default) would silently not be retried.
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        ("grpc.service_config", json.dumps(_service_config())),
    ]


def _service_config() -> dict[str, Any]:
    names = [
        {"service": service, "method": method} for service, methods in RETRIED_METHODS.items() for method in methods
    ]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],  # the latter: see `error_from_rpc`
    }
    return {"methodConfig": [{"name": names, "retryPolicy": policy}]}
