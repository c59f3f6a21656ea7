"""What the cells of a file of items say: each reader gives a value, or raises ValueError with what the cell is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtide_server.items.item import AttributeValue, CategoryPath, Item
from longtide_server.items.item_fields import FIELDS
from longtide_server.training.files.log import iso_time_s
from longtide_server.training.files.tables.columns import Scalar, id_text

LEVELS = " > "
"""Between the names of a category that is written as text, the most general first."""

Cell = Scalar | None


def _text(cell: Cell) -> str:
    return id_text(cell).strip()


def _categories(cell: Cell) -> tuple[CategoryPath, ...]:
    listed = _json(cell, "[", "no list of categories")
    if listed is None:
        return tuple(filter(None, map(_path, _text(cell).split("|"))))
    if not all(isinstance(one, str) or (isinstance(one, list) and _all_texts(one)) for one in listed):
        raise ValueError("no list of categories")
    paths = (_path(one) if isinstance(one, str) else tuple(one) for one in listed)
    return tuple(filter(None, paths))


def _path(text: str) -> CategoryPath:
    return tuple(filter(None, (name.strip() for name in text.split(LEVELS))))


def _tags(cell: Cell) -> tuple[str, ...]:
    listed = _json(cell, "[", "no list of tags")
    if listed is None:
        return tuple(dict.fromkeys(filter(None, (tag.strip() for tag in _text(cell).split("|")))))
    if not _all_texts(listed):
        raise ValueError("no list of tags")
    return tuple(dict.fromkeys(listed))


def _price(cell: Cell) -> float | None:
    text = _text(cell)
    if not text:
        return None
    try:
        return float(text)
    except ValueError as exc:
        raise ValueError("no number") from exc


def _time_s(cell: Cell) -> float | None:
    text = _text(cell)
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        time_s = iso_time_s(text)
        if math.isnan(time_s):
            raise ValueError("no time, in seconds since 1970 or as 2026-01-31T12:00:00Z") from None
        return time_s


def _available(cell: Cell) -> bool:
    text = _text(cell).lower()
    if text not in _FLAGS:
        raise ValueError("neither true nor false")
    return _FLAGS[text]


def _vector(cell: Cell) -> NDArray[np.float32] | None:
    if not _text(cell):
        return None
    numbers = _json(cell, "[", "no list of numbers")
    if numbers is None or not all(type(one) in (int, float) for one in numbers):
        raise ValueError("no list of numbers")
    return np.array(numbers, np.float32)


def _attributes(cell: Cell) -> dict[str, AttributeValue]:
    if not _text(cell):
        return {}
    said = _json(cell, "{", "no object")
    if said is None:
        raise ValueError("no object")
    known = {name: value for name, value in said.items() if value is not None}
    if not all(isinstance(value, (str, int, float)) for value in known.values()):
        raise ValueError("no object of texts, numbers and truth values")
    return {name: float(value) if type(value) is int else value for name, value in known.items()}


def _json(cell: Cell, opening: str, otherwise: str) -> Any:  # noqa: ANN401
    """The list or the object that a cell is as JSON text; none when it does not begin as one."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(opening):
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as exc:
        raise ValueError(otherwise) from exc


def _all_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(one, str) for one in values)


_FLAGS = {"": True, **dict.fromkeys(("true", "yes", "1"), True), **dict.fromkeys(("false", "no", "0"), False)}
COLUMNS: Mapping[str, tuple[str, Callable[[Cell], Any]]] = {
    "title": ("title", _text),
    "description": ("description", _text),
    "categories": ("categories", _categories),
    "genres": ("categories", _categories),
    "tags": ("tags", _tags),
    "brand": ("brand", _text),
    "price": ("price", _price),
    "publish_time": ("publish_time", _time_s),
    "expire_time": ("expire_time", _time_s),
    "available": ("availability", _available),
    "language": ("language", _text),
    "text_vector": ("text_vector", _vector),
    "image_vector": ("image_vector", _vector),
    "attributes": ("attributes", _attributes),
    "domain": ("domain", _text),
}
"""Our names of columns, each with the field that it says and how its cells are read."""


def read_cell(name: str, cell: Cell) -> Any:  # noqa: ANN401
    """What a cell of a column says. ValueError says what the cell is instead."""
    _, read = COLUMNS[name]
    return read(None if cell is None or cell != cell else cell)  # a NaN is how data frames say nothing


def item_of(item_id: str, said: Iterable[tuple[str, Any]]) -> Item:
    """The item of what the readers of some columns gave; of categories and genres, both together."""
    values: dict[str, Any] = {}
    for name, value in said:
        attribute = FIELDS[COLUMNS[name][0]]
        values[attribute] = (*values[attribute], *value) if attribute in values else value
    if "categories" in values:
        values["categories"] = tuple(dict.fromkeys(values["categories"]))
    return Item(item_id, **values)
