"""Lets others have their turn while something goes on in the event loop that is long, and may be interrupted."""

from __future__ import annotations

import asyncio
import time

TURN_S = 0.005


class Turns:
    """Of somebody who does a little at a time. What a little costs need not be known: it is measured."""

    def __init__(self) -> None:
        """A turn begins."""
        self._begun_s = time.perf_counter()

    async def pause(self) -> None:
        """Let others go on, if this turn has taken long enough."""
        if time.perf_counter() - self._begun_s >= TURN_S:
            await asyncio.sleep(0)
            self._begun_s = time.perf_counter()
