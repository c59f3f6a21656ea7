"""A port that several processes are going to listen on: chosen and kept by one that does not."""

from __future__ import annotations

import errno
import socket
from types import TracebackType

from longtide_server.errors import InvalidInput

NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ReservedPort:
    """Keeps a port for processes of the same user that say SO_REUSEPORT, also while none of them listens."""

    def __init__(self, host: str, port: int) -> None:
        """Port 0 picks a free one. InvalidInput when something else listens there, or the host is none of ours."""
        self._kept: list[socket.socket] = []
        self.port = port
        shown = f"{host}:{port}"
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as exc:
            raise InvalidInput.of("listen", f"{shown} cannot be listened on: {exc.strerror}") from exc
        refused: OSError | None = None
        for family, _, _, _, address in found:
            try:
                self._keep(family, (address[0], self.port, *address[2:]))
            except OSError as exc:
                refused = exc
                if exc.errno not in NOT_HERE:  # of localhost, a machine may have one of two addresses
                    break
        if not self._kept or (refused is not None and refused.errno not in NOT_HERE):
            self.close()
            raise InvalidInput.of("listen", f"{shown} cannot be listened on; is something else there?") from refused

    def __enter__(self) -> ReservedPort:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        for kept in self._kept:
            kept.close()

    def _keep(self, family: socket.AddressFamily, address: tuple[object, ...]) -> None:
        first = _socket(family, socket.SO_REUSEADDR)
        try:
            first.bind(address)  # alone, so that it fails where anything listens
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.port = first.getsockname()[1]
        except OSError:
            first.close()
            raise
        # Who says SO_REUSEADDR may be joined by whoever says it too as long as nobody listens; this one does not.
        second = _socket(family, socket.SO_REUSEPORT)
        try:
            second.bind((address[0], self.port, *address[2:]))
        except OSError:  # connections of an earlier server have not quite gone
            second.close()
            self._kept.append(first)
        else:
            first.close()
            self._kept.append(second)


def _socket(family: socket.AddressFamily, option: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, option, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made
