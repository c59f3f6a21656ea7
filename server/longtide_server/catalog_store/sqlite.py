"""Items in the SQLite file of the events: one file to back up, written and shared as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from longtide_server.catalog_store import Changes, ItemPage, Revision, Upserted, sqlite_items
from longtide_server.catalog_store.writes import bytes_of, stamped, whole
from longtide_server.event_store.backlog import Backlog
from longtide_server.event_store.sqlite_file import SqliteFile
from longtide_server.items.item import Item
from longtide_server.items.item_fields import Fields

MAX_WAITING_BYTES = 64_000_000

T = TypeVar("T")


class SqliteCatalogStore:
    """A CatalogStore in a file, which others close."""

    def __init__(self, file: SqliteFile) -> None:
        """Make the tables where there are none, unless the file is only read. Unavailable when that cannot be."""
        self.shared = file.shared
        self._file = file
        self._backlog = Backlog(MAX_WAITING_BYTES, "bytes of items")
        file.add_tables(sqlite_items.SCHEMA)
        self._watch = file.watch(sqlite_items.STAMP) if file.shared else None

    def stamp(self) -> object:
        """See CatalogStore."""
        return None if self._watch is None else self._watch.stamp()

    async def upsert(self, items: Sequence[Item], fields: Fields | None, now_s: float) -> Upserted:
        """See CatalogStore. A batch is written whole, but for what is refused."""
        written = stamped(items, now_s)
        sent = [whole(item) for item in written]
        return await self._file.change(
            lambda connection: sqlite_items.upsert(connection, written, sent, fields),
            len(items),
            self._backlog,
            bytes_of(sent),
        )

    async def get(self, item_id: str) -> Item | None:
        """See CatalogStore."""
        return await self._read(lambda connection: sqlite_items.get(connection, item_id), None)

    async def page(self, size: int, after: str = "") -> ItemPage:
        """See CatalogStore."""
        return await self._read(lambda connection: sqlite_items.page(connection, size, after), ItemPage((), more=False))

    async def delete(self, item_ids: Sequence[str]) -> int:
        """See CatalogStore. A batch is deleted whole."""
        return await self._file.change(
            lambda connection: sqlite_items.delete(connection, item_ids),
            len(item_ids),
            self._backlog,
            sum(map(len, item_ids)),
        )

    async def changes(self, since: Revision, limit: int) -> Changes:
        """See CatalogStore."""
        nothing = Changes((), (), since, more=False)
        return await self._read(lambda connection: sqlite_items.changes(connection, since, limit), nothing)

    async def revision(self) -> Revision:
        """See CatalogStore."""
        return await self._read(sqlite_items.revision, Revision())

    async def _read(self, read: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        """What is read; nothing where the file is only read, and nobody ever made a catalogue in it."""

        def reading(connection: sqlite3.Connection) -> T:
            return read(connection) if self._file.writes or sqlite_items.are_there(connection) else nothing

        return await self._file.read(reading)
