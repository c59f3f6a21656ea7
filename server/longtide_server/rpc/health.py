"""Tries the event store again and again, and says when it has begun or ceased to work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from longtide_server.errors import LongtideError
from longtide_server.event_store import EventStore

PROBE_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


async def keep_probing(store: EventStore, every_s: float, tell: Callable[[bool], Awaitable[None]]) -> None:
    """Tell whether the store works: at first, and whenever that has changed. Until it is cancelled."""
    known: bool | None = None
    while True:
        reason = await why_failing(store)
        works = not reason
        if works != known:
            if reason:
                log.warning("event_store_fails", reason=reason)
            elif known is not None:
                log.info("event_store_back")
            known = works
            await tell(works)
        await asyncio.sleep(every_s)


async def why_failing(store: EventStore) -> str:
    """What is wrong with the store; empty when it can be written to and read."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await store.probe()
    except TimeoutError:
        return f"it did not answer within {PROBE_TIMEOUT_S:g} s"
    except LongtideError as exc:
        return str(exc)
    except Exception as exc:
        log.exception("event_store_failed_oddly")
        return repr(exc)
    return ""
