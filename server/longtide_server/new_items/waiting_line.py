"""Items that wait for something to be done with them, some at once, in the order in which they came.

What fails is done one by one, so that it is known which of them it was, and that one is tried again now and then,
aside: the others go on. Only where one after the other fails do all of them wait, since it is none of theirs then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

import structlog

from longtide_server.errors import LongtideError

ITEMS_AT_ONCE = 32
TRY_AGAIN_S = 5.0
LONGEST_PAUSE_S = 300.0
MANY_FAILURES = 3
MOST_DOUBLINGS = 20  # a thousand are no float any more

log = structlog.get_logger(__name__)


class WaitingLine:
    """Ids of items, each once."""

    def __init__(self, name: str, work: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        """name: says in the log what is waited for; `work` does it for some items, and may do it again for others."""
        self._name = name
        self._work = work
        self._fresh: dict[str, None] = {}
        self._failed: dict[str, None] = {}
        self._current: set[str] = set()
        """Those whose turn it is, less those that have left the line meanwhile, or have come again."""
        self._at_once = ITEMS_AT_ONCE
        self._failures = 0
        """In a row, of items that were not tried before."""
        self._pause_s = self._again_s = 0.0
        """Until one of those that failed is tried again, and when that is."""
        self._came = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._fresh) + len(self._failed)

    def add(self, item_id: str) -> None:
        """Let an item wait for its turn, after all others that are there."""
        self.remove(item_id)
        self._fresh[item_id] = None
        self._came.set()
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._go_on(), name=self._name)

    def remove(self, item_id: str) -> None:
        """Let an item leave the line, if it is there."""
        self._fresh.pop(item_id, None)
        self._failed.pop(item_id, None)
        self._current.discard(item_id)

    def remove_first(self) -> str:
        """Let the item leave the line that came first, of those that failed if there are any, and say which it was."""
        item_id = next(iter(self._failed or self._fresh))
        self.remove(item_id)
        return item_id

    def is_turn_of(self, item_id: str) -> bool:
        """Whether what is being done is still to be done with an item: to ask after every await."""
        return item_id in self._current

    async def close(self) -> None:
        """Do nothing any more."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait((self._working,))

    async def _go_on(self) -> None:
        while self._fresh or self._failed:
            if self._fresh:
                await self._try([*islice(self._fresh, self._at_once)])
            elif not await self._another_comes(self._again_s - time.monotonic()):
                await self._try_again([*islice(self._failed, 1)])

    async def _try(self, ids: Sequence[str]) -> None:
        if await self._done(ids):
            self._at_once, self._failures = min(2 * self._at_once, ITEMS_AT_ONCE), 0
            return
        self._at_once = 1
        if len(ids) > 1:
            self._fresh = dict.fromkeys(filter(self.is_turn_of, ids)) | self._fresh
            return
        if not self._failed:
            self._wait(TRY_AGAIN_S)
        self._failed |= dict.fromkeys(filter(self.is_turn_of, ids))
        self._failures += 1
        if self._failures >= MANY_FAILURES:
            doublings = min(self._failures - MANY_FAILURES, MOST_DOUBLINGS)
            await asyncio.sleep(min(TRY_AGAIN_S * 2.0**doublings, LONGEST_PAUSE_S))

    async def _try_again(self, ids: Sequence[str]) -> None:
        if await self._done(ids):
            self._failures = 0
            self._wait(0.0)  # the others may have the same luck
        else:
            self._failed |= dict.fromkeys(filter(self.is_turn_of, ids))
            self._wait(min(max(2 * self._pause_s, TRY_AGAIN_S), LONGEST_PAUSE_S))

    async def _done(self, ids: Sequence[str]) -> bool:
        """Do it for some, who leave the line; whether that went well."""
        for item_id in ids:
            self.remove(item_id)
        self._current = set(ids)
        try:
            await self._work(ids)
        except LongtideError as exc:
            log.warning("new_items_wait", until=self._name, items=len(ids), reason=str(exc))
            return False
        except Exception:
            log.exception("new_items_wait", until=self._name, items=len(ids))
            return False
        return True

    def _wait(self, pause_s: float) -> None:
        self._pause_s, self._again_s = pause_s, time.monotonic() + pause_s

    async def _another_comes(self, timeout_s: float) -> bool:
        """Whether somebody who was not tried yet comes in time."""
        self._came.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._came.wait()
        except TimeoutError:
            return False
        return True
