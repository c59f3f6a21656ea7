"""Work that goes on beside the calls, and ends with the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from longtide_server.config import ServerConfig
from longtide_server.event_store import EventStore
from longtide_server.users.retention import keep_expiring


def expire_events(
    config: ServerConfig, store: EventStore, forget: Callable[[Iterable[str]], None], stack: AsyncExitStack
) -> None:
    """Delete events that have become too old, again and again."""
    if config.retention:
        expiring = asyncio.create_task(keep_expiring(store, config.retention, forget, time.time))
        stack.push_async_callback(cancelled, expiring)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel until it is true: Python 3.11's `wait_for`, which redis-py uses, may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.5)
