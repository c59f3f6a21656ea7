"""The domain item and the rules that make one valid. Pure: no transport, no storage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import FieldViolation
from longtide_server.events import id_violation

MAX_BATCH_ITEMS = 1_000
MAX_TITLE_BYTES = 1_024
MAX_DESCRIPTION_BYTES = 65_536
MAX_CATEGORIES = 64
MAX_CATEGORY_DEPTH = 16
MAX_TAGS = 256
MAX_NAME_BYTES = 256
MAX_BRAND_BYTES = 512
MAX_LANGUAGE_BYTES = 35
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_BYTES = 1_024
MAX_DOMAIN_BYTES = 64
MAX_VECTOR_SIZE = 4_096
MAX_TIME_S = 253_402_300_800.0  # the end of the year 9999, as far as a Timestamp goes

AttributeValue = str | float | bool
CategoryPath = tuple[str, ...]
"""A category with those above it, the most general first."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """What the catalogue says of an item."""

    item_id: str
    title: str = ""
    description: str = ""
    categories: tuple[CategoryPath, ...] = ()
    tags: tuple[str, ...] = ()
    brand: str = ""
    price: float | None = None
    publish_time_s: float | None = None
    """Not recommended before; seconds since 1970-01-01 UTC."""
    expire_time_s: float | None = None
    """Not recommended from then on."""
    available: bool = True
    language: str = ""
    text_vector: NDArray[np.float32] | None = None
    """(any,) the caller's, of a size that all items share."""
    image_vector: NDArray[np.float32] | None = None
    """(any,) the caller's, of a size that all items share."""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    domain: str = ""
    update_time_s: float = 0.0
    """When it was written last, by the server's clock."""
    unwritten: frozenset[str] = frozenset()
    """The contract's names of the fields that nobody has written yet: what a snapshot says of them holds."""

    def recommendable(self, now_s: float) -> bool:
        """Whether it may be recommended at a moment."""
        published = self.publish_time_s is None or self.publish_time_s <= now_s
        expired = self.expire_time_s is not None and self.expire_time_s <= now_s
        return self.available and published and not expired


def violation(item: Item) -> FieldViolation | None:
    """The first rule that the item breaks, or none."""
    return (
        id_violation("item_id", item.item_id)
        or _size_violation("title", item.title, 0, MAX_TITLE_BYTES)
        or _size_violation("description", item.description, 0, MAX_DESCRIPTION_BYTES)
        or _categories_violation(item.categories)
        or _tags_violation(item.tags)
        or _size_violation("brand", item.brand, 0, MAX_BRAND_BYTES)
        or _price_violation(item.price)
        or _times_violation(item.publish_time_s, item.expire_time_s)
        or _size_violation("language", item.language, 0, MAX_LANGUAGE_BYTES)
        or _vector_violation("text_vector", item.text_vector)
        or _vector_violation("image_vector", item.image_vector)
        or _attributes_violation(item.attributes)
        or _size_violation("domain", item.domain, 0, MAX_DOMAIN_BYTES)
    )


def _size_violation(name: str, text: str, least: int, most: int) -> FieldViolation | None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if least <= size <= most:
        return None
    if not size:
        return FieldViolation(name, "must not be empty")
    return FieldViolation(name, f"is {size} bytes long; at most {most} are allowed")


def _count_violation(name: str, count: int, most: int) -> FieldViolation | None:
    return FieldViolation(name, f"holds {count}; at most {most} are allowed") if count > most else None


def _names_violation(name: str, names: Iterable[str]) -> FieldViolation | None:
    found = (_size_violation(f"{name}[{index}]", one, 1, MAX_NAME_BYTES) for index, one in enumerate(names))
    return next((one for one in found if one is not None), None)


def _categories_violation(categories: tuple[CategoryPath, ...]) -> FieldViolation | None:
    if (wrong := _count_violation("categories", len(categories), MAX_CATEGORIES)) is not None:
        return wrong
    for index, path in enumerate(categories):
        name = f"categories[{index}].names"
        if not 1 <= len(path) <= MAX_CATEGORY_DEPTH:
            return FieldViolation(name, f"holds {len(path)} names; 1 to {MAX_CATEGORY_DEPTH} are allowed")
        if (wrong := _names_violation(name, path)) is not None:
            return wrong
    return None


def _tags_violation(tags: tuple[str, ...]) -> FieldViolation | None:
    if len(set(tags)) < len(tags):
        return FieldViolation("tags", "holds a tag twice")
    return _count_violation("tags", len(tags), MAX_TAGS) or _names_violation("tags", tags)


def _price_violation(price: float | None) -> FieldViolation | None:
    if price is None or (math.isfinite(price) and price >= 0):
        return None
    return FieldViolation("price", f"is {price}; a finite number, 0 or more, is allowed")


def _times_violation(publish_s: float | None, expire_s: float | None) -> FieldViolation | None:
    for name, time_s in (("publish_time", publish_s), ("expire_time", expire_s)):
        if time_s is not None and not 0 <= time_s < MAX_TIME_S:  # false for NaN
            return FieldViolation(name, f"{time_s:g} s is not a time from 1970 to 9999")
    if publish_s is not None and expire_s is not None and expire_s <= publish_s:
        return FieldViolation("expire_time", "is not after publish_time")
    return None


def _vector_violation(name: str, vector: NDArray[np.float32] | None) -> FieldViolation | None:
    if vector is None:
        return None
    if not 1 <= len(vector) <= MAX_VECTOR_SIZE:
        return FieldViolation(name, f"holds {len(vector)} numbers; 1 to {MAX_VECTOR_SIZE} are allowed")
    if not np.isfinite(vector).all() or not vector.any():
        return FieldViolation(name, "must hold finite numbers that are not all 0")
    return None


def _attributes_violation(attributes: Mapping[str, AttributeValue]) -> FieldViolation | None:
    if (wrong := _count_violation("attributes", len(attributes), MAX_ATTRIBUTES)) is not None:
        return wrong
    for index, (name, value) in enumerate(attributes.items()):
        place = f"attributes[{index}]"
        if (wrong := _size_violation(f"{place}.name", name, 1, MAX_NAME_BYTES)) is not None:
            return wrong
        if isinstance(value, str):
            wrong = _size_violation(f"{place}.text", value, 0, MAX_ATTRIBUTE_BYTES)
        elif not math.isfinite(value):
            wrong = FieldViolation(f"{place}.number", f"{value} is not a finite number")
        if wrong is not None:
            return wrong
    return None
