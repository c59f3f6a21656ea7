"""Addresses to listen on."""

from __future__ import annotations

import socket

from longtide_server.errors import InvalidInput


def check_listen(listen: str) -> None:
    """Whether an address can be listened on, without a server. InvalidInput when it cannot."""
    host, port = host_and_port(listen, "listen")
    try:
        with socket.create_server((host.strip("[]"), port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as exc:
        raise InvalidInput.of("listen", f"{listen} cannot be listened on: {exc.strerror}") from exc


def host_and_port(address: str, field: str) -> tuple[str, int]:
    """The two parts of an address. InvalidInput, of that field, when it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:  # gRPC would take it modulo 65,536
        raise InvalidInput.of(field, f"{address!r} is not HOST:PORT")
    return host, int(port)
