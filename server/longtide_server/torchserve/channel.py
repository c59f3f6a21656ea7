"""gRPC channels to TorchServe: one way to open them."""

from __future__ import annotations

import grpc.aio

_RECONNECT_FIRST_MS = 50
_RECONNECT_MAX_MS = 500
_CONNECT_TIMEOUT_MS = 5_000


def open_channel(address: str, max_message_bytes: int) -> grpc.aio.Channel:
    """A channel that finds a restarted TorchServe again within half a second. Connects at the first call."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_FIRST_MS),
            # Despite its name, how long one attempt may take; Java's first connection is slow on a busy machine.
            ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
            ("grpc.enable_http_proxy", 0),  # loopback never goes through http_proxy
            ("grpc.use_local_subchannel_pool", 1),  # no other channel's failures count against this one
        ],
    )
