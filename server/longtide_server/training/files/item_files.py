"""Reads files of items of any length, and writes them into the catalogue of a server.

A file changes what it has columns for, and nothing else of an item: one with an `item_id` and a `price` changes prices.

In text, categories stand between `|`, and a category may be a path, `Beauty > Skin care`; tags stand between `|` too.
JSON lines and Parquet may hold lists instead, of categories lists of names, which are taken as they are. Vectors are
lists of numbers and attributes objects, in CSV as JSON text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import longtide
from longtide import AsyncClient
from longtide_server.errors import FieldViolation, LogError
from longtide_server.items.item import Item, violation
from longtide_server.items.item_fields import Fields
from longtide_server.training.files.importing import BadRowsFile
from longtide_server.training.files.item_cells import COLUMNS, Cell, item_of, read_cell
from longtide_server.training.files.tables.columns import BadRow, Faults, Table, read_ids, shown
from longtide_server.training.files.tables.reading import read_pieces

PIECE_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class ItemPiece:
    """Some rows of a file."""

    items: Sequence[Item]
    """Valid, and each once: of several rows of an item it is the last."""
    rows: Sequence[int]
    """The row of each item."""
    fields: Fields
    """What the file says of them, by the contract's names."""
    repeated: int
    """Rows whose item a later row gives again."""
    bad: Sequence[BadRow]
    read_share: float
    """How much of the file has been read with it: 0 to 1."""


@dataclass(slots=True)
class ImportedItems:
    """What became of a file so far."""

    written: int = 0
    repeated: int = 0
    """Rows that a later row close by replaces."""
    bad: int = 0
    """Rows that could not be read, and items that were refused."""
    read_share: float = 0.0


async def import_items(
    path: Path,
    columns: Mapping[str, str],
    client: AsyncClient,
    bad_rows: BadRowsFile,
    report: Callable[[ImportedItems], None],
) -> ImportedItems:
    """Write every good row through a server, and the reasons of the others into a file; memory holds a piece."""
    done = ImportedItems()
    for piece in read_item_file(path, columns):
        fields = sorted(piece.fields)
        result = await client.upsert_items(map(sent_item, piece.items), fields)
        refused = [BadRow(piece.rows[error.index], error.field, error.reason) for error in result.errors]
        bad_rows.add(sorted([*piece.bad, *refused], key=lambda one: one.row))
        done.written += result.written_count
        done.repeated += piece.repeated
        done.bad += len(piece.bad) + len(refused)
        done.read_share = piece.read_share
        report(done)
    return done


def read_item_file(path: Path, columns: Mapping[str, str]) -> Iterator[ItemPiece]:
    """The rows of a CSV, JSON-lines (both also zipped) or Parquet file as items.

    `columns` maps our names to the file's where they differ: `item_id`, and some of `title`, `description`,
    `categories`, `genres` (more categories), `tags`, `brand`, `price`, `publish_time`, `expire_time` (seconds since
    1970, or ISO 8601), `available`, `language`, `text_vector`, `image_vector`, `attributes` and `domain`. LogError
    where the file or its columns are wrong.
    """
    known = tuple(COLUMNS)
    for table in read_pieces(path, ("item_id",), known, columns, PIECE_ROWS, option="--columns", nested=known):
        yield _piece(table)


def sent_item(item: Item) -> longtide.Item:
    """A domain item as the SDK has it."""
    return longtide.Item(
        item.item_id,
        item.title,
        description=item.description,
        categories=item.categories,
        tags=item.tags,
        brand=item.brand,
        price=item.price,
        publish_time=item.publish_time_s,
        expire_time=item.expire_time_s,
        available=item.available,
        language=item.language,
        text_vector=item.text_vector,
        image_vector=item.image_vector,
        attributes=item.attributes,
        domain=item.domain,
    )


def _piece(table: Table) -> ItemPiece:
    if len(table.rows) == 0:
        return ItemPiece((), (), Fields(), 0, tuple(table.lost), table.read_share)
    found = [name for name in COLUMNS if name in table.columns]
    if not found:
        raise LogError(f"{table.path}: has no column but item_id; it says nothing of its items")
    faults = Faults(table, max_details=len(table.rows) + len(table.lost))
    item_ids, item = read_ids(table.columns["item_id"], faults)
    good, bad = faults.found()
    read: dict[str, tuple[int, Item]] = {}
    wrong, repeated = list(bad.details), 0
    for place in np.flatnonzero(good).tolist():
        item_id, row = item_ids[item[place]], int(table.rows[place])
        cells = {name: table.columns[name].values[table.columns[name].codes[place]] for name in found}
        one = _item(item_id, cells)
        if isinstance(one, Item):
            repeated += item_id in read
            read[item_id] = (row, one)
        else:
            column = table.columns.get(one.field)
            wrong.append(BadRow(row, column.name if column else one.field, one.reason))
    return ItemPiece(
        items=[one for _, one in read.values()],
        rows=[row for row, _ in read.values()],
        fields=Fields(COLUMNS[name][0] for name in found),
        repeated=repeated,
        bad=sorted(wrong, key=lambda one: one.row),
        read_share=table.read_share,
    )


def _item(item_id: str, cells: Mapping[str, Cell]) -> Item | FieldViolation:
    """What a row says as a valid item, or what is wrong; of categories and genres, both together."""
    said: list[tuple[str, Any]] = []
    for name, cell in cells.items():
        try:
            said.append((name, read_cell(name, cell)))
        except ValueError as exc:
            return FieldViolation(name, f"{shown(cell)} is {exc}")
    item = item_of(item_id, said)
    return violation(item) or item
