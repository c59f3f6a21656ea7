"""Takes the steps of new events ahead of demand, so that whoever asks next finds the user's state fresh.

A step begins while the event is being made durable, and is felt only if it was.

Only of users whose state is at hand: whoever has not asked yet costs nothing until they do. One batch is under way at a
time, and the users written about meanwhile are the next one, so a busy server takes several events of a user at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import structlog

from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded
from longtide_server.event_store import Written
from longtide_server.events import Event
from longtide_server.users.user_states import UserStates

AT_ONCE = 256
MAX_DUE = 16 * AT_ONCE  # the rest waits until it is asked for
PAUSE_S = 1.0  # after a batch that failed
MAX_EXPECTED_EVENTS = 8  # more are an import, or a stream

log = structlog.get_logger(__name__)


class Stepper:
    """Has the states of one snapshot's users follow the events that this server writes."""

    def __init__(self, states: UserStates) -> None:
        self._states = states
        self._due: dict[str, None] = {}
        """Owners, in the order in which they were written about."""
        self._running: asyncio.Task[None] | None = None
        self._paused_until_s = 0.0

    def expect(self, events: Sequence[Event]) -> None:
        """Begin the steps of events that are being written, if they are few: to make them durable takes as long."""
        if len(events) > MAX_EXPECTED_EVENTS or time.monotonic() < self._paused_until_s:
            return
        for owner, some in _by_owner(events).items():
            self._states.expect(owner, some)

    def settle(self, events: Sequence[Event]) -> None:
        """What was expected of them and has not come to be is forgotten."""
        if len(events) <= MAX_EXPECTED_EVENTS:
            for owner, some in _by_owner(events).items():
                self._states.settle(owner, some)

    def apply(self, written: Written) -> None:
        """Have the written events' users follow soon; the states must know of the events already."""
        if time.monotonic() < self._paused_until_s:
            return
        for owner in written.appended:
            if len(self._due) < MAX_DUE and self._states.steps_due(owner):
                self._due[owner] = None
        if self._due and (self._running is None or self._running.done()):
            self._running = asyncio.create_task(self._run())

    def forget(self, names: Iterable[str]) -> None:
        """Of histories that are read anew there is nothing to follow."""
        for name in names:
            self._due.pop(name, None)

    async def close(self) -> None:
        """Stop; what is due is encoded when it is asked for."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))

    async def _run(self) -> None:
        while self._due:
            owners = [*self._due][:AT_ONCE]
            for owner in owners:
                del self._due[owner]
            steps = [asyncio.create_task(self._states.step(owner)) for owner in owners]
            try:
                failures = [one for one in await asyncio.gather(*steps, return_exceptions=True) if one is not None]
            finally:
                for step in steps:
                    step.cancel()
            for failure in failures:
                if not isinstance(failure, (EncoderUnavailable, DeadlineExceeded, Overloaded)):
                    raise failure
            if len(failures) == len(owners):  # else it is these users alone who cannot be encoded
                log.info("steps_left_for_later", reason=str(failures[0]), users=len(owners) + len(self._due))
                self._due.clear()
                self._paused_until_s = time.monotonic() + PAUSE_S


def _by_owner(events: Sequence[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.owner, []).append(event)
    return found
