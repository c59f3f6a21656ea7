"""What the server knows of items now, under the numbers of one snapshot: what was stored, laid over the snapshot's own.

An item of the snapshot that was never stored is what the snapshot says, and may be recommended; of one that was stored
in part, the snapshot says the rest. Items that the snapshot does not know are kept too, in rows after its own: they
have no number in recommending, since nothing tells whom they suit. A part that gives them vectors would raise
`numbered` and take their rows as numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import PATH, Catalog
from longtide_server.items.item import Item
from longtide_server.items.item_columns import Facts, ItemColumns, Word, facts_of
from longtide_server.items.item_fields import laid_over
from longtide_server.items.item_filter import ItemFilter, size

KEPT_MASKS = 64
MAX_KEPT_SIZE = 1_000  # of a filter, whose names are kept with its mask
MANY_ROWS = 1_000  # to look at all of them is no slower, and needs no list of them


class LiveCatalog:
    """The items of one snapshot and of the store. Not for several threads at once."""

    def __init__(self, catalog: Catalog) -> None:
        self.revision = 0
        """Rises with every change of what filters, titles or availability say."""
        self.numbered = len(catalog)
        """I: rows 1 to I are the numbers of items in recommending."""
        self._catalog = catalog
        self._stored: dict[int, Facts | None] = {}
        """By row what was written; None of an item of the snapshot that was deleted."""
        self._rows_beyond: dict[str, int] = {}
        """The rows of items that the snapshot does not know."""
        self._free_rows: list[int] = []
        self._columns = ItemColumns(len(catalog) + 1)
        for number in range(1, len(catalog) + 1):
            self._columns.put(number, None, facts_of(self._snapshot_item(number)))
        self._masks: OrderedDict[ItemFilter, NDArray[np.bool_]] = OrderedDict()
        self._masks_of = 0
        """The revision that the masks are of."""
        self._offered = np.zeros(len(catalog) + 1, np.bool_)
        """(I + 1,) what may be recommended from `_since_s` until before `_until_s`, but for the rows `_outdated`."""
        self._offered_to_read = self._offered.view()
        self._offered_to_read.flags.writeable = False
        self._all_offered = False
        self._offer_revision = 0
        self._since_s = math.inf
        self._until_s = -math.inf
        self._outdated: list[int] = []
        self._beyond_revision = 0
        self._beyond_since_s, self._beyond_until_s = math.inf, -math.inf

    def row(self, item_id: str) -> int:
        """The row of an item, which is its number where it is at most `numbered`; 0 when it is unknown."""
        return self._catalog.number(item_id) or self._rows_beyond.get(item_id, 0)

    def apply(self, items: Sequence[Item], deleted: Sequence[str]) -> None:
        """Take up what was stored: the items as they are now, and the ids of those that are not there any more."""
        for item in items:
            row = self.row(item.item_id) or self._new_row(item.item_id)
            known = row <= len(self._catalog) and item.unwritten
            self._put(row, facts_of(laid_over(item, self._snapshot_item(row)) if known else item))
        for item_id in deleted:
            row = self.row(item_id)
            if row:
                self._put(row, None)
            if row > len(self._catalog):
                del self._rows_beyond[item_id], self._stored[row]
                self._free_rows.append(row)

    def beyond(self, rows: NDArray[np.int64], now_s: float, wanted: ItemFilter | None) -> NDArray[np.bool_]:
        """(R,) which of some rows (R,) beyond the snapshot's may be recommended at a moment, and pass a filter."""
        offered = self._columns.recommendable(rows, now_s)
        return offered if wanted is None else offered & self._kept_mask(wanted)[rows]

    def beyond_revision(self, now_s: float) -> int:
        """Rises when an item beyond the snapshot's is renamed, and when one may be recommended or may not any more."""
        if not self._beyond_since_s <= now_s < self._beyond_until_s:
            beyond = slice(self.numbered + 1, self._columns.rows)
            self._beyond_since_s, self._beyond_until_s = now_s, self._columns.next_change_s(beyond, now_s)
            self._beyond_revision += 1
        return self._beyond_revision

    def title_of(self, row: int) -> str:
        """What people read of an item beyond the snapshot's."""
        stored = self._stored.get(row)
        return "" if stored is None else stored.title

    def title(self, number: int) -> str:
        """What people read of an item; what the snapshot says where the stored item has no title."""
        stored = self._stored.get(number)
        return (stored.title if stored is not None else "") or self._catalog.info(number).title

    def words(self, number: int) -> Sequence[Word]:
        """What an item holds of categories, tags, brands and the like; nothing of one that was deleted."""
        facts = self._facts(number)
        return () if facts is None else facts.words

    def mask(self, wanted: ItemFilter) -> NDArray[np.bool_]:
        """(I + 1,) the numbers of the items that pass a filter; read only."""
        return self._kept_mask(wanted)[: self.numbered + 1]

    def _kept_mask(self, wanted: ItemFilter) -> NDArray[np.bool_]:
        """(rows,) as `row_mask`, from memory where nothing has changed; read only."""
        if self._masks_of != self.revision:
            self._masks.clear()
            self._masks_of = self.revision
        mask = self._masks.get(wanted)
        if mask is not None:
            self._masks.move_to_end(wanted)
            return mask
        mask = self.row_mask(wanted)
        mask.flags.writeable = False
        if size(wanted) <= MAX_KEPT_SIZE:
            self._masks[wanted] = mask
            if len(self._masks) > KEPT_MASKS:
                self._masks.popitem(last=False)
        return mask

    def row_mask(self, wanted: ItemFilter) -> NDArray[np.bool_]:
        """(rows,) the rows of the items that pass a filter, those beyond the numbers included."""
        return self._columns.passing(wanted)

    def recommendable(self, now_s: float) -> NDArray[np.bool_] | None:
        """(I + 1,) the numbers of the items that may be recommended at a moment; None where every item may.

        Read only, and to be read at once: the next change is made in it.
        """
        self._catch_up(now_s)
        return None if self._all_offered else self._offered_to_read

    def recommendable_count(self, now_s: float) -> int:
        """How many items may be recommended at a moment."""
        self._catch_up(now_s)
        return int(np.count_nonzero(self._offered))

    def offer_revision(self, now_s: float) -> int:
        """Rises when an item with a number is renamed, and when one may be recommended or may not any more."""
        self._catch_up(now_s)
        return self._offer_revision

    def _put(self, row: int, after: Facts | None) -> None:
        before = self._facts(row)
        if before == after:
            return
        self._columns.put(row, before, after)
        self._stored[row] = None if after is None else self._columns.sharing(after)
        self.revision += 1
        if row > self.numbered:
            self._beyond_until_s = -math.inf  # to be looked at anew
            return
        if before is None or after is None or before.title != after.title:
            self._offer_revision += 1
        if before is None or after is None or before.offer != after.offer:
            self._outdate(row)

    def _facts(self, row: int) -> Facts | None:
        """What a row says; None when it does not exist."""
        if row in self._stored:
            return self._stored[row]
        return facts_of(self._snapshot_item(row)) if row <= len(self._catalog) else None

    def _snapshot_item(self, number: int) -> Item:
        info = self._catalog.info(number)
        return Item(
            self._catalog.item_id(number),
            title=info.title,
            categories=tuple(tuple(path.split(PATH)) for path in info.categories),
            tags=info.tags,
            brand=info.brand,
            price=info.price,
            domain=info.domain,
        )

    def _new_row(self, item_id: str) -> int:
        row = self._free_rows.pop() if self._free_rows else self._columns.rows
        self._rows_beyond[item_id] = row
        return row

    def _outdate(self, row: int) -> None:
        self._outdated.append(row)
        if len(self._outdated) > MANY_ROWS:
            self._outdated.clear()
            self._until_s = -math.inf

    def _catch_up(self, now_s: float) -> None:
        """Let what may be recommended be that of a moment: all of it at a boundary in time, else what has changed."""
        if not self._since_s <= now_s < self._until_s:
            everything = slice(0, self.numbered + 1)
            self._take(everything, now_s)
            self._since_s, self._until_s = now_s, self._columns.next_change_s(everything, now_s)
        elif self._outdated:
            rows = np.unique(self._outdated)
            self._take(rows, now_s)
            self._since_s = now_s  # of these rows nothing is known before
            self._until_s = min(self._until_s, self._columns.next_change_s(rows, now_s))
        self._outdated.clear()

    def _take(self, rows: slice | NDArray[np.int64], now_s: float) -> None:
        offered = self._columns.recommendable(rows, now_s)
        if not np.array_equal(offered, self._offered[rows]):
            self._offered[rows] = offered
            self._offer_revision += 1
            self._all_offered = bool(self._offered[1:].all())
