"""Reads what a shop knows of its items, one row an item: an `item_id` and what the file has of the rest.

The rest is `title`, `categories`, `genres` and `description`, which is any longer text. Categories and genres are one
idea under two names: a file that has both gives an item the categories, then the genres.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog import ItemInfo
from longtide_server.training.tables import Faults, Scalar, Table, read_ids, read_table

_LABELS = ("categories", "genres")

Items = Mapping[str, ItemInfo]
"""By item id, in the file's order."""


def read_items(path: Path, columns: Mapping[str, str] = {}) -> Items:
    """The items of a CSV, JSON-lines (both also zipped) or Parquet file.

    `columns` maps our names to the file's where they differ. Categories are text split on `|`, or in JSON and Parquet
    a list of strings. The first bad row is a LogError; so is an item that two rows give.
    """
    table = read_table(path, ("item_id",), ("title", *_LABELS, "description"), columns, lists=_LABELS)
    faults = Faults(table)
    item_ids, item = read_ids(table.columns["item_id"], faults)
    _mark_repeated(table, item_ids, item, faults)
    faults.settle(skip_bad_rows=False)
    titles = [_text(value) for value in _cells(table, "title")]
    labels = zip(*(_cells(table, name) for name in _LABELS), strict=True)
    descriptions = [_text(value) for value in _cells(table, "description")]
    # Every row is good and no item is repeated, so the ids are one a row, in the rows' order.
    return {
        item_id: ItemInfo(title, _split(*map(_text, parts)), description)
        for item_id, title, parts, description in zip(item_ids, titles, labels, descriptions, strict=True)
    }


def _mark_repeated(table: Table, item_ids: list[str], item: NDArray[np.int32], faults: Faults) -> None:
    _, first, inverse = np.unique(item, return_index=True, return_inverse=True)
    first_row = table.rows[first[inverse]]
    faults.mark(
        table.columns["item_id"].name,
        first_row < table.rows,
        lambda n: f"{item_ids[item[n]]!r} is already the item of row {first_row[n]}",
    )


def _cells(table: Table, name: str) -> list[Scalar | None]:
    """(N,) what each row holds."""
    column = table.columns.get(name)
    if column is None:
        return [None] * len(table.rows)
    return [column.values[code] for code in column.codes.tolist()]


def _text(value: Scalar | None) -> str:
    return "" if value is None else str(value).strip()


def _split(*texts: str) -> tuple[str, ...]:
    parts = (part.strip() for text in texts for part in text.split("|"))
    return tuple(dict.fromkeys(part for part in parts if part))
