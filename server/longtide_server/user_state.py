"""What the server remembers of each user between requests: history, seen items and encoder state, per snapshot.

A user's whole past is a fixed-size encoder state, so a new event costs one step whatever came before. An event that
arrives late, in time before others, makes the state of that user be computed again from the log. The log is the truth;
everything here is a bounded cache of it.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longtide_server.encoder import CoalescingEncoder, Encoded, Steps
from longtide_server.event_store import EventStore, Written
from longtide_server.events import Event, EventType
from longtide_server.snapshot import Snapshot

TOP_N_MARGIN = 200
VIEW = int(EventType.VIEW)


@dataclass(slots=True, eq=False)
class UserState:
    """One user. Items are catalogue numbers; events on items that the snapshot does not know are left out."""

    times: list[float] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    encoded: Encoded | None = None
    """The user after the first `encoded_count` events."""
    encoded_count: int = 0
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
                self.encoded, self.encoded_count = None, 0

    def recent(self, count: int, session: Sequence[int]) -> NDArray[np.int64]:
        """The last items in time order, those of the session after the written ones."""
        return np.array([*self.items[-count:], *session][-count:], np.int64)


def steps_between(user: UserState, start: int, session: Sequence[int], state: NDArray[np.float32], top_n: int) -> Steps:
    """The events from `start` on, then the items of the session as views without a gap."""
    times = np.array(user.times[max(start - 1, 0) :], np.float64)
    gaps = np.diff(times, prepend=times[:1])[(1 if start else 0) :]
    quiet = [0.0] * len(session)
    return Steps(
        items=np.array([*user.items[start:], *session], np.int32),
        types=np.array([*user.types[start:], *([VIEW] * len(session))], np.uint8),
        gaps=np.array([*gaps, *quiet], np.float32),
        values=np.array([*user.values[start:], *([float("nan")] * len(session))], np.float32),
        state=state,
        top_n=top_n,
    )


class UserStates:
    """The states of recent users under one snapshot, at most `capacity` of them."""

    def __init__(self, snapshot: Snapshot, store: EventStore, encoder: CoalescingEncoder, capacity: int) -> None:
        self._snapshot = snapshot
        self._store = store
        self._encoder = encoder
        self._capacity = capacity
        self._users: OrderedDict[str, UserState] = OrderedDict()
        self._loading: dict[str, asyncio.Task[UserState]] = {}
        self._outdated: set[str] = set()
        """Users of whom something was written while they were being read from the log."""
        self._zeros = np.zeros(snapshot.manifest.encoder.state_size, np.float32)

    async def get(self, user_id: str) -> UserState:
        """The user, from memory or from the log. Unavailable when the log cannot be read."""
        user = self._users.get(user_id)
        if user is not None:
            self._users.move_to_end(user_id)
            return user
        loading = self._loading.get(user_id)
        if loading is None:
            loading = self._loading[user_id] = asyncio.create_task(self._load(user_id))
        return await asyncio.shield(loading)

    def apply(self, events: Iterable[Event], written: Written) -> None:
        """Let written events be felt: call it once they are durable, before the write is answered.

        When some of them were duplicates, only the log knows which: their users are read from it again.
        """
        for event in events:
            if event.user_id in self._loading:
                self._outdated.add(event.user_id)
            elif written.duplicates:
                self._users.pop(event.user_id, None)
            elif (user := self._users.get(event.user_id)) is not None:
                user.add(event, self._snapshot.catalog.number(event.item_id))

    async def encoded(self, user: UserState, session: Sequence[int], top_n: int, timeout_s: float) -> Encoded | None:
        """The user after every event and the session's items; None when there are none.

        Only events that the kept state has not seen are encoded, and the result without the session is kept.
        EncoderUnavailable, DeadlineExceeded or Overloaded when the encoder cannot answer.
        """
        if len(user.items) > user.encoded_count:
            await self._advance(user, top_n, timeout_s)
        if session:
            state = self._zeros if user.encoded is None else user.encoded.state
            return await self._encoder.encode(steps_between(user, len(user.items), session, state, top_n), timeout_s)
        return user.encoded

    async def _advance(self, user: UserState, top_n: int, timeout_s: float) -> None:
        count, generation = len(user.items), user.generation
        state = self._zeros if user.encoded is None else user.encoded.state
        steps = steps_between(user, user.encoded_count, (), state, top_n)
        encoded = await self._encoder.encode(steps, timeout_s)
        if user.generation == generation and count >= user.encoded_count:
            user.encoded, user.encoded_count = encoded, count

    async def _load(self, user_id: str) -> UserState:
        try:
            while True:
                self._outdated.discard(user_id)
                events = await self._store.history(user_id)
                if user_id not in self._outdated:
                    break
            user = UserState()
            for event in events:
                user.add(event, self._snapshot.catalog.number(event.item_id))
            self._users[user_id] = user
            while len(self._users) > self._capacity:
                self._users.popitem(last=False)
            return user
        finally:
            self._outdated.discard(user_id)
            del self._loading[user_id]
