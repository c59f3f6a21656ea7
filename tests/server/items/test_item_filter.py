"""What a filter means, item by item, and how one is read from a request."""

from __future__ import annotations

import math

import pytest

from longtide.v1 import catalog_pb2
from longtide_server.errors import InvalidInput
from longtide_server.items.item import Item
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
    NoneOf,
    Published,
    Span,
    passes,
    size,
)
from longtide_server.rpc.filter_requests import read_filter

MASK = Item(
    "i1",
    categories=(("Beauty", "Skin care", "Masks"), ("Gifts",)),
    tags=("vegan", "new"),
    brand="Lumo",
    price=12.5,
    publish_time_s=100.0,
    available=False,
    language="en",
    attributes={"colour": "green", "grams": 50.0, "refill": True},
    domain="shop",
)
SILENT = Item("i2")


def names(*texts):
    return frozenset(texts)


@pytest.mark.parametrize(
    ("wanted", "passing"),
    [
        (InCategory(("Beauty",)), True),
        (InCategory(("Beauty", "Skin care")), True),
        (InCategory(("Beauty", "Skin care", "Masks")), True),
        (InCategory(("Gifts",)), True),
        (InCategory(("Skin care",)), False),  # it stands below another
        (InCategory(("Beauty", "Hair")), False),
        (InCategory(("Gifts", "Masks")), False),
        (HasTag(names("old", "new")), True),
        (HasTag(names("old")), False),
        (HasBrand(names("Lumo")), True),
        (HasBrand(names("lumo")), False),  # letter by letter
        (InDomain(names("shop", "news")), True),
        (InDomain(names("news")), False),
        (InLanguage(names("en")), True),
        (InLanguage(names("en-GB")), False),
        (HasPrice(Span(12.5, 12.5)), True),
        (HasPrice(Span(low=12.6)), False),
        (HasPrice(Span(high=12.4)), False),
        (Published(start_s=100.0), True),
        (Published(end_s=100.0), False),  # the first moment that is too late
        (Published(start_s=100.5), False),
        (IsAvailable(False), True),
        (IsAvailable(True), False),
        (HasText("colour", names("red", "green")), True),
        (HasText("colour", names("red")), False),
        (HasText("grams", names("50.0")), False),
        (HasNumber("grams", Span(50.0, 60.0)), True),
        (HasNumber("grams", Span(51.0, 60.0)), False),
        (HasNumber("refill", Span(0.0, 2.0)), False),  # a yes is no number
        (HasFlag("refill", True), True),
        (HasFlag("refill", False), False),
        (HasFlag("grams", True), False),
    ],
)
def test_a_condition_reads_what_the_item_says(wanted, passing):
    assert passes(wanted, MASK) is passing


@pytest.mark.parametrize(
    "wanted",
    [
        InCategory(("Beauty",)),
        HasTag(names("new")),
        HasBrand(names("Lumo")),
        InDomain(names("shop")),
        InLanguage(names("en")),
        HasPrice(Span()),
        Published(),
        IsAvailable(False),
        HasText("colour", names("green")),
        HasNumber("grams", Span()),
        HasFlag("refill", False),
    ],
)
def test_of_what_an_item_does_not_say_only_none_of_is_true(wanted):
    assert not passes(wanted, SILENT)
    assert passes(NoneOf(frozenset([wanted])), SILENT)


def test_filters_are_joined():
    new, red, green = HasTag(names("new")), HasText("colour", names("red")), HasText("colour", names("green"))
    assert passes(AllOf(frozenset([new, green])), MASK)
    assert not passes(AllOf(frozenset([new, red])), MASK)
    assert passes(AnyOf(frozenset([red, green])), MASK)
    assert not passes(NoneOf(frozenset([red, green])), MASK)
    assert passes(AllOf(frozenset([new, NoneOf(frozenset([red]))])), MASK)


def test_the_order_of_parts_does_not_matter():
    one = AllOf(frozenset([HasTag(names("a", "b")), HasPrice(Span(1, 2))]))
    same = AllOf(frozenset([HasPrice(Span(1.0, 2.0)), HasTag(names("b", "a"))]))
    assert (one, hash(one)) == (same, hash(same))
    assert one != AnyOf(one.filters)
    assert HasFlag("a", True) != HasNumber("a", Span(1, 1))


def test_the_size_of_a_filter_is_its_conditions_and_values():
    assert size(AllOf(frozenset([HasTag(names("a", "b")), HasPrice(Span(1, 2)), InCategory(("x", "y"))]))) == 8


# Reading


def message(**condition):
    return catalog_pb2.ItemFilter(**condition)


def group(*filters):
    return catalog_pb2.ItemFilters(filters=filters)


def nested(depth):
    """A filter so many conditions deep."""
    inner = message(availability=catalog_pb2.AVAILABILITY_AVAILABLE)
    for _ in range(depth - 1):
        inner = message(all_of=group(inner))
    return inner


