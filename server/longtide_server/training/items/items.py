"""Reads what a shop knows of its items, all at once, to learn from: the files that `longtide items import` reads.

Here every row must be good, and of an item there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtide_server.training.files.item_cells import COLUMNS, Cell, item_of, read_cell
from longtide_server.training.files.tables.columns import Column, Faults, Table, read_ids, shown
from longtide_server.training.files.tables.reading import read_table
from longtide_server.training.items.known_items import Described, described

VECTORS = ("text_vector", "image_vector")
LEARNED = tuple(name for name in COLUMNS if name not in ("publish_time", "expire_time", "available", "language"))
"""What an item is. What else its file has may be in any form: nothing is learned of it."""


def read_items(path: Path, columns: Mapping[str, str] = {}) -> Described:
    """The items of a CSV, JSON-lines (both also zipped) or Parquet file, in its order.

    The columns are those of LEARNED, as `item_files.read_item_file` has them; `columns` maps our names to the file's
    where they differ. The first bad row is a LogError; so is an item that two rows give.
    """
    table = read_table(path, ("item_id",), LEARNED, columns, option="--item-columns", nested=LEARNED)
    faults = Faults(table)
    item_ids, item = read_ids(table.columns["item_id"], faults)
    _mark_repeated(table, item_ids, item, faults)
    read = {name: _values(name, table.columns[name], faults) for name in LEARNED if name in table.columns}
    for name in VECTORS:
        if name in read:
            _mark_vectors(table.columns[name], read[name], faults)
    if "price" in read:
        cells = table.columns["price"].values
        faults.mark_values(table.columns["price"], list(map(_price_fault, cells, read["price"])))
    faults.settle(skip_bad_rows=False)
    codes = {name: table.columns[name].codes.tolist() for name in read}
    # Every row is good and no item is repeated, so the ids are one a row, in the rows' order.
    return described(
        item_of(item_id, ((name, values[codes[name][row]]) for name, values in read.items()))
        for row, item_id in enumerate(item_ids)
    )


def _values(name: str, column: Column, faults: Faults) -> list[Any]:
    """What each of a column's values says; None where that is wrong."""
    found: list[Any] = []
    reasons: list[str | None] = []
    for cell in column.values:
        value, reason = None, None
        try:
            value = read_cell(name, cell)
        except ValueError as exc:
            reason = f"{shown(cell)} is {exc}"
        found.append(value)
        reasons.append(reason)
    faults.mark_values(column, reasons)
    return found


def _price_fault(cell: Cell, price: float | None) -> str | None:
    if price is None or (math.isfinite(price) and price >= 0):
        return None
    return f"{shown(cell)} is not a price: finite, 0 or more"


def _mark_vectors(column: Column, vectors: list[NDArray[np.float32] | None], faults: Faults) -> None:
    """Vectors are finite, and as long as the first one."""
    size = next((len(vector) for vector in vectors if vector is not None), 0)
    reasons: list[str | None] = []
    for vector in vectors:
        if vector is None or (len(vector) == size and np.isfinite(vector).all()):
            reasons.append(None)
        else:
            reasons.append(f"is not of {size} finite numbers, as the first one is")
    faults.mark_values(column, reasons)


def _mark_repeated(table: Table, item_ids: list[str], item: NDArray[np.int32], faults: Faults) -> None:
    _, first, inverse = np.unique(item, return_index=True, return_inverse=True)
    first_row = table.rows[first[inverse]]
    faults.mark(
        table.columns["item_id"].name,
        first_row < table.rows,
        lambda n: f"{item_ids[item[n]]!r} is already the item of row {first_row[n]}",
    )
