"""Conditions on items, as a caller writes them: plain values that know nothing of the transport."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn, SupportsFloat

from longtide._types import number, text, texts, utc


class ItemFilter:
    """A condition on items; of what an item does not say, it is false. Its kinds are joined by operators:

        Category("Beauty", "Skin care") & Price(max=20) & ~Tags("sold by others")

    `&` wants both, `|` at least one, and `~` turns a condition round. A filter may be nested 8 deep and hold 256
    conditions and 10,000 values; the server judges that.
    """

    __slots__ = ()

    def __and__(self, other: ItemFilter) -> AllOf:
        return AllOf(*_parts(AllOf, self), *_parts(AllOf, other))

    def __or__(self, other: ItemFilter) -> AnyOf:
        return AnyOf(*_parts(AnyOf, self), *_parts(AnyOf, other))

    def __invert__(self) -> ItemFilter:
        return NoneOf(*_parts(AnyOf, self))

    def __bool__(self) -> NoReturn:
        raise TypeError("a filter is neither true nor false: join filters with &, | and ~, not with and, or and not")


@dataclass(frozen=True, slots=True, init=False)
class AllOf(ItemFilter):
    """Every one of these filters passes."""

    filters: tuple[ItemFilter, ...]
    """1 or more."""

    def __init__(self, *filters: ItemFilter) -> None:
        _set_filters(self, filters)


@dataclass(frozen=True, slots=True, init=False)
class AnyOf(ItemFilter):
    """At least one of these filters passes."""

    filters: tuple[ItemFilter, ...]
    """1 or more."""

    def __init__(self, *filters: ItemFilter) -> None:
        _set_filters(self, filters)


@dataclass(frozen=True, slots=True, init=False)
class NoneOf(ItemFilter):
    """Not one of these filters passes. True, too, of items that do not say what they ask."""

    filters: tuple[ItemFilter, ...]
    """1 or more."""

    def __init__(self, *filters: ItemFilter) -> None:
        _set_filters(self, filters)

    def __invert__(self) -> ItemFilter:
        return AnyOf(*self.filters)


@dataclass(frozen=True, slots=True, init=False)
class Category(ItemFilter):
    """The item is in this category or below it: `Category("Beauty", "Skin care")`, the most general name first."""

    names: tuple[str, ...]
    """1 to 16 names."""

    def __init__(self, *names: str) -> None:
        _set_names(self, names)


@dataclass(frozen=True, slots=True, init=False)
class Tags(ItemFilter):
    """The item has one of these tags."""

    names: tuple[str, ...]
    """1 or more, compared letter by letter."""

    def __init__(self, *names: str) -> None:
        _set_names(self, names)


@dataclass(frozen=True, slots=True, init=False)
class Brands(ItemFilter):
    """The item's brand is one of these."""

    names: tuple[str, ...]
    """1 or more, compared letter by letter."""

    def __init__(self, *names: str) -> None:
        _set_names(self, names)


@dataclass(frozen=True, slots=True, init=False)
class Domains(ItemFilter):
    """The item's domain is one of these."""

    names: tuple[str, ...]
    """1 or more, compared letter by letter."""

    def __init__(self, *names: str) -> None:
        _set_names(self, names)


@dataclass(frozen=True, slots=True, init=False)
class Languages(ItemFilter):
    """The item's language is one of these."""

    names: tuple[str, ...]
    """1 or more, compared letter by letter: `de` is not `de-AT`."""

    def __init__(self, *names: str) -> None:
        _set_names(self, names)


@dataclass(frozen=True, slots=True, init=False)
class Price(ItemFilter):
    """The item has a price from `min` to `max`, both included: `Price(max=20)`."""

    min: float | None
    """None for no least price; one of the two is set."""
    max: float | None
    """None for no greatest price."""

    def __init__(self, *, min: SupportsFloat | None = None, max: SupportsFloat | None = None) -> None:
        object.__setattr__(self, "min", None if min is None else number("min", min))
        object.__setattr__(self, "max", None if max is None else number("max", max))


@dataclass(frozen=True, slots=True, init=False)
class Published(ItemFilter):
    """The item has a publish time from `start` on and before `end`."""

    start: datetime | None
    """In UTC; None for the beginning of time; one of the two is set."""
    end: datetime | None
    """In UTC; None for no end."""

    def __init__(
        self, *, start: datetime | SupportsFloat | None = None, end: datetime | SupportsFloat | None = None
    ) -> None:
        """Aware datetimes, or seconds since 1970-01-01 UTC."""
        object.__setattr__(self, "start", None if start is None else utc("start", start))
        object.__setattr__(self, "end", None if end is None else utc("end", end))


@dataclass(frozen=True, slots=True)
class Available(ItemFilter):
    """The item can be had; with `Available(False)`, it cannot. What cannot be had is never recommended anyway."""

    available: bool = True
    """Whether it can be had."""

    def __post_init__(self) -> None:
        _check_flag("available", self.available)


@dataclass(frozen=True, slots=True, init=False)
class TextAttribute(ItemFilter):
    """The item has this attribute, and it is one of these texts: `TextAttribute("colour", "red", "green")`."""

    name: str
    """Which attribute."""
    texts: tuple[str, ...]
    """1 or more, compared letter by letter."""

    def __init__(self, name: str, *values: str) -> None:
        object.__setattr__(self, "name", text("name", name))
        object.__setattr__(self, "texts", tuple(texts("texts", values)))


@dataclass(frozen=True, slots=True, init=False)
class NumberAttribute(ItemFilter):
    """The item has this attribute, and it is a number from `min` to `max`: `NumberAttribute("grams", max=500)`."""

    name: str
    """Which attribute."""
    min: float | None
    """None for no least number; one of the two is set."""
    max: float | None
    """None for no greatest number."""

    def __init__(self, name: str, *, min: SupportsFloat | None = None, max: SupportsFloat | None = None) -> None:
        object.__setattr__(self, "name", text("name", name))
        object.__setattr__(self, "min", None if min is None else number("min", min))
        object.__setattr__(self, "max", None if max is None else number("max", max))


@dataclass(frozen=True, slots=True)
class FlagAttribute(ItemFilter):
    """The item has this attribute, and it is this yes or no: `FlagAttribute("refillable")`."""

    name: str
    """Which attribute."""
    flag: bool = True
    """What it is."""

    def __post_init__(self) -> None:
        text("name", self.name)
        _check_flag("flag", self.flag)


def checked_filter(name: str, value: object) -> ItemFilter:
    """The value, if it is a filter; else TypeError that names it."""
    if not isinstance(value, ItemFilter):
        raise TypeError(f"{name} must be a filter such as longtide.Category, not {type(value).__name__}: {value!r}")
    return value


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}: {value!r}")


def _parts(kind: type[AllOf] | type[AnyOf], value: ItemFilter) -> tuple[ItemFilter, ...]:
    """What a filter joins already, so that a long row of operators is one level and not many."""
    checked = checked_filter("a part", value)
    return checked.filters if isinstance(checked, kind) else (checked,)


def _set_filters(joined: AllOf | AnyOf | NoneOf, filters: Iterable[ItemFilter]) -> None:
    parts = tuple(checked_filter(f"filters[{index}]", one) for index, one in enumerate(filters))
    object.__setattr__(joined, "filters", parts)


def _set_names(condition: Category | Tags | Brands | Domains | Languages, names: Iterable[str]) -> None:
    object.__setattr__(condition, "names", tuple(texts("names", names)))
