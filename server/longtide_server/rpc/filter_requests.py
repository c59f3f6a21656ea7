"""Reads a filter of the contract into a domain filter, and says which of its fields is wrong when that cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from longtide.v1 import catalog_pb2
from longtide_server.errors import InvalidInput
from longtide_server.items.item import MAX_CATEGORY_DEPTH, MAX_NAME_BYTES
from longtide_server.items.item_filter import (
    AllOf,
    AnyOf,
    HasBrand,
    HasFlag,
    HasNumber,
    HasPrice,
    HasTag,
    HasText,
    InCategory,
    InDomain,
    InLanguage,
    IsAvailable,
    ItemFilter,
    NoneOf,
    Published,
    Span,
)

MAX_DEPTH = 8
MAX_CONDITIONS = 256
MAX_VALUES = 10_000
MAX_VALUE_BYTES = 512

_GROUPS: Mapping[str, type[AllOf] | type[AnyOf] | type[NoneOf]] = {"all_of": AllOf, "any_of": AnyOf, "none_of": NoneOf}
_NAMES: Mapping[str, type[HasTag] | type[HasBrand] | type[InDomain] | type[InLanguage]] = {
    "tags": HasTag,
    "brands": HasBrand,
    "domains": InDomain,
    "languages": InLanguage,
}
_AVAILABLE: Mapping[int, bool] = {catalog_pb2.AVAILABILITY_AVAILABLE: True, catalog_pb2.AVAILABILITY_UNAVAILABLE: False}


def read_filter(field: str, message: catalog_pb2.ItemFilter) -> ItemFilter:
    """The filter that stands in a field of a request. InvalidInput names the first part of it that is wrong."""
    return _Reading(field).condition(field, message, 1)


class _Reading:
    """How much of a filter has been read, so that it ends where a filter is too large."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._conditions = 0
        self._values = 0

    def condition(self, field: str, message: catalog_pb2.ItemFilter, depth: int) -> ItemFilter:
        if depth > MAX_DEPTH:
            raise InvalidInput.of(field, f"is nested {depth} deep; at most {MAX_DEPTH} are allowed")
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidInput.of(self._field, f"holds over {MAX_CONDITIONS} conditions")
        kind = message.WhichOneof("condition")
        if kind is None:
            raise InvalidInput.of(field, "must set a condition")
        field = f"{field}.{kind}"
        if kind in _GROUPS:
            return _GROUPS[kind](self._filters(f"{field}.filters", getattr(message, kind).filters, depth + 1))
        if kind in _NAMES:
            return _NAMES[kind](self._names(f"{field}.names", getattr(message, kind).names))
        if kind == "category":
            return InCategory(self._path(f"{field}.names", message.category.names))
        if kind == "price":
            return HasPrice(_span(field, message.price))
        if kind == "publish_time":
            return _published(field, message.publish_time)
        if kind == "availability":
            return IsAvailable(_available(field, message.availability))
        return self._attribute(field, message.attribute)

    def _filters(self, field: str, messages: Sequence[catalog_pb2.ItemFilter], depth: int) -> frozenset[ItemFilter]:
        if not messages:
            raise InvalidInput.of(field, "must hold a filter")
        return frozenset(self.condition(f"{field}[{index}]", one, depth) for index, one in enumerate(messages))

    def _names(self, field: str, names: Sequence[str]) -> frozenset[str]:
        if not names:
            raise InvalidInput.of(field, "must hold a name")
        self._count(len(names))
        for index, name in enumerate(names):
            _check_name(f"{field}[{index}]", name, MAX_VALUE_BYTES)
        return frozenset(names)

    def _path(self, field: str, names: Sequence[str]) -> tuple[str, ...]:
        if not 1 <= len(names) <= MAX_CATEGORY_DEPTH:
            raise InvalidInput.of(field, f"holds {len(names)} names; 1 to {MAX_CATEGORY_DEPTH} are allowed")
        self._count(len(names))
        for index, name in enumerate(names):
            _check_name(f"{field}[{index}]", name, MAX_NAME_BYTES)
        return tuple(names)

    def _attribute(self, field: str, message: catalog_pb2.AttributeCondition) -> ItemFilter:
        _check_name(f"{field}.name", message.name, MAX_NAME_BYTES)
        kind = message.WhichOneof("value")
        if kind == "texts":
            return HasText(message.name, self._names(f"{field}.texts.names", message.texts.names))
        if kind == "number":
            return HasNumber(message.name, _span(f"{field}.number", message.number))
        if kind == "flag":
            return HasFlag(message.name, message.flag)
        raise InvalidInput.of(field, "must set texts, number or flag")

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise InvalidInput.of(self._field, f"holds over {MAX_VALUES} values")


def _check_name(field: str, name: str, most: int) -> None:
    size = len(name.encode())
    if not size:
        raise InvalidInput.of(field, "must not be empty")
    if size > most:
        raise InvalidInput.of(field, f"is {size} bytes long; at most {most} are allowed")


def _span(field: str, message: catalog_pb2.NumberRange) -> Span:
    ends = {name: getattr(message, name) for name in ("min", "max") if message.HasField(name)}
    if not ends:
        raise InvalidInput.of(field, "must set min, max or both")
    for name, end in ends.items():
        if math.isnan(end):
            raise InvalidInput.of(f"{field}.{name}", "is not a number")
    span = Span(ends.get("min", -math.inf), ends.get("max", math.inf))
    if span.low > span.high:
        raise InvalidInput.of(field, f"min {span.low:g} is greater than max {span.high:g}")
    return span


def _published(field: str, message: catalog_pb2.TimeRange) -> Published:
    ends = {
        name: getattr(message, name).seconds + getattr(message, name).nanos / 1e9
        for name in ("start_time", "end_time")
        if message.HasField(name)
    }
    if not ends:
        raise InvalidInput.of(field, "must set start_time, end_time or both")
    published = Published(ends.get("start_time", -math.inf), ends.get("end_time", math.inf))
    if published.start_s > published.end_s:
        raise InvalidInput.of(field, "start_time is after end_time")
    return published


def _available(field: str, availability: int) -> bool:
    if availability not in _AVAILABLE:
        raise InvalidInput.of(field, "must be AVAILABILITY_AVAILABLE or AVAILABILITY_UNAVAILABLE")
    return _AVAILABLE[availability]
