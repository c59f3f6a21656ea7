"""The rules that make an item valid, and when it may be recommended."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from longtide_server.items.item import Item, violation

GOOD = Item(
    "i1",
    title="Clay mask",
    description="For the face.",
    categories=(("Beauty", "Skin care", "Masks"),),
    tags=("vegan", "new"),
    brand="Lumo",
    price=12.5,
    publish_time_s=100.0,
    expire_time_s=200.0,
    language="en",
    text_vector=np.ones(3, np.float32),
    image_vector=np.ones(5, np.float32),
    attributes={"colour": "green", "grams": 50.0, "refill": True},
    domain="shop",
)


def test_a_good_item_breaks_no_rule() -> None:
    assert violation(GOOD) is None
    assert violation(Item("i1")) is None


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"item_id": ""}, "item_id", "must not be empty"),
        ({"item_id": "é" * 257}, "item_id", "is 514 bytes long; at most 512 are allowed"),
        ({"title": "x" * 1025}, "title", "is 1025 bytes long; at most 1024 are allowed"),
        ({"description": "x" * 65_537}, "description", "is 65537 bytes long; at most 65536 are allowed"),
        ({"categories": ((),)}, "categories[0].names", "holds 0 names; 1 to 16 are allowed"),
        ({"categories": (("a",) * 17,)}, "categories[0].names", "holds 17 names; 1 to 16 are allowed"),
        ({"categories": (("a",), ("b", ""))}, "categories[1].names[1]", "must not be empty"),
        ({"categories": (("a",),) * 65}, "categories", "holds 65; at most 64 are allowed"),
        ({"tags": ("a", "b", "a")}, "tags", "holds a tag twice"),
        ({"tags": ("a", "")}, "tags[1]", "must not be empty"),
        ({"tags": tuple(map(str, range(257)))}, "tags", "holds 257; at most 256 are allowed"),
        ({"brand": "x" * 513}, "brand", "is 513 bytes long; at most 512 are allowed"),
        ({"price": -0.01}, "price", "is -0.01; a finite number, 0 or more, is allowed"),
        ({"price": math.nan}, "price", "is nan; a finite number, 0 or more, is allowed"),
        ({"publish_time_s": -1.0}, "publish_time", "-1 s is not a time from 1970 to 9999"),
        ({"publish_time_s": math.nan}, "publish_time", "nan s is not a time from 1970 to 9999"),
        ({"expire_time_s": 100.0}, "expire_time", "is not after publish_time"),
        ({"language": "x" * 36}, "language", "is 36 bytes long; at most 35 are allowed"),
        ({"text_vector": np.zeros(0, np.float32)}, "text_vector", "holds 0 numbers; 1 to 4096 are allowed"),
        ({"text_vector": np.zeros(3, np.float32)}, "text_vector", "must hold finite numbers that are not all 0"),
        ({"image_vector": np.full(2, np.nan)}, "image_vector", "must hold finite numbers that are not all 0"),
        ({"attributes": {"": "x"}}, "attributes[0].name", "must not be empty"),
        ({"attributes": {"a": 1.0, "b": math.inf}}, "attributes[1].number", "inf is not a finite number"),
        ({"attributes": {"a": "x" * 1025}}, "attributes[0].text", "is 1025 bytes long; at most 1024 are allowed"),
        ({"attributes": {str(n): True for n in range(65)}}, "attributes", "holds 65; at most 64 are allowed"),
        ({"domain": "x" * 65}, "domain", "is 65 bytes long; at most 64 are allowed"),
    ],
)  # fmt: skip
def test_every_rule_names_its_field(change: dict[str, object], field: str, reason: str) -> None:
    wrong = violation(replace(GOOD, **change))  # type: ignore[arg-type]

    assert wrong is not None
    assert (wrong.field, wrong.reason) == (field, reason)


@pytest.mark.parametrize(("now_s", "expected"), [(99.9, False), (100.0, True), (199.9, True), (200.0, False)])
def test_an_item_is_recommended_from_its_publishing_until_it_expires(now_s: float, expected: bool) -> None:
    assert GOOD.recommendable(now_s) is expected
    assert not replace(GOOD, available=False).recommendable(now_s)
    assert Item("i1").recommendable(now_s)
