"""Bounds what a store has accepted and not written yet."""

from __future__ import annotations

import asyncio

from longtide_server.errors import Overloaded

MAX_WAITING_EVENTS = 200_000


class Backlog:
    """How much waits to be written. Not for several threads at once."""

    def __init__(self, limit: int, unit: str) -> None:
        self._limit = limit
        self._unit = unit
        self._waiting = 0
        self._turn = asyncio.Lock()
        """Of those who wait for room: the first holds it."""
        self._left = asyncio.Event()

    def enter(self, size: int) -> None:
        """So much more waits. Overloaded when that would be over the limit."""
        if self._waiting + size > self._limit:
            raise Overloaded(f"{self._waiting} {self._unit} are waiting to be written")
        self._waiting += size

    async def enter_in_turn(self, size: int) -> None:
        """So much more, at most the limit, waits once there is room, and after whoever came here before."""
        async with self._turn:
            while self._waiting + size > self._limit:
                self._left.clear()
                await self._left.wait()
            self._waiting += size

    def leave(self, size: int) -> None:
        """So much is written, or will never be."""
        self._waiting -= size
        self._left.set()
