"""Has everybody who turns to a new item pull it towards what they wanted at that moment.

Of somebody whose state is not in memory, such as who has written events and never asked, that is found out aside: from
the log, by the encoder when nobody else waits for it. Where that cannot be, or too many wait, they pull nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.errors import LongtideError
from longtide_server.event_store import Appended, Version, Written
from longtide_server.events import EventType
from longtide_server.new_items.newcomers import Newcomers
from longtide_server.users.user_states import UserStates

MOST_WAITING = 1_000
AT_ONCE = 8
PATIENCE_S = 60.0
PAUSE_S = 1.0  # after a failure

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Turned:
    """What somebody did of whom nothing is in memory."""

    before: Version
    """Of the history that the events follow."""
    event_ids: set[str]
    items: dict[str, float]
    """New ones, and when they turned to them, seconds since 1970."""


class Pulls:
    """Follows the events, for the new items of one snapshot."""

    def __init__(self, newcomers: Newcomers, states: UserStates) -> None:
        """The states are to hear of events after this does: what counts is what somebody wanted before."""
        self._newcomers = newcomers
        self._states = states
        self._waiting: dict[str, _Turned] = {}
        """By owner."""
        self._recalling: asyncio.Task[None] | None = None
        self._paused_until_s = 0.0

    def apply(self, written: Written) -> None:
        """Let what is new be felt."""
        for owner, appended in written.appended.items():
            pleasing = self._pleasing(appended)
            if not pleasing:
                continue
            user = self._states.remembered(owner)
            if user.encoded is not None:
                self._pull(pleasing, user.unknown, user.encoded.query)
            elif user.items or user.version != appended.before:
                self._wait(owner, appended, pleasing)

    def forget(self, names: Iterable[str]) -> None:
        """Sums hold no names; what is not in them yet is not to be."""
        for name in names:
            self._waiting.pop(name, None)

    async def close(self) -> None:
        """Count nobody any more."""
        if self._recalling is not None:
            self._recalling.cancel()
            await asyncio.wait((self._recalling,))

    def _pleasing(self, appended: Appended) -> dict[str, float]:
        """The new items to which somebody turned, and when."""
        found: dict[str, float] = {}
        for event in appended.events:
            if event.type != EventType.DISLIKE and event.item_id in self._newcomers:
                found.setdefault(event.item_id, event.time_s)
        return found

    def _pull(self, items: Iterable[str], known: Container[str], query: NDArray[np.float32]) -> None:
        for item_id in items:
            if item_id not in known:  # whoever comes back does not count again
                self._newcomers.please(item_id, query)

    def _wait(self, owner: str, appended: Appended, pleasing: Mapping[str, float]) -> None:
        """Have somebody recalled soon."""
        event_ids = {event.event_id for event in appended.events}
        turned = self._waiting.get(owner)
        if turned is not None:
            turned.event_ids |= event_ids
            turned.items = {**pleasing, **turned.items}
        elif len(self._waiting) < MOST_WAITING and time.monotonic() >= self._paused_until_s:
            self._waiting[owner] = _Turned(appended.before, event_ids, dict(pleasing))
            if self._recalling is None or self._recalling.done():
                self._recalling = asyncio.create_task(self._recall_waiting(), name="pulls")

    async def _recall_waiting(self) -> None:
        while self._waiting:
            some = dict(islice(self._waiting.items(), AT_ONCE))
            for owner in some:
                del self._waiting[owner]
            recalling = [asyncio.create_task(self._recall(owner, turned)) for owner, turned in some.items()]
            try:
                failures = [one for one in await asyncio.gather(*recalling, return_exceptions=True) if one is not None]
            finally:
                for one in recalling:
                    one.cancel()
            for failure in failures:
                if not isinstance(failure, LongtideError):
                    raise failure
            if len(failures) == len(some):  # else it is these users alone who cannot be encoded
                log.info("pulls_not_counted", reason=str(failures[0]), users=len(some) + len(self._waiting))
                self._waiting.clear()
                self._paused_until_s = time.monotonic() + PAUSE_S

    async def _recall(self, owner: str, turned: _Turned) -> None:
        """Count what somebody did, by who they were before."""
        until_s = min(turned.items.values())
        user = await self._states.recalled(owner, turned.before, turned.event_ids, until_s, PATIENCE_S)
        if user.encoded is not None:
            self._pull(turned.items, user.unknown, user.encoded.query)
