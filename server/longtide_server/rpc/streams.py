"""Streams that are read while earlier messages are still worked on, a few at a time, and answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

MAX_ANSWER_BYTES = 3_500_000  # any gRPC client takes 4 MiB, unless it was told otherwise

Q = TypeVar("Q")
A = TypeVar("A")


async def in_order(
    requests: AsyncIterator[Q], begin: Callable[[Q], Coroutine[Any, Any, A]], at_once: int
) -> AsyncIterator[deque[asyncio.Task[A]]]:
    """Begin the work on each message as it is read, at most `at_once` of them at a time.

    Yields the tasks that are not answered yet, in order, whenever the first is done: take it, and others that are done,
    from the left. With enough under way nothing more is read, so gRPC's flow control holds the client back.
    """
    working = deque[asyncio.Task[A]]()
    reading: asyncio.Future[Q | None] | None = _next(requests)
    try:
        while reading is not None or working:
            may_read = reading if len(working) < at_once else None
            awaited = [future for future in (may_read, *list(working)[:1]) if future is not None]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if may_read is not None and may_read.done():
                request = may_read.result()
                reading = None if request is None else _next(requests)
                if request is not None:
                    working.append(asyncio.create_task(begin(request)))
                    working[-1].add_done_callback(_heard)
            if working and working[0].done():
                yield working
    finally:
        if reading is not None:
            reading.cancel()
        for task in working:
            task.cancel()


def _next(requests: AsyncIterator[Q]) -> asyncio.Future[Q | None]:
    """The next message of a stream, or None at its end."""
    return asyncio.ensure_future(anext(requests, None))


def _heard(task: asyncio.Task[Any]) -> None:
    """What fails after its stream has ended is nobody's error; asyncio would report it as one."""
    if not task.cancelled():
        task.exception()
