"""Picks free ports that stay free while TorchServe restarts."""

from __future__ import annotations

import random
import socket

from longtide_server.errors import Unavailable
from longtide_server.torchserve.config import LOOPBACK, Ports, TorchServeConfig

# Below the range from which Linux takes ports for outgoing connections: one of those could otherwise take a port
# during the seconds in which a restarting TorchServe does not hold it.
_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 200


def choose_ports(config: TorchServeConfig) -> Ports:
    """The configured ports, and a free one for every 0."""
    wanted = (
        config.grpc_inference_port,
        config.grpc_management_port,
        config.http_inference_port,
        config.http_management_port,
    )
    taken = set(wanted)
    chosen = []
    for port in wanted:
        chosen.append(port or _free_port(taken))
        taken.add(chosen[-1])
    return Ports(*chosen)


def _free_port(taken: set[int]) -> int:
    for _ in range(_ATTEMPTS):
        port = random.SystemRandom().randint(_FIRST, _LAST)  # two servers that start together must not agree
        if port not in taken and _is_free(port):
            return port
    raise Unavailable(f"found no free port on {LOOPBACK} between {_FIRST} and {_LAST}")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
