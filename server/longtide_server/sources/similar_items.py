"""Which items are like an item: by what people do with them, by what they are, or by both.

Every way of comparing is a space in which an item is a vector of length 1. A space is searched through an index that
is built in the background; until it is there, and where only few items may appear, every item is compared.
"""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.neighbors import VectorIndex

TREES = 20
COMPARED_AT_MOST = 4_096  # rows of a space are compared one by one: that takes less than a millisecond
COMPARED_AT_ONCE = 4_096  # where all are: they are copied, and a space may be larger than the memory that is left
FETCHED_MORE = (4, 16)  # times as many as are asked for, while too few of them may appear


class Basis(enum.IntEnum):
    """What makes items alike. The numbers are those of the contract."""

    BEHAVIOR = 1
    CONTENT = 2
    BOTH = 3


Spaces = Mapping[Basis, NDArray[np.float32]]
"""(I + 1, any) vectors of length 1 by item number, zeros for items that a space says nothing of; row 0 is padding."""

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""The numbers (K,) of items, most similar first, and their cosines (K,)."""


def spaces_of(behavior: NDArray[np.float32], content: NDArray[np.float32] | None) -> Spaces:
    """The spaces of items' embeddings (I + 1, D) and of what their content says (I + 1, E), where that is known.

    In both together a cosine is the mean of the two cosines; an item that one says nothing of is found by the other.
    """
    if content is None:
        return {Basis.BEHAVIOR: behavior}
    return {Basis.BEHAVIOR: behavior, Basis.CONTENT: content, Basis.BOTH: both(behavior, content)}


def both(behavior: NDArray[np.float32], content: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (C, D) and (C, E) of items in the space of both together, (C, D + E)."""
    joined = np.concatenate([behavior, content], axis=1)
    length = np.linalg.norm(joined, axis=1, keepdims=True)
    return np.asarray(joined / np.maximum(length, 1e-12), np.float32)


class SimilarItems:
    """Finds items that are alike."""

    def __init__(self, spaces: Spaces) -> None:
        self._spaces = spaces
        self._indexes: dict[Basis, VectorIndex] = {}

    def basis(self, wanted: Basis | None) -> Basis:
        """What is compared where something is wanted that there may not be: by default as much as there is."""
        return wanted if wanted is not None and wanted in self._spaces else max(self._spaces)

    async def build(self) -> None:
        """Make the indexes, one after the other, beside whoever is answered meanwhile."""
        for basis, vectors in self._spaces.items():
            self._indexes[basis] = await _built(vectors)

    def vector(self, basis: Basis, item: int) -> NDArray[np.float32]:
        """(any,) of an item; zeros where the space says nothing of it."""
        return np.asarray(self._spaces[basis][item])

    def find(self, basis: Basis, vector: NDArray[np.float32], allowed: NDArray[np.bool_], limit: int) -> Found:
        """Of the allowed items (I + 1,) at most `limit` nearest to a vector of the space. Nothing is near to zeros."""
        if not vector.any():
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        few = int(np.count_nonzero(allowed)) <= COMPARED_AT_MOST
        index = self._indexes.get(basis)
        if index is not None and not few:
            for times in FETCHED_MORE:
                items, cosine = index.search(vector, times * limit + 1)
                kept = allowed[items]
                if np.count_nonzero(kept) >= limit:
                    return items[kept][:limit], cosine[kept][:limit]
        return _nearest(self._spaces[basis], vector, allowed, limit)


async def _built(vectors: NDArray[np.float32]) -> VectorIndex:
    """An index, built in a thread that nobody waits for when the process ends: a large one takes minutes."""
    loop = asyncio.get_running_loop()
    built: asyncio.Future[VectorIndex] = loop.create_future()

    def take(index: VectorIndex) -> None:
        if not built.done():
            built.set_result(index)

    def work() -> None:
        index = VectorIndex(vectors, TREES)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(take, index)

    threading.Thread(target=work, name="item-index", daemon=True).start()
    return await built


def _nearest(
    vectors: NDArray[np.float32], vector: NDArray[np.float32], allowed: NDArray[np.bool_], limit: int
) -> Found:
    """The same as `SimilarItems.find` by a comparison of every allowed item."""
    items, cosine = np.zeros(0, np.int64), np.zeros(0, np.float32)
    to_compare = np.flatnonzero(allowed)
    for at in range(0, len(to_compare), COMPARED_AT_ONCE):
        some = to_compare[at : at + COMPARED_AT_ONCE]
        rows = vectors[some]  # (C, any)
        known = rows.any(axis=1)
        items, cosine = np.append(items, some[known]), np.append(cosine, (rows @ vector)[known])
        order = np.argsort(-cosine, kind="stable")[:limit]
        items, cosine = items[order], cosine[order]
    return items, cosine