def test_every_condition_is_read():
    sent = message(
        all_of=group(
            message(category=catalog_pb2.CategoryPath(names=["Beauty", "Masks"])),
            message(tags=catalog_pb2.NameSet(names=["b", "a", "a"])),
            message(any_of=group(message(brands=catalog_pb2.NameSet(names=["Lumo"])))),
            message(none_of=group(message(domains=catalog_pb2.NameSet(names=["news"])))),
            message(languages=catalog_pb2.NameSet(names=["en"])),
            message(price=catalog_pb2.NumberRange(max=9.5)),
            message(publish_time=catalog_pb2.TimeRange(start_time={"seconds": 5, "nanos": 500_000_000})),
            message(availability=catalog_pb2.AVAILABILITY_UNAVAILABLE),
            message(attribute={"name": "colour", "texts": {"names": ["red"]}}),
            message(attribute={"name": "grams", "number": {"min": 1}}),
            message(attribute={"name": "refill", "flag": False}),
        )
    )
    assert read_filter("filter", sent) == AllOf(
        frozenset(
            [
                InCategory(("Beauty", "Masks")),
                HasTag(names("a", "b")),
                AnyOf(frozenset([HasBrand(names("Lumo"))])),
                NoneOf(frozenset([InDomain(names("news"))])),
                InLanguage(names("en")),
                HasPrice(Span(high=9.5)),
                Published(start_s=5.5),
                IsAvailable(False),
                HasText("colour", names("red")),
                HasNumber("grams", Span(low=1.0)),
                HasFlag("refill", False),
            ]
        )
    )


def test_what_is_allowed_at_most_is_read():
    assert size(read_filter("filter", nested(8))) == 8
    assert size(read_filter("filter", message(any_of=group(*[nested(1)] * 255)))) == 2  # the same condition 255 times
    many = message(tags=catalog_pb2.NameSet(names=[str(n) for n in range(10_000)]))
    assert size(read_filter("filter", many)) == 10_001
    assert read_filter("filter", message(price={"min": 2, "max": 2})) == HasPrice(Span(2, 2))
    assert read_filter("filter", message(tags={"names": ["x" * 512]})) == HasTag(names("x" * 512))


TOO_MANY = [str(n) for n in range(5_001)]


@pytest.mark.parametrize(
    ("sent", "field", "reason"),
    [
        (message(), "filter", "must set a condition"),
        (message(all_of=group()), "filter.all_of.filters", "must hold a filter"),
        (message(any_of=group(nested(1), message())), "filter.any_of.filters[1]", "must set a condition"),
        (nested(9), "filter" + ".all_of.filters[0]" * 8, "is nested 9 deep; at most 8 are allowed"),
        (message(all_of=group(*[nested(1)] * 256)), "filter", "holds over 256 conditions"),
        (
            message(all_of=group(message(tags={"names": TOO_MANY}), message(brands={"names": TOO_MANY}))),
            "filter",
            "holds over 10000 values",
        ),
        (message(tags={}), "filter.tags.names", "must hold a name"),
        (message(tags={"names": ["a", ""]}), "filter.tags.names[1]", "must not be empty"),
        (
            message(brands={"names": ["é" * 257]}),
            "filter.brands.names[0]",
            "is 514 bytes long; at most 512 are allowed",
        ),
        (message(category={}), "filter.category.names", "holds 0 names; 1 to 16 are allowed"),
        (message(category={"names": ["a"] * 17}), "filter.category.names", "holds 17 names; 1 to 16 are allowed"),
        (
            message(category={"names": ["a", "x" * 257]}),
            "filter.category.names[1]",
            "is 257 bytes long; at most 256 are allowed",
        ),
        (message(price={}), "filter.price", "must set min, max or both"),
        (message(price={"max": math.nan}), "filter.price.max", "is not a number"),
        (message(price={"min": 2, "max": 1}), "filter.price", "min 2 is greater than max 1"),
        (message(publish_time={}), "filter.publish_time", "must set start_time, end_time or both"),
        (
            message(publish_time={"start_time": {"seconds": 2}, "end_time": {"seconds": 1}}),
            "filter.publish_time",
            "start_time is after end_time",
        ),
        (
            message(availability=catalog_pb2.AVAILABILITY_UNSPECIFIED),
            "filter.availability",
            "must be AVAILABILITY_AVAILABLE or AVAILABILITY_UNAVAILABLE",
        ),
        (
            message(availability=7),
            "filter.availability",
            "must be AVAILABILITY_AVAILABLE or AVAILABILITY_UNAVAILABLE",
        ),
        (message(attribute={"flag": True}), "filter.attribute.name", "must not be empty"),
        (message(attribute={"name": "a"}), "filter.attribute", "must set texts, number or flag"),
        (message(attribute={"name": "a", "texts": {}}), "filter.attribute.texts.names", "must hold a name"),
        (message(attribute={"name": "a", "number": {}}), "filter.attribute.number", "must set min, max or both"),
        (
            message(none_of=group(message(attribute={"name": "a", "number": {"min": math.nan}}))),
            "filter.none_of.filters[0].attribute.number.min",
            "is not a number",
        ),
    ],
)
def test_what_is_wrong_is_named(sent, field, reason):
    with pytest.raises(InvalidInput) as raised:
        read_filter("filter", sent)
    [wrong] = raised.value.violations
    assert (wrong.field, wrong.reason) == (field, reason)
