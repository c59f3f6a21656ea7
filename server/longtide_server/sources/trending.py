"""What many people turn to at present: events counted so that an older one counts for less.

An event counts half as much after every half-life (an exponentially decaying count, Cormode, Korn & Tirthapura 2008).
All counts are kept relative to one moment, so nothing has to be done while nothing happens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import Catalog
from longtide_server.event_store import Written
from longtide_server.events import EventType
from longtide_server.sources.candidates import NOTHING, Scored, best_of

LARGEST_EXPONENT = 500.0  # of two: far from what a float cannot hold
MAX_BEYOND = 20_000  # new items that are counted, those to which most turn
MAX_HANDED_ON = 20_000  # items, again those to which most turn, and all others as one number
LEAST_HANDED_ON = 1e-6  # of an event


@dataclass(frozen=True, slots=True)
class Counts:
    """How many events count for each item at a moment."""

    at_s: float = 0.0
    """Seconds since 1970."""
    of: dict[str, float] = field(default_factory=dict)
    """By item id, each above 0."""
    rest: float = 0.0
    """Of all other items together."""


class Trending:
    """Counts the events that are written, by the items of one catalogue, and beyond it by new items."""

    def __init__(
        self, catalog: Catalog, clock: Callable[[], float], half_life_s: float = 86_400.0, before: Counts | None = None
    ) -> None:
        """clock: seconds since 1970. half_life_s: above 0. before: what another one had counted."""
        self._catalog = catalog
        self._clock = clock
        self._half_life_s = half_life_s
        self._since_s = clock()
        self._count = np.zeros(len(catalog) + 1)
        """(I + 1,) as counted at `_since_s`: what happens later counts for more than 1, what was before for less."""
        self._beyond: dict[str, float] = {}
        """The same by the ids of items that the catalogue does not have."""
        self._rest = 0.0
        """The same of items of which only that is known."""
        if before is not None:
            self._go_on(before)

    def apply(self, written: Written) -> None:
        """Count what is new."""
        now_s = self._clock()
        if now_s - self._since_s > LARGEST_EXPONENT * self._half_life_s:
            left = 0.5 ** min((now_s - self._since_s) / self._half_life_s, 1_000.0)
            self._count *= left
            self._rest *= left
            self._beyond = {item_id: count * left for item_id, count in self._beyond.items()}
            self._since_s = now_s
        of_all = (event for appended in written.appended.values() for event in appended.events)
        events = [event for event in of_all if event.type != EventType.DISLIKE]
        numbers = [self._catalog.number(event.item_id) for event in events]
        # A clock that is ahead must not make an event count for more than one that happens now.
        times = np.minimum([event.time_s for event in events], now_s)
        counts = np.exp2((times - self._since_s) / self._half_life_s)
        np.add.at(self._count, np.array(numbers, np.int64), counts)
        for event, number, count in zip(events, numbers, counts.tolist(), strict=True):
            if not number:
                self._beyond[event.item_id] = self._beyond.get(event.item_id, 0.0) + count
        self._count[0] = 0.0  # what is not in the catalogue
        if len(self._beyond) > MAX_BEYOND:
            self._beyond = dict(self._most(MAX_BEYOND // 2))

    def forget(self, names: Iterable[str]) -> None:
        """Counts hold no names: there is nothing to forget."""

    def votes(self, count: int) -> Scored:
        """The items to which most people turn, at most `count`, with their share of all that happens."""
        total = self._total()
        return best_of(self._count / total, count) if total else NOTHING

    def beyond(self, count: int) -> Mapping[str, float]:
        """The same of items that the catalogue does not have, by id."""
        total = self._total()
        return {item_id: said / total for item_id, said in self._most(count)}

    def present(self, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """(C,) how many events count at present for items (C,) of the catalogue."""
        left = 0.5 ** ((self._clock() - self._since_s) / self._half_life_s)
        return np.asarray(self._count[items] * left)

    def counts(self) -> Counts:
        """What has been counted, as it counts now, for another one to go on with."""
        now_s = self._clock()
        left = 0.5 ** ((now_s - self._since_s) / self._half_life_s)
        best = best_of(self._count, MAX_HANDED_ON)
        found = zip(best.items.tolist(), best.probability.tolist(), strict=True)
        known = ((self._catalog.item_id(number), count) for number, count in found)
        counted = {item_id: count * left for item_id, count in (*known, *self._beyond.items())}
        handed_on = {item_id: count for item_id, count in counted.items() if count >= LEAST_HANDED_ON}
        return Counts(now_s, handed_on, max(left * self._total() - sum(handed_on.values()), 0.0))

    def _go_on(self, before: Counts) -> None:
        left = 0.5 ** (max(self._since_s - before.at_s, 0.0) / self._half_life_s)
        self._rest = before.rest * left
        for item_id, count in before.of.items():
            number = self._catalog.number(item_id)
            if number:
                self._count[number] = count * left
            else:
                self._beyond[item_id] = count * left

    def _most(self, count: int) -> list[tuple[str, float]]:
        return heapq.nlargest(count, self._beyond.items(), key=itemgetter(1))

    def _total(self) -> float:
        return float(self._count.sum()) + sum(self._beyond.values()) + self._rest
