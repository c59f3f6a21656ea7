"""Reads what a shop knows of its items, one row an item: an `item_id` and what the file has of the rest.

The rest is `title`, `categories`, `genres`, `description`, which is any longer text, `tags`, `brand`, `price` and
`domain`. Categories and genres are one idea under two names: a file that has both gives an item the categories, then
the genres. A category may be a path: `Beauty > Skin care > Masks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog import ItemInfo
from longtide_server.training.tables import Faults, Scalar, Table, read_ids, read_table, shown

_LABELS = ("categories", "genres")
_OPTIONAL = ("title", *_LABELS, "description", "tags", "brand", "price", "domain")

Items = Mapping[str, ItemInfo]
"""By item id, in the file's order."""


def read_items(path: Path, columns: Mapping[str, str] = {}) -> Items:
    """The items of a CSV, JSON-lines (both also zipped) or Parquet file.

    `columns` maps our names to the file's where they differ. Categories and tags are text split on `|`, or in JSON and
    Parquet a list of strings. The first bad row is a LogError; so is an item that two rows give.
    """
    table = read_table(path, ("item_id",), _OPTIONAL, columns, lists=(*_LABELS, "tags"))
    faults = Faults(table)
    item_ids, item = read_ids(table.columns["item_id"], faults)
    _mark_repeated(table, item_ids, item, faults)
    if "price" in table.columns:
        faults.mark_values(table.columns["price"], [_price_fault(value) for value in table.columns["price"].values])
    faults.settle(skip_bad_rows=False)
    cells = zip(*(_cells(table, name) for name in _OPTIONAL), strict=True)
    # Every row is good and no item is repeated, so the ids are one a row, in the rows' order.
    return {item_id: _info(*row) for item_id, row in zip(item_ids, cells, strict=True)}


def _info(
    title: Scalar | None, categories: Scalar | None, genres: Scalar | None, description: Scalar | None,
    tags: Scalar | None, brand: Scalar | None, price: Scalar | None, domain: Scalar | None,
) -> ItemInfo:  # fmt: skip
    return ItemInfo(
        title=_text(title),
        categories=_split(_text(categories), _text(genres)),
        description=_text(description),
        tags=_split(_text(tags)),
        brand=_text(brand),
        price=float(price) if _text(price) and price is not None else None,
        domain=_text(domain),
    )


def _price_fault(value: Scalar | None) -> str | None:
    if not _text(value) or value is None:
        return None
    try:
        price = float(value)
    except ValueError:
        return f"{shown(value)} is not a number"
    return None if math.isfinite(price) and price >= 0 else f"{shown(value)} is not a price: finite, 0 or more"


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
