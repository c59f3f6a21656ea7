"""What the server remembers of its users between requests, per snapshot.

The log is the truth; everything here is a bounded cache of it, whose every entry knows the version of the history that
it shows. What this server writes is added as it is written; where others write to the same log too, it is asked for
news before an entry is used, unless its stamp says that there can be none.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from functools import partial

from longtide_server.encoder import Encoded
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.event_store import Histories, History, Known, Version, Written
from longtide_server.events import Event
from longtide_server.observer import NOBODY, Observer
from longtide_server.snapshot import Snapshot
from longtide_server.users.encodings import Encodings, heard
from longtide_server.users.names import Names
from longtide_server.users.state_file import SavedStates, StateRow
from longtide_server.users.user_state import UserState

MAX_STEPS_AHEAD = 32  # more are a history that has just been loaded, which nobody may ever ask for
MANY_EVENTS = 5_000  # to add them takes some milliseconds


def _ascending(times: list[float]) -> bool:
    return times == sorted(times)


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
        self._saved = saved
        self._snapshot = snapshot
        self._store = store
        self._encodings = Encodings(encoder, snapshot.manifest.encoder.state_size, step_timeout_s)
        self._capacity = capacity
        self._observer = observer
        self._users: OrderedDict[str, UserState] = OrderedDict()
        self._reading: dict[str, asyncio.Task[UserState | None]] = {}
        """Of a log that only this server writes to: the readings that all who ask for an owner share."""
        self._outdated: set[str] = set()
        """Owners whose entry lacks something that was written, or who were being read when it was."""
        self._forgotten: set[str] = set()
        """Owners who are being read, and of whom what is read may be of another history."""
        self._names = Names(capacity)
        self._stamp: object = None
        """Of a shared log, when it was looked at last."""
        self._fresh: set[str] = set()
        """Names whose owner's entry was brought up to what a shared log says, and it has not changed since."""

    def at_hand(self, name: str) -> UserState | None:
        """The owner of a history, where what is in memory is what the log says."""
        owner = self._names.owner(name)
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
        owner = self._names.owner(name)
        return self._users.get(owner) or self._nobody(owner)

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
            owner = self._names.owner(name)
            reading = self._reading.get(owner)
            if reading is None:
                reading = self._reading[owner] = asyncio.create_task(self._read(owner))
                reading.add_done_callback(heard)
                reading.add_done_callback(partial(self._end_reading, owner))
            user = await asyncio.shield(reading)
            if user is not None:
                return user

    def forget(self, names: Iterable[str]) -> None:
        """Read histories anew when they are asked for: the log has changed otherwise than by being written."""
        named = {one for name in names for one in (name, self._names.owner(name))}
        for name in named.union(*(self._names.of(owner) for owner in named)):
            self._names.forget(name)
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
                self._encodings.take_expected(user, appended)
            elif user is not None or owner in self._reading:
                self._outdated.add(owner)

    def expect(self, owner: str, events: Sequence[Event]) -> None:
        """Take the steps of events that are being written, of a user whose state is fresh, while that goes on.

        Nothing is felt of them before `apply`, and nothing at all if they are not written.
        """
        user = self._users.get(self._names.owner(owner))
        if user is None or user.owner in self._outdated or not self._encodings.may_expect(user):
            return
        numbers = [self._snapshot.catalog.number(event.item_id) for event in events]
        times = [*user.times[-1:], *[event.time_s for event in events]]
        if all(numbers) and _ascending(times):
            self._encodings.expect(user, events, numbers)

    def settle(self, owner: str, events: Sequence[Event]) -> None:
        """Forget what was expected of these events: they have been written, or will not be."""
        user = self._users.get(self._names.owner(owner))
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
            await self._encodings.step(user)

    async def encoded(
        self, user: UserState, session: Sequence[int], top_n: int, timeout_s: float, *, patient: bool = False
    ) -> Encoded | None:
        """The user after every event and the session's items: see `Encodings.encoded`."""
        return await self._encodings.encoded(user, session, top_n, timeout_s, patient=patient)

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
                self._remember(owner, history.owner)
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
            known = self._known(self._names.owner(name))
            history = await self._store.history(name, known)
            if history.owner != name:
                self._remember(name, history.owner)
            else:
                self._names.forget(name)
            user = await self._taken(history, known)
            if user is not None:
                self._outdated.discard(user.owner)
                if stamp is not None and stamp == self._stamp:
                    self._fresh.add(name)
                else:  # it took so long that another reading may have been there first, and knows more
                    self._fresh.difference_update((name, user.owner, *self._names.of(user.owner)))
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
        user = self._nobody(history.owner, history.names)
        user.version = history.version
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

    def _nobody(self, owner: str, names: Iterable[str] = ()) -> UserState:
        """Somebody who has done nothing; `names`: of those who were merged into them."""
        known = (self._snapshot.owner_numbers.get(name) for name in (owner, *names))
        return UserState(owner, tuple(number for number in known if number is not None))

    def _extend(self, user: UserState, events: Sequence[Event], version: Version) -> None:
        numbers = [self._snapshot.catalog.number(event.item_id) for event in events]
        times = [*user.times[-1:], *[event.time_s for event in events]]
        if _ascending(times):
            user.append(events, numbers)
        else:
            for event, number in zip(events, numbers, strict=True):
                user.add(event, number)
        user.version = version

    def _remember(self, name: str, owner: str) -> None:
        """The name is another one of an owner, and so has no entry of its own."""
        self._users.pop(name, None)
        self._names.remember(name, owner)
