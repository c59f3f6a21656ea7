"""New items as candidates: which of them may appear, and what the sources say of them.

They are not in the snapshot, so only what reads their vectors knows them: the encoder, and content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.encoder import Encoded
from longtide_server.items.item_filter import ItemFilter
from longtide_server.new_items.exploration import draws_of
from longtide_server.new_items.newcomers import Newcomers
from longtide_server.snapshot import Snapshot
from longtide_server.sources.candidates import Candidates, Source
from longtide_server.sources.content_source import Profile
from longtide_server.users.unknown_items import UnknownItems
from longtide_server.users.user_state import UserState

CONSIDERED = 100  # more than are asked for


class NewItems:
    """The new items of one snapshot, for whoever asks."""

    def __init__(
        self,
        newcomers: Newcomers,
        live: LiveCatalog,
        temperature: float,
        clock: Callable[[], float],
    ) -> None:
        """temperature: the encoder's; `clock` gives seconds since 1970."""
        self._newcomers = newcomers
        self._live = live
        self._temperature = temperature
        self._clock = clock
        self._rows = (-1, np.zeros(0, np.int64))
        """The revision of the newcomers, and by place their rows in the live catalogue."""

    def __len__(self) -> int:
        return len(self._newcomers)

    @property
    def first(self) -> int:
        """The first number of a new item."""
        return self._newcomers.first

    @property
    def dim(self) -> int:
        """The width D of vectors."""
        return int(self._newcomers.vectors.shape[1])

    def name(self, number: int) -> tuple[str, str]:
        """The id and the title of a new item."""
        item_id = self._newcomers.item_id(number)
        return item_id, self._live.title_of(self._live.row(item_id))

    def numbers(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The numbers of those of some items that are new ones, ascending, none twice."""
        return np.unique(np.array(self._newcomers.placed(item_ids), np.int64)) + self.first

    def events(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(C,) how many people turned to each of some new items (C,)."""
        return self._newcomers.events[numbers - self.first]

    def vectors(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """(C, D) where new items (C,) are among what people turn to; of length 1."""
        return self._newcomers.vectors[numbers - self.first]

    def content(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """(C, D) where their content alone would have them; of length 1."""
        return self._newcomers.content[numbers - self.first]

    def taken(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(C,) for each number (C,) another one for every item that it has stood for."""
        return self._newcomers.taken[numbers - self.first]

    def cosines(self, numbers: NDArray[np.int64], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C,) of the vectors of new items (C,) and one of length 1 (D,).

        To be asked from any thread: of an item that changes meanwhile, a part may be old.
        """
        return np.asarray((self._newcomers.vectors @ query)[numbers - self.first])

    def content_cosines(self, numbers: NDArray[np.int64], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same of where their content alone would have them."""
        return np.asarray((self._newcomers.content @ query)[numbers - self.first])

    def revision(self, now_s: float) -> tuple[int, int]:
        """Changes whenever others may appear."""
        return self._live.beyond_revision(now_s) if len(self) else 0, self._newcomers.revision

    def that_may_appear(
        self,
        item_filter: ItemFilter | None,
        included: Sequence[str] | None,
        excluded: Iterable[str],
        had: UnknownItems | None = None,
    ) -> NDArray[np.int64]:
        """(K,) the numbers of those that may, ascending; `included` is what alone may appear; None: all.

        `had`: what the user has had, and is excluded as well.
        """
        new = self._newcomers
        places = new.places()
        allowed = np.zeros(len(new.vectors), np.bool_)
        allowed[places] = self._live.beyond(self._live_rows()[places], self._clock(), item_filter)
        if included is not None:
            inside = np.zeros(len(new.vectors), np.bool_)
            inside[new.placed(included)] = True
            allowed &= inside
        allowed[new.placed(excluded)] = False
        if had:
            allowed[places] &= ~had.among(new.hashes[places])
        return np.flatnonzero(allowed) + self.first

    def most_suitable(
        self, numbers: NDArray[np.int64], user: UserState, encoded: Encoded | None, profile: Profile | None, limit: int
    ) -> NDArray[np.int64]:
        """Of many (K,) those worth ranking, ascending; any, drawn for the user, where nothing says whom they suit."""
        most, places = limit + CONSIDERED, numbers - self.first
        if len(numbers) <= most:
            return numbers
        if encoded is None and profile is None:
            return np.sort(draws_of(user.owner, user.version.position).permutation(numbers)[:most])
        suits = np.zeros(len(numbers), np.float32)
        if encoded is not None:
            suits += (self._newcomers.vectors @ encoded.query)[places]
        if profile is not None:
            suits += (self._newcomers.content @ profile.mean)[places]
        return np.sort(numbers[np.argpartition(-suits, most)[:most]])

    def candidates(
        self,
        numbers: NDArray[np.int64],
        encoded: Encoded | None,
        profile: Profile | None,
        likeliest: float,
        trending: Mapping[str, float],
    ) -> Candidates:
        """What is said of new items (C,). likeliest: what the encoder says of the best of the others.

        New items are where people are, and not, as learned items, away from all whom they do not suit: the best of
        them is as likely as the best of the others.
        """
        probability = np.zeros((len(numbers), len(Source)))
        if encoded is not None:
            cosine = (self.vectors(numbers) @ encoded.query).astype(np.float64)
            said = np.exp(cosine / self._temperature - encoded.log_z)
            probability[:, Source.ENCODER - 1] = np.minimum(said, likeliest)
        if profile is not None:
            probability[:, Source.CONTENT - 1] = profile.of(self.content(numbers))
        if trending:
            ids = (self._newcomers.item_id(number) for number in numbers.tolist())
            probability[:, Source.TRENDING - 1] = [trending.get(item_id, 0.0) for item_id in ids]
        return Candidates(numbers, probability)

    def _live_rows(self) -> NDArray[np.int64]:
        """By place, rows in the live catalogue."""
        new = self._newcomers
        revision, rows = self._rows
        if revision != new.revision:
            ids = [new.item_id(place + new.first) for place in range(len(new.vectors))]
            rows = np.array([self._live.row(item_id) for item_id in ids], np.int64)
            self._rows = new.revision, rows
        return rows


def none_new(snapshot: Snapshot, live: LiveCatalog, clock: Callable[[], float]) -> NewItems:
    """Of a snapshot beside which no item is read."""
    encoder = snapshot.manifest.encoder
    return NewItems(Newcomers(len(snapshot.catalog) + 1, encoder.dim), live, encoder.temperature, clock)
