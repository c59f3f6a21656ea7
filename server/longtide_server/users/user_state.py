"""One user between requests: what they did, and their encoder state.

A user's whole past is a fixed-size encoder state, so a new event costs one step whatever came before. An event that
arrives late, in time before others, makes the steps after it be taken again, from one of the states that are kept on
the way.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longtide_server.encoder import Encoded, Steps
from longtide_server.event_store import Version
from longtide_server.events import Event, EventType, values_as_read
from longtide_server.users.unknown_items import UnknownItems

TOP_N_MARGIN = 200
MAX_TOP_N = 1_500
KEPT_STATES = 3
KEPT_FROM_EVENTS = 64  # fewer are encoded anew faster than they are worth
KEPT_NEAR_EVENTS = 16
KEPT_FAR_EVENTS = 128
MANY_LATE_EVENTS = 64
FEW_EVENTS = 32  # to put each in its place is faster than to sort all
VIEW = int(EventType.VIEW)


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What comes of events that are being written, should they be."""

    before: Version
    """Of the history that they follow."""
    events: Sequence[Event]
    encoding: asyncio.Task[Encoded]
    """The user after them."""


@dataclass(slots=True, eq=False)
class UserState:
    """One owner of a history. Items are catalogue numbers; events on items unknown to the snapshot are left out."""

    owner: str = ""
    """Whose history it is; who asks may have another name for them."""
    numbers: tuple[int, ...] = ()
    """Of the users of the snapshot whom the owner is: under their own name, and under those merged into it."""
    version: Version = field(default_factory=Version)
    """Of the history, as far as it is known here."""
    # Arrays and not lists: the garbage collector would look through all of everybody's lists, and hold all calls up.
    times: array[float] = field(default_factory=lambda: array("d"))
    """Seconds since 1970, ascending."""
    items: array[int] = field(default_factory=lambda: array("i"))
    types: array[int] = field(default_factory=lambda: array("B"))
    values: array[float] = field(default_factory=lambda: array("d"))
    """NaN where absent."""
    seen: array[int] = field(default_factory=lambda: array("i"))
    """The items, each once, ascending."""
    unknown: UnknownItems = field(default_factory=UnknownItems)
    """Items of events that the snapshot does not know."""
    encoded: Encoded | None = None
    """The user after the first `encoded_count` events; none before the first, and after a late event."""
    encoded_count: int = 0
    kept: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    """Numbers of events and the states (S,) after them, at most KEPT_STATES, for going on from when one comes late."""
    advancing: asyncio.Task[None] | None = None
    """The encoding that is under way, shared by everybody who waits for it."""
    patient: bool = False
    """Whether none of them looks at a screen."""
    expected: Expected | None = None
    """Of the events that are being written, where they are expected."""
    generation: int = 0
    """Rises when the order of past events changes, so that an encoding under way is not kept."""

    def add(self, event: Event, number: int) -> None:
        """Put an event where its time belongs: after all others of the same time."""
        if not number:
            self.unknown.add(event.item_id, event.time_s)
            return
        at = bisect.bisect_right(self.times, event.time_s)
        self.times.insert(at, event.time_s)
        self.items.insert(at, number)
        self.types.insert(at, event.type)
        self.values.insert(at, math.nan if event.value is None else event.value)
        self._see(number)
        if at < len(self.times) - 1:
            self.generation += 1
            if at < self.encoded_count:
                self.kept = [(count, state) for count, state in self.kept if count <= at]
                self.encoded, self.encoded_count = None, self.kept[-1][0] if self.kept else 0

    def append(self, events: Sequence[Event], numbers: Sequence[int]) -> None:
        """Put many events at the end, where they belong: by time, none before the last one that is there."""
        if 0 in numbers:
            pairs = zip(events, numbers, strict=True)
            self.unknown.add_all([(event.item_id, event.time_s) for event, number in pairs if not number])
            events = [event for event, number in zip(events, numbers, strict=True) if number]
            numbers = [number for number in numbers if number]
        self.times.fromlist([event.time_s for event in events])
        self.items.fromlist([*numbers])
        self.types.fromlist([event.type for event in events])
        self.values.fromlist([math.nan if event.value is None else event.value for event in events])
        if len(numbers) > FEW_EVENTS:
            self.seen = array("i", sorted({*self.seen, *numbers}))
        else:
            for number in numbers:
                self._see(number)

    def _see(self, number: int) -> None:
        place = bisect.bisect_left(self.seen, number)
        if place == len(self.seen) or self.seen[place] != number:
            self.seen.insert(place, number)

    def many_late(self, events: Sequence[Event]) -> bool:
        """Whether so many events belong before others that to put them there would hold everybody up."""
        last_s = self.times[-1] if self.times else 0.0
        return sum(event.time_s < last_s for event in events) > MANY_LATE_EVENTS

    def state(self) -> NDArray[np.float32] | None:
        """(S,) the state after the first `encoded_count` events; none where there are none."""
        if self.encoded is not None:
            return self.encoded.state
        return self.kept[-1][1] if self.encoded_count else None

    def advance(self, encoded: Encoded, count: int) -> None:
        """Go on to what was encoded of the first `count` events; the state before may be kept."""
        before = self.state()
        if before is not None and self.encoded_count >= KEPT_FROM_EVENTS:
            self._keep(self.encoded_count, before)
        self.encoded, self.encoded_count = encoded, count

    def _keep(self, count: int, state: NDArray[np.float32]) -> None:
        if self.kept and count < self.kept[-1][0] + KEPT_NEAR_EVENTS:
            return
        self.kept.append((count, state))
        if len(self.kept) > KEPT_STATES:
            # Two near the end, for events that come a little late, and one far from it.
            del self.kept[1 if self.kept[1][0] < self.kept[0][0] + KEPT_FAR_EVENTS else 0]

    def recent(self, count: int, session: Sequence[int]) -> NDArray[np.int64]:
        """The last items in time order, those of the session after the written ones."""
        return np.array([*self.items[-count:], *session][-count:], np.int64)


def steps_between(
    user: UserState, start: int, end: int, session: Sequence[int], state: NDArray[np.float32], top_n: int
) -> Steps:
    """The events from `start` to before `end`, then the items of the session as views without a gap."""
    times = np.array(user.times[max(start - 1, 0) : end])
    gaps = np.diff(times, prepend=times[:1])[(1 if start else 0) :]
    count = len(session)
    return Steps(
        items=np.array(user.items[start:end] + array("i", session), np.int32),
        types=np.array(user.types[start:end] + array("B", [VIEW] * count), np.uint8),
        gaps=np.concatenate([gaps, np.zeros(count)], dtype=np.float32),
        values=values_as_read(np.array(user.values[start:end] + array("d", [math.nan] * count))),
        state=state,
        top_n=min(top_n, MAX_TOP_N),
    )
