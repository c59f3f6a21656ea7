"""Conditions on items: a small tree of values, and whether an item passes one. Pure: no transport, no storage.

Filters are values: two that name the same conditions, in whatever order, are equal and have one hash, so what was
worked out for a filter can be kept under it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from longtide_server.items.item import AttributeValue, CategoryPath, Item


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of these passes."""

    filters: frozenset[ItemFilter]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of these passes."""

    filters: frozenset[ItemFilter]


@dataclass(frozen=True, slots=True)
class NoneOf:
    """Not one of these passes."""

    filters: frozenset[ItemFilter]


@dataclass(frozen=True, slots=True)
class InCategory:
    """The item is in this category or below it."""

    path: CategoryPath


@dataclass(frozen=True, slots=True)
class HasTag:
    """The item has one of these tags."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class HasBrand:
    """The item's brand is one of these."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class InDomain:
    """The item's domain is one of these."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class InLanguage:
    """The item's language is one of these."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from one to another, both included."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high


@dataclass(frozen=True, slots=True)
class HasPrice:
    """The item has a price, and it is in this span."""

    span: Span


@dataclass(frozen=True, slots=True)
class Published:
    """The item has a publish time, from `start_s` on and before `end_s`; seconds since 1970-01-01 UTC."""

    start_s: float = -math.inf
    end_s: float = math.inf


@dataclass(frozen=True, slots=True)
class IsAvailable:
    """Whether the item can be had is this."""

    available: bool


@dataclass(frozen=True, slots=True)
class HasText:
    """The item has this attribute, and it is one of these texts."""

    attribute: str
    texts: frozenset[str]


@dataclass(frozen=True, slots=True)
class HasNumber:
    """The item has this attribute, and it is a number in this span."""

    attribute: str
    span: Span


@dataclass(frozen=True, slots=True)
class HasFlag:
    """The item has this attribute, and it is this yes or no."""

    attribute: str
    flag: bool


ItemFilter = (
    AllOf
    | AnyOf
    | NoneOf
    | InCategory
    | HasTag
    | HasBrand
    | InDomain
    | InLanguage
    | HasPrice
    | Published
    | IsAvailable
    | HasText
    | HasNumber
    | HasFlag
)


def passes(wanted: ItemFilter, item: Item) -> bool:
    """Whether an item passes. Of what it does not say, every condition but `NoneOf` is false."""
    match wanted:
        case AllOf(filters):
            return all(passes(one, item) for one in filters)
        case AnyOf(filters):
            return any(passes(one, item) for one in filters)
        case NoneOf(filters):
            return not any(passes(one, item) for one in filters)
        case InCategory(path):
            return any(names[: len(path)] == path for names in item.categories)
        case HasTag(names):
            return not names.isdisjoint(item.tags)
        case HasBrand(names):
            return bool(item.brand) and item.brand in names
        case InDomain(names):
            return bool(item.domain) and item.domain in names
        case InLanguage(names):
            return bool(item.language) and item.language in names
        case HasPrice(span):
            return item.price is not None and item.price in span
        case Published(start_s, end_s):
            return item.publish_time_s is not None and start_s <= item.publish_time_s < end_s
        case IsAvailable(available):
            return item.available is available
        case HasText() | HasNumber() | HasFlag():
            return _says(wanted, item.attributes.get(wanted.attribute))


def _says(wanted: HasText | HasNumber | HasFlag, value: AttributeValue | None) -> bool:
    """Whether the value of an attribute is of the kind that is wanted, and passes."""
    match wanted, value:
        case HasFlag(_, flag), bool():  # a bool is an int as well, so it comes first
            return value is flag
        case HasNumber(_, span), float() | int() if not isinstance(value, bool):
            return value in span
        case HasText(_, texts), str():
            return value in texts
    return False


def size(wanted: ItemFilter) -> int:
    """How many conditions and values a filter holds: what keeping it costs."""
    match wanted:
        case AllOf(filters) | AnyOf(filters) | NoneOf(filters):
            return 1 + sum(map(size, filters))
        case HasTag(names) | HasBrand(names) | InDomain(names) | InLanguage(names) | HasText(_, names):
            return 1 + len(names)
        case InCategory(path):
            return 1 + len(path)
    return 1
