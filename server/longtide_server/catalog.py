"""The items that a snapshot knows: their ids, their numbers and what a person reads of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

PATH = " > "
"""Between a category and the one below it."""


@dataclass(frozen=True, slots=True)
class ItemInfo:
    """What is known of an item. Catalogue files hold title and categories: no answer shows the rest."""

    title: str = ""
    categories: tuple[str, ...] = ()
    """Each a name, or a path from the most general name on, its names joined by ` > `."""
    description: str = ""
    tags: tuple[str, ...] = ()
    brand: str = ""
    price: float | None = None
    domain: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    """Names of facts with what they say in words; of the knowledge graph, relations with what they lead to."""


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
    """Write a catalogue as Parquet: item_id, title, categories, in the order of the numbers; no descriptions."""
    table = pa.table(
        {
            "item_id": pa.array(catalog.item_ids, pa.string()),
            "title": pa.array([info.title for info in catalog.infos], pa.string()),
            "categories": pa.array([list(info.categories) for info in catalog.infos], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, path)


def read_catalog(path: Path) -> Catalog:
    """Read what `write_catalog` wrote."""
    table = pq.read_table(path)
    titles, categories = table["title"].to_pylist(), table["categories"].to_pylist()
    infos = tuple(ItemInfo(title, tuple(names)) for title, names in zip(titles, categories, strict=True))
    return Catalog(tuple(table["item_id"].to_pylist()), infos)
