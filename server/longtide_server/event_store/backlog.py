"""Bounds what a store has accepted and not written yet."""

from __future__ import annotations

from longtide_server.errors import Overloaded


class Backlog:
    """How much waits to be written. Not for several threads at once."""

    def __init__(self, limit: int, unit: str) -> None:
        self._limit = limit
        self._unit = unit
        self._waiting = 0

    def enter(self, size: int) -> None:
        """So much more waits. Overloaded when that would be over the limit."""
        if self._waiting + size > self._limit:
            raise Overloaded(f"{self._waiting} {self._unit} are waiting to be written")
        self._waiting += size

    def leave(self, size: int) -> None:
        """So much is written, or will never be."""
        self._waiting -= size
