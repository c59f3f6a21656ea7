"""Items that a user has had and the snapshot does not know. Any of them may become a new item that is recommended."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KEPT_LAST = 10
FEW = 32  # to put each in its place is faster than to sort all


def hash_of(item_id: str) -> int:
    """Of 64 bits, what stands for an item in this process: two of a user's do not meet."""
    return hash(item_id)


class UnknownItems:
    """Hashes of all of them, 8 bytes each, and the last ones by name. A reader of news has a hundred thousand."""

    __slots__ = ("_hashes", "last")

    def __init__(self) -> None:
        self._hashes = array("q")
        """Each once, ascending."""
        self.last: dict[str, float] = {}
        """Those that arrived last, the very last one at the end, and when they were had last, seconds since 1970."""

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, item_id: object) -> bool:
        if not isinstance(item_id, str):
            return False
        place = bisect.bisect_left(self._hashes, hash_of(item_id))
        return place < len(self._hashes) and self._hashes[place] == hash_of(item_id)

    def add(self, item_id: str, time_s: float) -> None:
        """Take note of an item and when it was had."""
        self._note_last(item_id, time_s)
        if item_id not in self:
            bisect.insort(self._hashes, hash_of(item_id))

    def add_all(self, items: Sequence[tuple[str, float]]) -> None:
        """The same of several items; many are sorted at once."""
        if len(items) <= FEW:
            for item_id, time_s in items:
                self.add(item_id, time_s)
            return
        found = set(self._hashes)
        for item_id, time_s in items:
            self._note_last(item_id, time_s)
            found.add(hash_of(item_id))
        self._hashes = array("q", sorted(found))

    def among(self, hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) which of some items' hashes (N,) are of these."""
        return np.isin(hashes, np.array(self._hashes, np.int64))

    def _note_last(self, item_id: str, time_s: float) -> None:
        self.last[item_id] = max(self.last.pop(item_id, time_s), time_s)
        if len(self.last) > KEPT_LAST:
            del self.last[next(iter(self.last))]
