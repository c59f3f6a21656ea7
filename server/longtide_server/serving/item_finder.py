"""Which of the items that may be recommended now are like an item: similarity joined with the live catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.errors import NotFound
from longtide_server.items.item_filter import ItemFilter
from longtide_server.new_items.new_items import NewItems
from longtide_server.snapshot import Snapshot
from longtide_server.sources.similar_items import Basis, Found, SimilarItems, both


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """A valid request for similar items."""

    item_id: str
    limit: int = 10
    basis: Basis | None = None
    """What is compared; None for as much as is known."""
    item_filter: ItemFilter | None = None
    exclude_item_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SimilarItem:
    """An item that is like another."""

    item_id: str
    title: str
    similarity: float
    """Cosine, -1 to 1."""


@dataclass(frozen=True, slots=True)
class FoundItems:
    """What is like an item."""

    items: tuple[SimilarItem, ...]
    """The most similar first."""
    basis: Basis
    """What was compared."""
    degraded_reason: str
    """Why items that were taken away may be among them; empty when none can."""


class ItemFinder:
    """Answers for one snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        similar: SimilarItems,
        live: LiveCatalog,
        new: NewItems,
        clock: Callable[[], float],
        stale: Callable[[], str] = lambda: "",
    ) -> None:
        """`clock` gives seconds since 1970, `stale` says why `live` may be out of date; empty when it is not."""
        self._catalog = snapshot.catalog
        self._similar = similar
        self._live = live
        self._new = new
        self._clock = clock
        self._stale = stale

    async def find(self, query: ItemQuery) -> FoundItems:
        """The items most like an item. NotFound when it is unknown."""
        basis = self._similar.basis(query.basis)
        vector = self._vector(basis, query.item_id)
        left_out = (query.item_id, *query.exclude_item_ids)
        allowed = np.ones(len(self._catalog) + 1, np.bool_)
        allowed[0] = False
        allowed[self._catalog.numbers(left_out)] = False
        recommendable = self._live.recommendable(self._clock())
        if recommendable is not None:
            allowed &= recommendable
        if query.item_filter is not None:
            allowed &= self._live.mask(query.item_filter)
        new = self._new.that_may_appear(query.item_filter, None, left_out)
        taken = self._new.taken(new)
        (numbers, cosines), new_cosines = await asyncio.to_thread(
            self._search, basis, vector, allowed, new, query.limit
        )
        # Meanwhile an item may have been taken away, and its number be another's.
        there = np.isin(new, self._new.that_may_appear(query.item_filter, None, left_out))
        there &= self._new.taken(new) == taken
        new, new_cosines = new[there], new_cosines[there]
        order = np.argsort(-np.concatenate([cosines, new_cosines]), kind="stable")[: query.limit]
        numbers, cosines = np.concatenate([numbers, new])[order], np.concatenate([cosines, new_cosines])[order]
        found = (
            SimilarItem(*self._name(number), cosine)
            for number, cosine in zip(numbers.tolist(), cosines.tolist(), strict=True)
        )
        return FoundItems(tuple(found), basis, self._stale())

    def _search(
        self,
        basis: Basis,
        vector: NDArray[np.float32],
        allowed: NDArray[np.bool_],
        new: NDArray[np.int64],
        limit: int,
    ) -> tuple[Found, NDArray[np.float32]]:
        """The nearest of the allowed items (I + 1,), and the cosines (K,) of new items (K,)."""
        return self._similar.find(basis, vector, allowed, limit), _cosines(self._new, basis, new, vector)

    def _vector(self, basis: Basis, item_id: str) -> NDArray[np.float32]:
        """(any,) where an item is in a space."""
        number = self._catalog.number(item_id)
        if number:
            return self._similar.vector(basis, number)
        new = self._new.numbers([item_id])
        if not len(new):
            raise NotFound(f"the item {item_id!r} is not known")
        return _row(self._new, basis, new)

    def _name(self, number: int) -> tuple[str, str]:
        if number >= self._new.first:
            return self._new.name(number)
        return self._catalog.item_id(number), self._live.title(number)


def _row(new: NewItems, basis: Basis, number: NDArray[np.int64]) -> NDArray[np.float32]:
    """(any,) where one new item (1,) is in a space: it is placed among behaviour by its content, at first."""
    if basis is Basis.BEHAVIOR:
        return np.asarray(new.vectors(number)[0])
    content = new.content(number)
    return np.asarray((content if basis is Basis.CONTENT else both(new.vectors(number), content))[0])


def _cosines(
    new: NewItems, basis: Basis, numbers: NDArray[np.int64], vector: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(C,) of new items (C,) and a vector (any,) of a space."""
    if basis is Basis.BEHAVIOR:
        return new.cosines(numbers, vector)
    if basis is Basis.CONTENT:
        return new.content_cosines(numbers, vector)
    # Both parts of an item are of length 1, so the length of both together is known: no joined rows need be made.
    behavior, content = np.split(vector, [new.dim])
    return np.asarray((new.cosines(numbers, behavior) + new.content_cosines(numbers, content)) / np.sqrt(2), np.float32)
