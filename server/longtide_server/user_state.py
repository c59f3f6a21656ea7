"""What the server remembers of each user between requests: history, seen items and encoder state, per snapshot.

A user's whole past is a fixed-size encoder state, so a new event costs one step whatever came before. An event that
arrives late, in time before others, makes the steps after it be taken again, from one of the states that are kept on
the way. The log is the truth; everything
here is a bounded cache of it, whose every entry knows the version of the history that it shows. What this server writes
is added as it is written; where others write to the same log too, it is asked for news before an entry is used.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longtide_server.encoder import CoalescingEncoder, Encoded, Steps
from longtide_server.errors import DeadlineExceeded
from longtide_server.event_store import Histories, History, Version, Written
from longtide_server.events import Event, EventType
from longtide_server.snapshot import Snapshot

TOP_N_MARGIN = 200
MAX_TOP_N = 1_500
MAX_STEP_EVENTS = 8_192
KEPT_STATES = 3
KEPT_FROM_EVENTS = 64  # fewer are encoded anew faster than they are worth
KEPT_NEAR_EVENTS = 16
KEPT_FAR_EVENTS = 128
MANY_EVENTS = 5_000  # to add them takes some milliseconds
VIEW = int(EventType.VIEW)


@dataclass(slots=True, eq=False)
class UserState:
    """One owner of a history. Items are catalogue numbers; events on items unknown to the snapshot are left out."""

    version: Version = field(default_factory=Version)
    """Of the history, as far as it is known here."""
    times: list[float] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    encoded: Encoded | None = None
    """The user after the first `encoded_count` events; none before the first, and after a late event."""
    encoded_count: int = 0
    kept: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    """Numbers of events and the states (S,) after them, at most KEPT_STATES, for going on from when one comes late."""
    advancing: asyncio.Task[None] | None = None
    """The encoding that is under way, shared by everybody who waits for it."""
    generation: int = 0
    """Rises when the order of past events changes, so that an encoding under way is not kept."""

    def add(self, event: Event, number: int) -> None:
        """Put an event where its time belongs: after all others of the same time."""
        if not number:
            return
        at = bisect.bisect_right(self.times, event.time_s)
        self.times.insert(at, event.time_s)
        self.items.insert(at, number)
        self.types.insert(at, event.type)
        self.values.insert(at, float("nan") if event.value is None else event.value)
        self.seen.add(number)
        if at < len(self.times) - 1:
            self.generation += 1
            if at < self.encoded_count:
                self.kept = [(count, state) for count, state in self.kept if count <= at]
                self.encoded, self.encoded_count = None, self.kept[-1][0] if self.kept else 0

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
    times = np.array(user.times[max(start - 1, 0) : end], np.float64)
    gaps = np.diff(times, prepend=times[:1])[(1 if start else 0) :]
    quiet = [0.0] * len(session)
    return Steps(
        items=np.array([*user.items[start:end], *session], np.int32),
        types=np.array([*user.types[start:end], *([VIEW] * len(session))], np.uint8),
        gaps=np.array([*gaps, *quiet], np.float32),
        values=np.array([*user.values[start:end], *([float("nan")] * len(session))], np.float32),
        state=state,
        top_n=min(top_n, MAX_TOP_N),
    )


def _heard(task: asyncio.Task[None]) -> None:
    """An encoding that failed after its last caller gave up is nobody's error; asyncio would report it as one."""
    if not task.cancelled():
        task.exception()


