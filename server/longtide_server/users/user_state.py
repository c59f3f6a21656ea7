"""What the server remembers of each user between requests: history, seen items and encoder state, per snapshot.

A user's whole past is a fixed-size encoder state, so a new event costs one step whatever came before. An event that
arrives late, in time before others, makes the steps after it be taken again, from one of the states that are kept on
the way. The log is the truth; everything
here is a bounded cache of it, whose every entry knows the version of the history that it shows. What this server writes
is added as it is written; where others write to the same log too, it is asked for news before an entry is used, unless
its stamp says that there can be none.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtide_server.encoder import CoalescingEncoder, Encoded, Steps
from longtide_server.errors import DeadlineExceeded
from longtide_server.event_store import Appended, Histories, History, Known, Version, Written
from longtide_server.events import Event, EventType, values_as_read
from longtide_server.observer import NOBODY, Observer
from longtide_server.snapshot import Snapshot
from longtide_server.users.state_file import SavedStates, StateRow

TOP_N_MARGIN = 200
MAX_TOP_N = 1_500
MAX_STEP_EVENTS = 256  # then the state is kept: however long a history is and however busy the encoder, it goes on
KEPT_STATES = 3
KEPT_FROM_EVENTS = 64  # fewer are encoded anew faster than they are worth
KEPT_NEAR_EVENTS = 16
KEPT_FAR_EVENTS = 128
MAX_STEPS_AHEAD = 32  # more are a history that has just been loaded, which nobody may ever ask for
ITEMS_AHEAD = 10
MAX_EXPECTED = 32  # users at a time: where more write, several events of a user are better taken at once
MANY_LATE_EVENTS = 64
FEW_EVENTS = 32  # to put each in its place is faster than to sort all
MANY_EVENTS = 5_000  # to add them takes some milliseconds
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
    unknown: dict[str, float] = field(default_factory=dict)
    """Items of events that the snapshot does not know, with when they were last; those that arrived last come last."""
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
            self._note_unknown(event)
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
            for event, number in zip(events, numbers, strict=True):
                if not number:
                    self._note_unknown(event)
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

    def _note_unknown(self, event: Event) -> None:
        self.unknown[event.item_id] = max(self.unknown.pop(event.item_id, event.time_s), event.time_s)

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


def _ascending(times: list[float]) -> bool:
    return times == sorted(times)


def _heard(task: asyncio.Task[Any]) -> None:
    """What failed after its last caller gave up is nobody's error; asyncio would report it as one."""
    if not task.cancelled():
        task.exception()


def _over(user: UserState, advancing: asyncio.Task[None]) -> None:
    """An encoding is over: nobody holds on to it."""
    _heard(advancing)
    if user.advancing is advancing:
        user.advancing = None


