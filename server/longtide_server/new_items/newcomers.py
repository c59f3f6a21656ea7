"""Items that a snapshot has not learned, and their vectors: from what they are, moved by whom they please.

At first an item is where its content places it. Everybody who turns to it pulls it towards what they wanted at that
moment: its vector is the direction of PRIOR_EVENTS times the content's plus the sum of those people's query vectors,
the mean of a direction with a prior (Mardia & El-Atat 1976). Embeddings of known items are learned towards the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from longtide_server.users.unknown_items import hash_of

PRIOR_EVENTS = 5.0
MAX_NEWCOMERS = 20_000  # compared one by one at every answer: some milliseconds
FIRST_ROOM = 64
LEAST_HANDED_ON = 3  # events


@dataclass(frozen=True, slots=True)
class Pulled:
    """What people have done to a new item."""

    events: int
    """How many turned to it, 1 or more."""
    pull: bytes
    """(D,) float32: the sum of their query vectors."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What gives an item a place before others."""

    written_s: float = 0.0
    """When it was written last, seconds since 1970: where there are too many, the newest have places."""
    until_s: float = math.inf
    """From when on it may not be recommended any more, as far as is known; -inf where it may not already."""

    def at(self, now_s: float) -> tuple[bool, float]:
        """How strong it is at a moment: the greater of two is the stronger one."""
        return self.until_s > now_s, self.written_s


