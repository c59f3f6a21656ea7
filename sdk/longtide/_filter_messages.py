"""Turns filters into messages of the contract: pure functions."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from longtide._filters import (
    AllOf,
    AnyOf,
    Available,
    Brands,
    Category,
    Domains,
    FlagAttribute,
    ItemFilter,
    Languages,
    NoneOf,
    NumberAttribute,
    Price,
    Published,
    Tags,
    TextAttribute,
    checked_filter,
)
from longtide.v1 import catalog_pb2


def filter_message(wanted: ItemFilter) -> catalog_pb2.ItemFilter:
    """The filter as it is sent."""
    match checked_filter("filter", wanted):
        case AllOf(filters):
            return catalog_pb2.ItemFilter(all_of=_group(filters))
        case AnyOf(filters):
            return catalog_pb2.ItemFilter(any_of=_group(filters))
        case NoneOf(filters):
            return catalog_pb2.ItemFilter(none_of=_group(filters))
        case Category(names):
            return catalog_pb2.ItemFilter(category=catalog_pb2.CategoryPath(names=names))
        case Tags(names):
            return catalog_pb2.ItemFilter(tags=catalog_pb2.NameSet(names=names))
        case Brands(names):
            return catalog_pb2.ItemFilter(brands=catalog_pb2.NameSet(names=names))
        case Domains(names):
            return catalog_pb2.ItemFilter(domains=catalog_pb2.NameSet(names=names))
        case Languages(names):
            return catalog_pb2.ItemFilter(languages=catalog_pb2.NameSet(names=names))
        case Price(least, most):
            return catalog_pb2.ItemFilter(price=catalog_pb2.NumberRange(min=least, max=most))
        case Published(start, end):
            times = catalog_pb2.TimeRange(start_time=_timestamp(start), end_time=_timestamp(end))
            return catalog_pb2.ItemFilter(publish_time=times)
        case Available(available):
            return catalog_pb2.ItemFilter(
                availability=catalog_pb2.AVAILABILITY_AVAILABLE if available else catalog_pb2.AVAILABILITY_UNAVAILABLE
            )
        case other:
            return catalog_pb2.ItemFilter(attribute=_attribute(other))


def _attribute(wanted: ItemFilter) -> catalog_pb2.AttributeCondition:
    match wanted:
        case TextAttribute(name, values):
            return catalog_pb2.AttributeCondition(name=name, texts=catalog_pb2.NameSet(names=values))
        case NumberAttribute(name, least, most):
            return catalog_pb2.AttributeCondition(name=name, number=catalog_pb2.NumberRange(min=least, max=most))
        case FlagAttribute(name, flag):
            return catalog_pb2.AttributeCondition(name=name, flag=flag)
    raise TypeError(f"filter must be one of the SDK's own kinds, not {type(wanted).__name__}")


def _group(filters: tuple[ItemFilter, ...]) -> catalog_pb2.ItemFilters:
    return catalog_pb2.ItemFilters(filters=map(filter_message, filters))


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message
