"""Which of the items that may be recommended now are like an item: similarity joined with the live catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longtide_server.errors import NotFound
from longtide_server.item_filter import ItemFilter
from longtide_server.live_catalog import LiveCatalog
from longtide_server.similar_items import Basis, SimilarItems
from longtide_server.snapshot import Snapshot


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


class ItemFinder:
    """Answers for one snapshot."""

    def __init__(
        self, snapshot: Snapshot, similar: SimilarItems, live: LiveCatalog, clock: Callable[[], float]
    ) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog = snapshot.catalog
        self._similar = similar
        self._live = live
        self._clock = clock

    async def find(self, query: ItemQuery) -> tuple[tuple[SimilarItem, ...], Basis]:
        """The items most like an item, most similar first, and what was compared. NotFound when it is unknown."""
        number = self._catalog.number(query.item_id)
        if not number:
            raise NotFound(f"the snapshot does not know the item {query.item_id!r}")
        allowed = np.ones(len(self._catalog) + 1, np.bool_)
        allowed[0] = False
        allowed[self._catalog.numbers(query.exclude_item_ids)] = False
        recommendable = self._live.recommendable(self._clock())
        if recommendable is not None:
            allowed &= recommendable
        if query.item_filter is not None:
            allowed &= self._live.mask(query.item_filter)
        basis = self._similar.basis(query.basis)
        numbers, cosines = await asyncio.to_thread(self._similar.find, basis, number, allowed, query.limit)
        found = (
            SimilarItem(self._catalog.item_id(one), self._live.title(one), cosine)
            for one, cosine in zip(numbers.tolist(), cosines.tolist(), strict=True)
        )
        return tuple(found), basis