class UserStates:
    """The states of recent users under one snapshot, at most `capacity` of them."""

    def __init__(
        self,
        snapshot: Snapshot,
        store: Histories,
        encoder: CoalescingEncoder,
        capacity: int,
        step_timeout_s: float = 10.0,
    ) -> None:
        self._step_timeout_s = step_timeout_s
        self._snapshot = snapshot
        self._store = store
        self._encoder = encoder
        self._capacity = capacity
        self._users: OrderedDict[str, UserState] = OrderedDict()
        self._reading: dict[str, asyncio.Task[UserState]] = {}
        self._writes: set[asyncio.Task[Written]] = set()
        self._written: dict[str, Version] = {}
        """How far the histories have come that are being read or of which something is missing here."""
        self._forgotten: set[str] = set()
        """Owners who are being read, and of whom what is read may be outdated."""
        self._merged: OrderedDict[str, str] = OrderedDict()
        """Other names of owners, as far as they were asked for lately."""
        self._zeros = np.zeros(snapshot.manifest.encoder.state_size, np.float32)

    async def get(self, owner: str) -> UserState:
        """The owner of a history, from memory or from the log. Unavailable when the log cannot be read."""
        owner = self._merged.get(owner, owner)
        if self._store.shared:
            return await self._read(owner)
        user = self._users.get(owner)
        if user is not None and owner not in self._written:
            self._users.move_to_end(owner)
            return user
        reading = self._reading.get(owner)
        if reading is None:
            reading = self._reading[owner] = asyncio.create_task(self._read(owner))
            reading.add_done_callback(lambda _: self._end_reading(owner))
        return await asyncio.shield(reading)

    def forget(self, owner: str) -> None:
        """Read the owner's history anew when it is asked for: the log has changed otherwise than by being written."""
        known_as = self._merged.pop(owner, owner)
        for name in {owner, known_as}:
            self._users.pop(name, None)
            if name in self._reading:
                self._forgotten.add(name)

    async def write(self, events: Sequence[Event]) -> Written:
        """Make events durable, then let them be felt, also when the caller gives up meanwhile. See EventStore."""
        task = asyncio.create_task(self._write(events))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    async def _write(self, events: Sequence[Event]) -> Written:
        written = await self._store.write(events)
        self.apply(written)
        return written

    def apply(self, written: Written) -> None:
        """Let written events be felt: call it once they are durable, before the write is answered."""
        for owner, appended in written.appended.items():
            user = self._users.get(owner)
            if user is not None and user.version == appended.before:
                self._extend(user, appended.events, appended.after)
            elif owner in self._reading or (user is not None and user.version < appended.after):
                self._written[owner] = max(appended.after, self._written.get(owner, Version()))

    async def encoded(self, user: UserState, session: Sequence[int], top_n: int, timeout_s: float) -> Encoded | None:
        """The user after every event and the session's items; None when there are none.

        Only events that the kept state has not seen are encoded, and the result without the session is kept.
        EncoderUnavailable, DeadlineExceeded or Overloaded when the encoder cannot answer.
        """
        end_s = time.monotonic() + timeout_s
        # Again, when an event came late meanwhile and what was encoded is no longer what happened.
        while len(user.items) > user.encoded_count:
            await self._advanced(user, top_n, end_s - time.monotonic())
        if session:
            state, count = user.state(), len(user.items)
            state = self._zeros if state is None else state
            steps = steps_between(user, count, count, session, state, top_n)
            return await self._encoder.encode(steps, end_s - time.monotonic())
        return user.encoded

    async def _advanced(self, user: UserState, top_n: int, timeout_s: float) -> None:
        """Wait for the user's next steps; they go on, and are kept, when this caller's time is over."""
        if user.advancing is None or user.advancing.done():
            user.advancing = asyncio.create_task(self._advance(user, top_n))
            user.advancing.add_done_callback(_heard)
        done, _ = await asyncio.wait((user.advancing,), timeout=max(timeout_s, 0.0))
        if not done:
            raise DeadlineExceeded(f"the encoder did not answer within {timeout_s:.3f} s")
        user.advancing.result()

    async def _advance(self, user: UserState, top_n: int) -> None:
        start, generation = user.encoded_count, user.generation
        end = min(len(user.items), start + MAX_STEP_EVENTS)
        if end - start > KEPT_FAR_EVENTS:
            end -= KEPT_NEAR_EVENTS  # so that a state is kept shortly before the end
        state = user.state()
        steps = steps_between(user, start, end, (), self._zeros if state is None else state, top_n)
        encoded = await self._encoder.encode(steps, self._step_timeout_s)
        if user.generation == generation and end >= user.encoded_count:
            user.advance(encoded, end)

    async def _read(self, owner: str) -> UserState:
        """Bring an entry up to what the log says now."""
        while True:
            self._forgotten.discard(owner)
            known = self._users.get(owner)
            since = None if known is None else known.version
            history = await self._store.history(owner, since)
            if history.owner != owner:
                self._remember_name(owner, history.owner)
                return await self.get(history.owner)
            user = self._users.get(owner)
            if history.whole and (user is None or user.version < history.version):
                user = await self._built(history)
                self._keep(owner, user)
            elif user is not None and user.version == since and not history.whole:
                self._extend(user, history.events, history.version)
            if owner in self._forgotten:
                self._users.pop(owner, None)
            elif user is not None and user.version >= max(history.version, self._written.get(owner, history.version)):
                self._written.pop(owner, None)
                self._users.move_to_end(owner)
                return user

    def _end_reading(self, owner: str) -> None:
        del self._reading[owner]
        self._forgotten.discard(owner)
        if owner not in self._users:
            self._written.pop(owner, None)

    async def _built(self, history: History) -> UserState:
        """A new entry; a long one is made aside, so that others have their turn."""
        user = UserState(history.version)
        if len(history.events) > MANY_EVENTS:
            await asyncio.to_thread(self._extend, user, history.events, history.version)
        else:
            self._extend(user, history.events, history.version)
        return user

    def _extend(self, user: UserState, events: Sequence[Event], version: Version) -> None:
        for event in events:
            user.add(event, self._snapshot.catalog.number(event.item_id))
        user.version = version

    def _keep(self, owner: str, user: UserState) -> None:
        self._users[owner] = user
        while len(self._users) > self._capacity:
            dropped, _ = self._users.popitem(last=False)
            self._written.pop(dropped, None)

    def _remember_name(self, name: str, owner: str) -> None:
        self._users.pop(name, None)
        self._merged[name] = owner
        while len(self._merged) > self._capacity:
            self._merged.popitem(last=False)
