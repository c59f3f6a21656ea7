"""The catalogue as tables of SQLite: every statement, as functions on a connection, each inside a transaction.

An item is one row, at the revision of its last change: a change moves the row to the end of the table. So the table
itself is the list of changes, and as one writes at a time, no reader sees a revision before those below it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from longtide_server.catalog_store import PIECE_BYTES, Changes, ItemPage, Refused, Revision, Upserted
from longtide_server.catalog_store.records import from_record, told_apart
from longtide_server.catalog_store.writes import VECTORS, Sent, Write, merged, vector_violation
from longtide_server.errors import FieldViolation
from longtide_server.items.item import Item
from longtide_server.items.item_fields import Fields

SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
  revision INTEGER PRIMARY KEY,           -- of the last change
  item_id TEXT NOT NULL UNIQUE,           -- compared byte by byte
  record BLOB                             -- null when the item was deleted
);
CREATE TABLE IF NOT EXISTS vector_sizes (
  field TEXT PRIMARY KEY,
  size INTEGER NOT NULL
) WITHOUT ROWID;
"""
UPSERT = (
    "INSERT INTO items (revision, item_id, record) VALUES (?, ?, ?) "
    "ON CONFLICT (item_id) DO UPDATE SET revision = excluded.revision, record = excluded.record"
)
STAMP = "SELECT coalesce(max(revision), 0) FROM items"
"""Whether an item has changed."""
ANY_ITEM = "SELECT 1 FROM items WHERE record IS NOT NULL LIMIT 1"
NEXT_PAGE = "SELECT item_id, record FROM items WHERE item_id > ? AND record IS NOT NULL ORDER BY item_id LIMIT ?"
NEXT_CHANGES = "SELECT item_id, record, revision FROM items WHERE revision > ? ORDER BY revision LIMIT ?"


def are_there(connection: sqlite3.Connection) -> bool:
    """Whether a catalogue was ever made in the file."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone() is not None


def upsert(
    connection: sqlite3.Connection, items: Sequence[Item], sent: Sequence[Sent], fields: Fields | None
) -> Upserted:
    """See CatalogStore.upsert; `sent` is what the items say on their own."""
    declared = dict(connection.execute("SELECT field, size FROM vector_sizes"))
    number = revision(connection).number
    refused = []
    for index, (item, alone) in enumerate(zip(items, sent, strict=True)):
        write = alone if fields is None else merged(_record(connection, item.item_id), item, fields)
        wrong = write if isinstance(write, FieldViolation) else _declare(connection, declared, write)
        if wrong is not None:
            refused.append(Refused(index, wrong))
        elif isinstance(write, Write):
            number += 1
            connection.execute(UPSERT, (number, write.item_id, write.record))
    return Upserted(len(items) - len(refused), refused)


def get(connection: sqlite3.Connection, item_id: str) -> Item | None:
    """See CatalogStore.get."""
    record = _record(connection, item_id)
    return None if record is None else from_record(item_id, record)


def page(connection: sqlite3.Connection, size: int, after: str) -> ItemPage:
    """See CatalogStore.page."""
    more = True
    while more:
        rows, more = _piece(connection.execute(NEXT_PAGE, (after, size + 1)), size)
        items, _ = told_apart(rows)
        if items:
            return ItemPage(items, more)
        after = rows[-1][0] if rows else after
    return ItemPage((), False)


def delete(connection: sqlite3.Connection, item_ids: Iterable[str]) -> int:
    """See CatalogStore.delete."""
    number = revision(connection).number
    deleted = 0
    for item_id in item_ids:
        found = connection.execute("SELECT record FROM items WHERE item_id = ?", (item_id,)).fetchone()
        if found == (None,):
            continue  # it is known to be deleted
        number += 1
        connection.execute(UPSERT, (number, item_id, None))
        deleted += found is not None
    if deleted and connection.execute(ANY_ITEM).fetchone() is None:
        connection.execute("DELETE FROM vector_sizes")  # with the last item, what it declared is gone
    return deleted


def changes(connection: sqlite3.Connection, since: Revision, limit: int) -> Changes:
    """See CatalogStore.changes. SQLite loses nothing, so nothing is restarted."""
    rows, more = _piece(connection.execute(NEXT_CHANGES, (since.number, limit + 1)), limit)
    items, deleted = told_apart((item_id, record) for item_id, record, _ in rows)
    return Changes(
        items=items,
        deleted=deleted,
        revision=Revision(rows[-1][2], rows[-1][0]) if rows else since,
        more=more,
    )


def revision(connection: sqlite3.Connection) -> Revision:
    """See CatalogStore.revision."""
    found = connection.execute("SELECT revision, item_id FROM items ORDER BY revision DESC LIMIT 1").fetchone()
    return Revision() if found is None else Revision(*found)


def _record(connection: sqlite3.Connection, item_id: str) -> bytes | None:
    """What is stored of an item; none when it was never written, or was deleted."""
    found = connection.execute("SELECT record FROM items WHERE item_id = ?", (item_id,)).fetchone()
    return None if found is None else found[0]


def _piece(rows: Iterable[tuple[Any, ...]], limit: int) -> tuple[list[tuple[Any, ...]], bool]:
    """The first rows, fewer where their records are large; and whether there are others. The record comes second."""
    taken: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        if len(taken) == limit or size >= PIECE_BYTES:
            return taken, True
        taken.append(row)
        size += len(row[1] or b"")
    return taken, False


def _declare(connection: sqlite3.Connection, declared: dict[str, int], write: Write) -> FieldViolation | None:
    """Have the vectors of an item declare their sizes, or say which one is not of the size that was declared."""
    sizes = dict(zip(VECTORS, write.vector_sizes, strict=True))
    for index, (field, size) in enumerate(sizes.items()):
        if size and declared.get(field, size) != size:
            return vector_violation(index, size, declared[field])
    for field, size in sizes.items():
        if size and field not in declared:
            declared[field] = size
            connection.execute("INSERT INTO vector_sizes VALUES (?, ?)", (field, size))
    return None