class Newcomers:
    """New items under numbers that follow those of a snapshot. The number of an item that has gone may be another's."""

    def __init__(self, first: int, dim: int, pulled: Mapping[str, Pulled] = MappingProxyType({})) -> None:
        """first: the first number; dim: the width D of vectors; pulled: what was done before, by item id."""
        self.first = first
        self._before = {item_id: one for item_id, one in pulled.items() if len(one.pull) == 4 * dim}
        """Of items that have not been put yet, or have given up their places."""
        self.revision = 0
        """Rises when an item comes, goes or is described anew."""
        self.events = np.zeros(FIRST_ROOM, np.int64)
        """(room,) how many people turned to each."""
        self.taken = np.zeros(FIRST_ROOM, np.int64)
        """(room,) the revision that was there when each item came: another one for whoever has the place next."""
        self.hashes = np.zeros(FIRST_ROOM, np.int64)
        """(room,) what stands for each item's id among those that a user has had."""
        self._written_s, self._until_s = np.full(FIRST_ROOM, np.inf), np.full(FIRST_ROOM, np.inf)
        """(room,) each one's claim; inf where there is none."""
        self._places_of, self._places = -1, np.zeros(0, np.int64)
        self._ids: list[str] = []
        self._place: dict[str, int] = {}
        self._free: list[int] = []
        """Places of items that have gone."""
        self._content = np.zeros((FIRST_ROOM, dim), np.float32)
        self._pull = np.zeros((FIRST_ROOM, dim), np.float32)
        self._vectors = np.zeros((FIRST_ROOM, dim), np.float32)

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._place

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D) by place, a number less `first`: of length 1, or zeros where an item has gone."""
        return self._vectors[: len(self._ids)]

    @property
    def content(self) -> NDArray[np.float32]:
        """(N, D) by place: where its content alone would have an item, of length 1; zeros where one has gone."""
        return self._content[: len(self._ids)]

    def places(self) -> NDArray[np.int64]:
        """(K,) the places of the items that are there, ascending. Not to be changed."""
        if self._places_of != self.revision:
            self._places_of = self.revision
            self._places = np.sort(np.fromiter(self._place.values(), np.int64, len(self._place)))
        return self._places

    def placed(self, item_ids: Iterable[str]) -> list[int]:
        """The places of those of some items that are there."""
        return [place for item_id in item_ids if (place := self._place.get(item_id)) is not None]

    def item_id(self, number: int) -> str:
        """The item that a number stands for."""
        return self._ids[number - self.first]

    def put(self, item_id: str, content: NDArray[np.float32], claim: Claim = Claim()) -> bool:
        """Place an item by its content (D,), of length 1; False when there are too many."""
        place = self._place.get(item_id)
        if place is None:
            if not self.has_room_for(item_id):
                return False
            place = self._place[item_id] = self._new_place(item_id)
            self.taken[place], self.hashes[place] = self.revision, hash_of(item_id)
        elif np.array_equal(self._content[place], content):
            self.renew(item_id, claim)
            return True
        self.renew(item_id, claim)
        before = self._before.pop(item_id, None)
        if before is not None:
            self._pull[place] = np.frombuffer(before.pull, np.float32)
            self.events[place] = before.events
        self._content[place] = content
        self._settle(place)
        self.revision += 1
        return True

    def has_room_for(self, item_id: str) -> bool:
        """Whether an item may be put."""
        return item_id in self._place or len(self._place) < MAX_NEWCOMERS

    def renew(self, item_id: str, claim: Claim) -> None:
        """An item, if it is there, has another claim."""
        place = self._place.get(item_id)
        if place is not None:
            self._written_s[place], self._until_s[place] = claim.written_s, claim.until_s

    def weakest(self, now_s: float) -> tuple[str, Claim]:
        """Of the items that are there, 1 or more, one with the weakest claim at a moment, and its claim."""
        over = self._until_s <= now_s
        place = int(np.argmax(over) if over.any() else np.argmin(self._written_s))
        return self._ids[place], Claim(float(self._written_s[place]), float(self._until_s[place]))

    def in_need(self, now_s: float) -> int:
        """How many of the items that are there may be recommended, now or later."""
        return len(self) - int(np.count_nonzero(self._until_s <= now_s))

    def give_up(self, item_id: str) -> None:
        """Let an item go that is there and may come back: what people have done to it is remembered."""
        place = self._place[item_id]
        done = Pulled(int(self.events[place]), self._pull[place].tobytes())
        self.remove(item_id)
        if done.events >= LEAST_HANDED_ON:
            self._before[item_id] = done
            if len(self._before) > MAX_NEWCOMERS:
                del self._before[next(iter(self._before))]

    def remove(self, item_id: str) -> None:
        """Let an item go, if it is there."""
        self._before.pop(item_id, None)
        place = self._place.pop(item_id, None)
        if place is not None:
            self._vectors[place] = self._pull[place] = self._content[place] = 0.0
            self._written_s[place] = self._until_s[place] = np.inf
            self.events[place] = 0
            self._free.append(place)
            self.revision += 1

    def please(self, item_id: str, query: NDArray[np.float32]) -> None:
        """Somebody whose query vector (D,) was this has turned to an item."""
        place = self._place.get(item_id)
        if place is not None:
            self._pull[place] += query
            self.events[place] += 1
            self._settle(place)

    def pulled(self) -> Callable[[], dict[str, Pulled]]:
        """What people have done to new items until now, by item id, for another run to go on with.

        It takes a while to put together, and may be anywhere. One or two events are left out: the sum would say too
        much of a person.
        """
        return partial(_pulled, dict(self._before), dict(self._place), self.events.copy(), self._pull.copy())

    def _settle(self, place: int) -> None:
        vector = PRIOR_EVENTS * self._content[place] + self._pull[place]
        length = float(np.linalg.norm(vector))
        self._vectors[place] = vector / length if length else 0.0

    def _new_place(self, item_id: str) -> int:
        if self._free:
            place = self._free.pop()
            self._ids[place] = item_id
            return place
        self._ids.append(item_id)
        self._make_room()
        return len(self._ids) - 1

    def _make_room(self) -> None:
        if len(self._ids) > len(self._vectors):
            wider = ((0, len(self._vectors)), (0, 0))
            self._content, self._pull, self._vectors = (
                np.pad(one, wider) for one in (self._content, self._pull, self._vectors)
            )
            self.events, self.taken, self.hashes = (
                np.pad(one, wider[0]) for one in (self.events, self.taken, self.hashes)
            )
            self._written_s, self._until_s = (
                np.pad(one, wider[0], constant_values=np.inf) for one in (self._written_s, self._until_s)
            )


def _pulled(
    before: Mapping[str, Pulled], place: Mapping[str, int], events: NDArray[np.int64], pull: NDArray[np.float32]
) -> dict[str, Pulled]:
    touched = {item_id: at for item_id, at in place.items() if events[at] >= LEAST_HANDED_ON}
    done = {item_id: Pulled(int(events[at]), pull[at].tobytes()) for item_id, at in touched.items()}
    return dict(islice({**done, **before}.items(), MAX_NEWCOMERS))
