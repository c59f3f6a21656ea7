"""Changes that go on when their callers give up: half a change would be felt by some and not by others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class UnderWay:
    """The changes that have begun and not ended."""

    def __init__(self) -> None:
        self._changes: set[asyncio.Task[Any]] = set()

    async def done(self, change: Coroutine[Any, Any, T]) -> T:
        """What comes of a change; it is done to its end in any case."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(_heard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Finish what callers have given up on."""
        if self._changes:
            await asyncio.wait(self._changes)


def _heard(task: asyncio.Task[Any]) -> None:
    """What failed after its caller gave up is nobody's error; asyncio would report it as one."""
    if not task.cancelled():
        task.exception()
