"""How long events are kept, by their type: what is too old is not taken, and what has become too old is deleted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping

import structlog

from longtide_server.errors import FieldViolation, InvalidInput, LongtideError
from longtide_server.event_store import EventStore
from longtide_server.events import EVENT_TYPE_NAMES, Event, EventType

EVERY_S = 3_600.0
DAY_S = 86_400.0
UNITS_S = {"h": 3_600.0, "d": DAY_S, "y": 365.25 * DAY_S}

Retention = Mapping[EventType, float]
"""Seconds that events of a type are kept; for ever where a type is missing."""

log = structlog.get_logger(__name__)


def read_retention(names: Mapping[str, str]) -> dict[EventType, float]:
    """`{"view": "90d", "purchase": "3y"}` as seconds by type; InvalidInput names what is wrong."""
    found = {}
    for name, age in names.items():
        if name not in EVENT_TYPE_NAMES:
            raise InvalidInput.of("retain", f"{name!r} is not an event type; use one of {', '.join(EVENT_TYPE_NAMES)}")
        read = re.fullmatch(r"(\d+(?:\.\d+)?)([hdy])", age)
        if read is None or float(read[1]) == 0:
            raise InvalidInput.of("retain", f"{age!r} is not an age, for example 36h, 90d or 2y")
        found[EVENT_TYPE_NAMES[name]] = float(read[1]) * UNITS_S[read[2]]
    return found


def too_old(event: Event, retention: Retention, now_s: float) -> FieldViolation | None:
    """Why an event is not taken any more, or none."""
    kept_s = retention.get(EventType(event.type)) if retention else None
    if kept_s is None or event.time_s >= now_s - kept_s:
        return None
    kind = EventType(event.type).name.lower()
    return FieldViolation("event_time", f"is older than the {kept_s / DAY_S:g} days that {kind} events are kept")


async def expire(store: EventStore, retention: Retention, forget: Callable[[Iterable[str]], None], now_s: float) -> int:
    """Delete what is too old; how many events went."""
    gone = 0
    async for piece in store.expire({int(kind): now_s - kept_s for kind, kept_s in retention.items()}):
        forget(piece)
        gone += sum(piece.values())
    return gone


async def keep_expiring(
    store: EventStore, retention: Retention, forget: Callable[[Iterable[str]], None], clock: Callable[[], float]
) -> None:
    """Expire again and again, until it is cancelled; a store that fails is tried again the next time."""
    while True:
        try:
            gone = await expire(store, retention, forget, clock())
            log.info("events_expired", events=gone)
        except LongtideError as exc:
            log.warning("events_not_expired", error=str(exc))
        except Exception:
            log.exception("events_not_expired")
        await asyncio.sleep(EVERY_S)
