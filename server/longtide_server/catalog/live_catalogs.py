"""Tells every live catalogue what was stored. Each snapshot at work has one; while one replaces another, two are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from longtide_server.catalog.catalog_writer import ItemCopies, Piece, one_by_one
from longtide_server.items.item import Item
from longtide_server.turns import Turns


class Together:
    """Several copies, told the same one after the other."""

    def __init__(self, *copies: ItemCopies) -> None:
        self._copies = copies

    def apply(self, items: Sequence[Item], deleted: Sequence[str]) -> None:
        """See ItemCopies."""
        for copies in self._copies:
            copies.apply(items, deleted)


class LiveCatalogs:
    """The live catalogues at work, and the way of a new one to what is stored."""

    def __init__(self, pages: Callable[[], AsyncIterator[Piece]]) -> None:
        """`pages` reads everything that is stored, in any order."""
        self._pages = pages
        self._catalogs: list[ItemCopies] = []
        self._changed: list[set[str]] = []
        """For each catalogue that is reading the pages, what has been stored since it began."""

    def apply(self, items: Sequence[Item], deleted: Sequence[str]) -> None:
        """Let what was stored count from the next request on: call it once it is durable, before that is answered."""
        for catalog in self._catalogs:
            catalog.apply(items, deleted)
        for changed in self._changed:
            changed.update(item.item_id for item in items)
            changed.update(deleted)

    async def add(self, catalog: ItemCopies) -> None:
        """Let a catalogue follow what is stored; returns once it knows all of it.

        What is stored while pages are read counts, and not what a page says of it, which may be older. Raises what
        reading the pages raises.
        """
        changed: set[str] = set()
        turns = Turns()
        self._catalogs.append(catalog)
        self._changed.append(changed)
        try:
            async for items, deleted in self._pages():
                for some, gone in one_by_one(items, deleted):
                    catalog.apply(
                        [item for item in some if item.item_id not in changed],
                        [item_id for item_id in gone if item_id not in changed],
                    )
                    await turns.pause()
        except BaseException:
            self.remove(catalog)
            raise
        finally:
            self._changed = [one for one in self._changed if one is not changed]

    def remove(self, catalog: ItemCopies) -> None:
        """Tell a catalogue nothing any more."""
        self._catalogs = [one for one in self._catalogs if one is not catalog]