class UserStates:
    """The states of recent users under one snapshot, at most `capacity` of them."""

    def __init__(
        self,
        snapshot: Snapshot,
        store: Histories,
        encoder: CoalescingEncoder,
        capacity: int,
        step_timeout_s: float = 10.0,
        saved: Sequence[SavedStates] = (),
        observer: Observer = NOBODY,
    ) -> None:
        """saved: states of earlier runs, for histories that have not changed since."""
        self._step_timeout_s = step_timeout_s
        self._saved = saved
        self._snapshot = snapshot
        self._store = store
        self._encoder = encoder
        self._capacity = capacity
        self._observer = observer
        self._users: OrderedDict[str, UserState] = OrderedDict()
        self._expecting = 0
        """Encodings of events that are being written."""
        self._reading: dict[str, asyncio.Task[UserState | None]] = {}
        """Of a log that only this server writes to: the readings that all who ask for an owner share."""
        self._outdated: set[str] = set()
        """Owners whose entry lacks something that was written, or who were being read when it was."""
        self._forgotten: set[str] = set()
        """Owners who are being read, and of whom what is read may be of another history."""
        self._merged: OrderedDict[str, str] = OrderedDict()
        """Other names of owners, as far as they were asked for lately."""
        self._names: dict[str, set[str]] = {}
        """The same from owners to names."""
        self._stamp: object = None
        """Of a shared log, when it was looked at last."""
        self._fresh: set[str] = set()
        """Names whose owner's entry was brought up to what a shared log says, and it has not changed since."""
        self._zeros = np.zeros(snapshot.manifest.encoder.state_size, np.float32)

    def at_hand(self, name: str) -> UserState | None:
        """The owner of a history, where what is in memory is what the log says."""
        owner = self._merged.get(name, name)
        if self._store.shared:
            if self._looked() is None or name not in self._fresh:
                return None
        elif owner in self._outdated or owner in self._reading:
            return None
        user = self._users.get(owner)
        if user is not None:
            self._users.move_to_end(owner)
            self._observer.state_lookup("hit")
        return user

    def remembered(self, name: str) -> UserState:
        """The owner of a history as far as memory goes, which may be nowhere."""
        owner = self._merged.get(name, name)
        return self._users.get(owner) or UserState(owner)

    async def recalled(
        self, owner: str, version: Version, without: Container[str], until_s: float, timeout_s: float
    ) -> UserState:
        """The owner of a history as they were at a moment, encoded when nobody else waits; not kept in memory.

        version: of the history then; `without`: ids of events that do not count. Fails as the log and `encoded` do.
        """
        history = await self._store.history(owner)
        events = [one for one in history.events if one.time_s <= until_s and one.event_id not in without]
        user = await self._built(History(owner, version, events))
        await self.encoded(user, (), 1, timeout_s, patient=True)
        return user

    def rows(self) -> list[StateRow]:
        """What is known of everybody in memory, for the next run."""
        return [
            StateRow(user.owner, user.version, user.encoded_count, user.encoded)
            for user in self._users.values()
            if user.encoded is not None and user.encoded_count == len(user.items) and user.owner not in self._outdated
        ]

    @property
    def count(self) -> int:
        """How many are in memory."""
        return len(self._users)

    def recent(self) -> list[str]:
        """The owners in memory, the one that was asked for last first."""
        return [*reversed(self._users)]

    async def get(self, name: str) -> UserState:
        """The owner of a history, from memory or from the log. Unavailable when the log cannot be read."""
        if self._store.shared:
            return await self._asked(name)
        while True:
            user = self.at_hand(name)
            if user is not None:
                return user
            owner = self._merged.get(name, name)
            reading = self._reading.get(owner)
            if reading is None:
                reading = self._reading[owner] = asyncio.create_task(self._read(owner))
                reading.add_done_callback(_heard)
                reading.add_done_callback(partial(self._end_reading, owner))
            user = await asyncio.shield(reading)
            if user is not None:
                return user

    def forget(self, names: Iterable[str]) -> None:
        """Read histories anew when they are asked for: the log has changed otherwise than by being written."""
        named = {one for name in names for one in (name, self._merged.get(name, name))}
        for name in named.union(*(self._names.get(owner, ()) for owner in named)):
            self._forget_name(name)
            self._users.pop(name, None)
            self._outdated.discard(name)
            if name in self._reading:
                self._forgotten.add(name)

    def apply(self, written: Written) -> None:
        """Let written events be felt: call it once they are durable, before the write is answered."""
        for owner, appended in written.appended.items():
            user = self._users.get(owner)
            if user is not None and user.version == appended.before and not user.many_late(appended.events):
                self._extend(user, appended.events, appended.after)
                self._take_expected(user, appended)
            elif user is not None or owner in self._reading:
                self._outdated.add(owner)

    def expect(self, owner: str, events: Sequence[Event]) -> None:
        """Take the steps of events that are being written, of a user whose state is fresh, while that goes on.

        Nothing is felt of them before `apply`, and nothing at all if they are not written.
        """
        user = self._users.get(self._merged.get(owner, owner))
        if user is None or user.owner in self._outdated or self._expecting >= MAX_EXPECTED:
            return
        if user.advancing is not None or user.expected is not None or user.encoded_count < len(user.items):
            return
        numbers = [self._snapshot.catalog.number(event.item_id) for event in events]
        times = [*user.times[-1:], *[event.time_s for event in events]]
        if not all(numbers) or not _ascending(times):
            return
        ahead = UserState(user.owner)  # the last event, which says how long ago it was, and those that are expected
        ahead.times, ahead.items = user.times[-1:], user.items[-1:]
        ahead.types, ahead.values = user.types[-1:], user.values[-1:]
        ahead.append(events, numbers)
        state, start = user.state(), len(user.items[-1:])
        state = self._zeros if state is None else state
        steps = steps_between(ahead, start, len(ahead.items), (), state, self._top_n_ahead(user))
        encoding = asyncio.create_task(self._encoder.encode(steps, self._step_timeout_s))
        self._expecting += 1
        encoding.add_done_callback(self._end_expecting)
        user.expected = Expected(user.version, tuple(events), encoding)

    def settle(self, owner: str, events: Sequence[Event]) -> None:
        """Forget what was expected of these events: they have been written, or will not be."""
        user = self._users.get(self._merged.get(owner, owner))
        if user is not None and user.expected is not None and user.expected.events == tuple(events):
            user.expected = None

    def steps_due(self, owner: str) -> bool:
        """Whether a user has a state that is a few events behind what happened."""
        user = self._users.get(owner)
        if user is None or owner in self._outdated or not user.encoded_count:
            return False
        return 0 < len(user.items) - user.encoded_count <= MAX_STEPS_AHEAD

    async def step(self, owner: str) -> None:
        """Bring the state of such a user up to what happened, before anybody asks. Fails as `encoded` does."""
        user = self._users.get(owner)
        if user is not None and self.steps_due(owner):
            await self.encoded(user, (), self._top_n_ahead(user), self._step_timeout_s)

    async def encoded(
        self, user: UserState, session: Sequence[int], top_n: int, timeout_s: float, *, patient: bool = False
    ) -> Encoded | None:
        """The user after every event and the session's items; None when there are none.

        Only events that the kept state has not seen are encoded, and the result without the session is kept. `patient`:
        nobody looks at a screen and waits, so all others go first.
        EncoderUnavailable, DeadlineExceeded or Overloaded when the encoder cannot answer.
        """
        end_s = time.monotonic() + timeout_s
        # Again, when an event came late meanwhile and what was encoded is no longer what happened.
        while len(user.items) > user.encoded_count:
            await self._advanced(user, top_n, end_s - time.monotonic(), patient)
        if session:
            state, count = user.state(), len(user.items)
            state = self._zeros if state is None else state
            steps = steps_between(user, count, count, session, state, top_n)
            return await self._encoder.encode(steps, end_s - time.monotonic(), lambda: patient)
        return user.encoded

    @staticmethod
    def _top_n_ahead(user: UserState) -> int:
        return TOP_N_MARGIN + ITEMS_AHEAD + len(user.seen)

    def _end_expecting(self, encoding: asyncio.Task[Encoded]) -> None:
        self._expecting -= 1
        _heard(encoding)

    def _take_expected(self, user: UserState, appended: Appended) -> None:
        """Where what was written is what was expected, its steps are those that are under way."""
        expected, user.expected = user.expected, None
        if expected is None or user.advancing is not None:
            return
        if (expected.before, expected.events) != (appended.before, tuple(appended.events)):
            return
        user.patient = False
        user.advancing = asyncio.create_task(self._take(user, expected.encoding, len(user.items), user.generation))
        user.advancing.add_done_callback(partial(_over, user))

    @staticmethod
    async def _take(user: UserState, encoding: Awaitable[Encoded], count: int, generation: int) -> None:
        """Keep what comes of an encoding of the first `count` events, if these are still what happened."""
        encoded = await encoding
        if user.generation == generation and count >= user.encoded_count:
            user.advance(encoded, count)

    async def _advanced(self, user: UserState, top_n: int, timeout_s: float, patient: bool) -> None:
        """Wait for the user's next steps; they go on, and are kept, when this caller's time is over."""
        if user.advancing is None or user.advancing.done():
            user.patient = patient
            user.advancing = asyncio.create_task(self._advance(user, top_n))
            user.advancing.add_done_callback(partial(_over, user))
        user.patient &= patient
        advancing = user.advancing  # whoever is woken first may begin the next one
        done, _ = await asyncio.wait((advancing,), timeout=max(timeout_s, 0.0))
        if not done:
            raise DeadlineExceeded(f"the encoder did not answer within {timeout_s:.3f} s")
        advancing.result()

    async def _advance(self, user: UserState, top_n: int) -> None:
        start, generation = user.encoded_count, user.generation
        end = min(len(user.items), start + MAX_STEP_EVENTS)
        if end == len(user.items) and end - start > KEPT_FAR_EVENTS and not user.patient:
            end -= KEPT_NEAR_EVENTS  # so that a state is kept shortly before the end
        state = user.state()
        steps = steps_between(user, start, end, (), self._zeros if state is None else state, top_n)
        encoding = self._encoder.encode(steps, self._step_timeout_s, lambda: user.patient)
        await self._take(user, encoding, end, generation)

    async def _read(self, owner: str) -> UserState | None:
        """Bring an entry up to what the log says; none when the owner is only another name.

        Whoever asks meanwhile waits for it, so what is being read need not be right before the end.
        """
        while True:
            self._outdated.discard(owner)
            self._forgotten.discard(owner)
            known = self._known(owner)
            try:
                history = await self._store.history(owner, known)
            except BaseException:
                self._outdated.add(owner)
                raise
            if owner in self._forgotten:
                continue
            if history.owner != owner:
                self._remember_name(owner, history.owner)
                return None
            user = await self._taken(history, known)
            if owner in self._forgotten:
                self._users.pop(owner, None)
            elif user is not None and owner not in self._outdated:
                return user

    async def _asked(self, name: str) -> UserState:
        """Bring an entry up to what a log says that others write to as well."""
        while True:
            stamp = self._looked()
            known = self._known(self._merged.get(name, name))
            history = await self._store.history(name, known)
            if history.owner != name:
                self._remember_name(name, history.owner)
            else:
                self._forget_name(name)
            user = await self._taken(history, known)
            if user is not None:
                self._outdated.discard(user.owner)
                if stamp is not None and stamp == self._stamp:
                    self._fresh.add(name)
                else:  # it took so long that another reading may have been there first, and knows more
                    self._fresh.difference_update((name, user.owner, *self._names.get(user.owner, ())))
                return user

    def _looked(self) -> object:
        """The stamp that a shared log has now; what was fresh under another one is so no more."""
        stamp = self._store.stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            self._fresh.clear()
        return stamp

    def _known(self, owner: str) -> Known | None:
        user = self._users.get(owner)
        return None if user is None else Known(owner, user.version)

    async def _taken(self, history: History, known: Known | None) -> UserState | None:
        """The entry with what was read; none when it has changed meanwhile and must be read again."""
        self._observer.state_lookup("miss" if history.whole else "hit")
        user = self._users.get(history.owner)
        unchanged = user is not None and known == (history.owner, user.version)
        if history.whole:
            if user is not None and not unchanged and user.version >= history.version:
                return user
            user = await self._built(history)
            if history.owner in self._forgotten:
                return None
            self._users[history.owner] = user
            while len(self._users) > self._capacity:
                dropped, _ = self._users.popitem(last=False)
                self._outdated.discard(dropped)
        elif user is None:
            return None
        elif unchanged and user.many_late(history.events):
            del self._users[history.owner]
            return None
        elif unchanged:
            self._extend(user, history.events, history.version)
        elif user.version < history.version:
            return None
        if history.owner in self._users:
            self._users.move_to_end(history.owner)
        return user

    def _end_reading(self, owner: str, _: asyncio.Task[UserState | None]) -> None:
        del self._reading[owner]
        self._forgotten.discard(owner)
        if owner not in self._users:
            self._outdated.discard(owner)

    async def _built(self, history: History) -> UserState:
        """A new entry; a long one is made aside, so that others have their turn."""
        user = UserState(history.owner, history.version)
        if len(history.events) > MANY_EVENTS:
            await asyncio.to_thread(self._extend, user, history.events, history.version)
        else:
            self._extend(user, history.events, history.version)
        for saved in self._saved:
            encoded = saved.find(user.owner, user.version, len(user.items))
            if encoded is not None:
                user.advance(encoded, len(user.items))
                break
        return user

    def _extend(self, user: UserState, events: Sequence[Event], version: Version) -> None:
        numbers = [self._snapshot.catalog.number(event.item_id) for event in events]
        times = [*user.times[-1:], *[event.time_s for event in events]]
        if _ascending(times):
            user.append(events, numbers)
        else:
            for event, number in zip(events, numbers, strict=True):
                user.add(event, number)
        user.version = version

    def _remember_name(self, name: str, owner: str) -> None:
        self._forget_name(name)
        self._users.pop(name, None)
        self._merged[name] = owner
        self._names.setdefault(owner, set()).add(name)
        while len(self._merged) > self._capacity:
            self._forget_name(next(iter(self._merged)))

    def _forget_name(self, name: str) -> None:
        owner = self._merged.pop(name, None)
        if owner is not None:
            self._names[owner].discard(name)
            if not self._names[owner]:
                del self._names[owner]
