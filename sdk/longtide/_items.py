"""Items of the catalogue and what became of them: plain values that know nothing of the transport."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from typing import SupportsFloat

from longtide._types import number, text, texts, utc

AttributeValue = str | float | bool


@dataclass(frozen=True, slots=True, init=False)
class Item:
    """An item of a shop, a video or a news site. All but the id may be left out.

    Only what cannot be sent is refused here, with TypeError or ValueError; the server judges the rest.
    """

    item_id: str
    """Identifies the item, as in events: 1 to 512 bytes of UTF-8."""
    title: str
    """What people read of it: at most 1,024 bytes."""
    description: str
    """Longer text: at most 65,536 bytes."""
    categories: tuple[tuple[str, ...], ...]
    """Where it stands: each category with those above it, the most general first, for example ("Beauty", "Masks")."""
    tags: tuple[str, ...]
    """Words for it, none twice."""
    brand: str
    """Its brand, author or channel."""
    price: float | None
    """Its price, in the one currency of your catalogue; None when it has none."""
    publish_time: datetime | None
    """It is not recommended before this time, in UTC."""
    expire_time: datetime | None
    """It is not recommended from this time on, in UTC."""
    available: bool
    """Whether it can be had; what cannot be had is not recommended."""
    language: str
    """Its language, for example `de` or `pt-BR`."""
    text_vector: tuple[float, ...] | None
    """A vector of its text that you have made: 32-bit floats. All items' vectors are of one size."""
    image_vector: tuple[float, ...] | None
    """A vector of its image that you have made: 32-bit floats. All items' vectors are of one size."""
    attributes: Mapping[str, AttributeValue] = field(hash=False)
    """What else there is to know, by name."""
    domain: str
    """What it belongs to where one catalogue holds several kinds, for example `books` or `news`."""
    update_time: datetime | None = field(compare=False)
    """When it was written last, by the server's clock; ignored when it is written. Items are equal without it."""

    def __init__(
        self,
        item_id: str,
        title: str = "",
        *,
        description: str = "",
        categories: Iterable[Iterable[str] | str] = (),
        tags: Iterable[str] = (),
        brand: str = "",
        price: SupportsFloat | None = None,
        publish_time: datetime | SupportsFloat | None = None,
        expire_time: datetime | SupportsFloat | None = None,
        available: bool = True,
        language: str = "",
        text_vector: Iterable[float] | None = None,
        image_vector: Iterable[float] | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        domain: str = "",
        update_time: datetime | SupportsFloat | None = None,
    ) -> None:
        """Make an item. Times are aware datetimes or seconds since 1970-01-01 UTC; vectors any floats, NumPy's too.

        A category is a sequence of names; one string is one name, as it is: `"Beauty > Masks"` is not taken apart.
        """
        # A frozen dataclass leaves no other way to set a field.
        put = object.__setattr__
        put(self, "item_id", text("item_id", item_id))
        put(self, "title", text("title", title))
        put(self, "description", text("description", description))
        put(self, "categories", _categories(categories))
        put(self, "tags", tuple(texts("tags", tags)))
        put(self, "brand", text("brand", brand))
        put(self, "price", None if price is None else number("price", price))
        put(self, "publish_time", None if publish_time is None else utc("publish_time", publish_time))
        put(self, "expire_time", None if expire_time is None else utc("expire_time", expire_time))
        put(self, "available", _flag("available", available))
        put(self, "language", text("language", language))
        put(self, "text_vector", _vector("text_vector", text_vector))
        put(self, "image_vector", _vector("image_vector", image_vector))
        put(self, "attributes", _attributes(attributes or {}))
        put(self, "domain", text("domain", domain))
        put(self, "update_time", None if update_time is None else utc("update_time", update_time))


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item was refused. Writing it again unchanged cannot succeed."""

    index: int
    """The position of the item in the caller's iterable, from 0."""
    item_id: str
    """The id of the item."""
    field: str
    """The field that is wrong, for example `price`; empty when it is the item as a whole, or the server named none."""
    reason: str
    """What is wrong with it and what is allowed."""


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What became of the items of a call: written and refused ones add up to the number of items."""

    written_count: int = 0
    """How many items are durable as sent."""
    errors: tuple[ItemError, ...] = ()
    """Why the others were refused, by ascending index."""


def _categories(categories: Iterable[Iterable[str] | str]) -> tuple[tuple[str, ...], ...]:
    if isinstance(categories, str):
        raise TypeError(f"categories must be an iterable of categories, not one str: {categories!r}")
    return tuple(
        (text(f"categories[{index}]", one),)
        if isinstance(one, str)
        else tuple(text(f"categories[{index}][{place}]", name) for place, name in enumerate(one))
        for index, one in enumerate(categories)
    )


def _vector(name: str, values: Iterable[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    if isinstance(values, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"{name} must be an iterable of numbers, not {type(values).__name__}")
    try:
        # As they travel: so an item is equal to itself when it comes back.
        return tuple(array("f", values))
    except TypeError as exc:
        raise TypeError(f"{name} must be an iterable of numbers: {exc}") from exc


def _attributes(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {text("attributes", name): _attribute(f"attributes[{name!r}]", value) for name, value in attributes.items()}


def _attribute(name: str, value: AttributeValue) -> AttributeValue:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(name, value)
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a str, a number or a bool, not {type(value).__name__}: {value!r}")
    return float(value)


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}: {value!r}")
    return value
