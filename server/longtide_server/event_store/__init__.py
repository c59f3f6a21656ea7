"""The durable event log: the only truth after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from longtide_server.events import Event


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch of events."""

    new: int
    """How many are new and now durable."""
    duplicates: int
    """How many had a known event_id and changed nothing."""


class EventStore(Protocol):
    """Keeps events for ever, each once, and gives back a user's history."""

    async def write(self, events: Sequence[Event]) -> Written:
        """Make valid events durable, all or none; return only then. Unavailable or Overloaded when it cannot."""
        ...

    async def history(self, user_id: str) -> list[Event]:
        """All events of a user by time; equal times keep the order of arrival."""
        ...

    async def close(self) -> None:
        """Finish what was accepted and let go of the storage."""
        ...
