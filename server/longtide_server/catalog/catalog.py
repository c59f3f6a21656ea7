"""The items that a snapshot knows: their ids, their numbers and what a person reads of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

PATH = " > "
"""Between a category and the one below it."""
KEPT = {
    "title": pa.string(),
    "categories": pa.list_(pa.string()),
    "tags": pa.list_(pa.string()),
    "brand": pa.string(),
    "price": pa.float64(),
    "domain": pa.string(),
}
"""What a snapshot keeps of its items, as columns of Parquet."""


@dataclass(frozen=True, slots=True)
class ItemInfo:
    """What is known of an item. A snapshot's catalogue holds what answers show and filters ask: no longer texts."""

    title: str = ""
    categories: tuple[str, ...] = ()
    """Each a name, or a path from the most general name on, its names joined by ` > `."""
    description: str = ""
    tags: tuple[str, ...] = ()
    brand: str = ""
    price: float | None = None
    domain: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    """Names of attributes with what they say in words."""
    facts: tuple[tuple[str, str], ...] = ()
    """Of the knowledge graph: relations with what they lead to."""


class Catalog:
    """Item ids and their numbers from 1 on: those of the log, the most frequent first, then those without events."""

    def __init__(self, item_ids: tuple[str, ...], infos: tuple[ItemInfo, ...]) -> None:
        self.item_ids = item_ids
        self.infos = infos
        self._number = {item_id: number for number, item_id in enumerate(item_ids, 1)}

    def __len__(self) -> int:
        return len(self.item_ids)

    def number(self, item_id: str) -> int:
        """The number of an item; 0 when it is unknown."""
        return self._number.get(item_id, 0)

    def numbers(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The numbers of the items that are known, in order."""
        return np.array([n for item_id in item_ids if (n := self._number.get(item_id, 0))], np.int64)

    def item_id(self, number: int) -> str:
        """The id of an item number."""
        return self.item_ids[number - 1]

    def info(self, number: int) -> ItemInfo:
        """What a person reads of an item number."""
        return self.infos[number - 1]


def write_catalog(catalog: Catalog, path: Path) -> None:
    """Write a catalogue as Parquet: item_id and the columns of KEPT, in the order of the numbers."""
    columns = {name: pa.array([getattr(info, name) for info in catalog.infos], kind) for name, kind in KEPT.items()}
    pq.write_table(pa.table({"item_id": pa.array(catalog.item_ids, pa.string()), **columns}), path)


def read_catalog(path: Path) -> Catalog:
    """Read what `write_catalog` wrote."""
    table = pq.read_table(path)
    # An older release kept fewer columns.
    kept: dict[str, list[Any]] = {name: table[name].to_pylist() for name in KEPT if name in table.column_names}
    infos = []
    for row in zip(*kept.values(), strict=True):
        said = dict(zip(kept, row, strict=True))
        lists = {name: tuple(value) for name, value in said.items() if isinstance(value, list)}
        infos.append(ItemInfo(**said | lists))
    return Catalog(tuple(table["item_id"].to_pylist()), tuple(infos))
