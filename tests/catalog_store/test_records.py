"""What is kept of an item: everything, in bytes that later releases read too."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.items import facts

from longtide_server.catalog_store.records import (
    FORMAT,
    MAX_RECORD_BYTES,
    from_record,
    size_violation,
    to_record,
    told_apart,
)
from longtide_server.errors import Unavailable
from longtide_server.items.item import Item

FULL = Item(
    "i1",
    title="Clay mask",
    description="For the face.",
    categories=(("Beauty", "Skin care"), ("Gifts",)),
    tags=("vegan", "new"),
    brand="Lumo",
    price=12.5,
    publish_time_s=100.25,
    expire_time_s=200.0,
    available=False,
    language="en",
    text_vector=np.array([0.1, -2.0, 3.5], np.float32),
    image_vector=np.array([1.0], np.float32),
    attributes={"colour": "green", "grams": 50.0, "refill": True, "tester": False},
    domain="shop",
    update_time_s=1_700_000_000.5,
)
GOLDEN = {
    1: "de0010a17601a175cb41d954fc40200000a174a9436c6179206d61736ba164ad466f722074686520666163652ea1639292a64265"
    "61757479a9536b696e206361726591a54769667473a16792a5766567616ea36e6577a162a44c756d6fa170cb4029000000000000"
    "a166cb4059100000000000a178cb4069000000000000a161c2a16ca2656ea27476c40ccdcccc3d000000c000006040a26976c404"
    "0000803fa16e84a6636f6c6f7572a5677265656ea56772616d73cb4049000000000000a6726566696c6cc3a6746573746572c2a1"
    "6fa473686f70"
}
"""FULL as each format has written it: every later release reads it."""
TEXTS = st.text(st.characters(codec="utf-8"), max_size=9)
FLOATS = st.floats(allow_nan=False, width=32)
ITEMS = st.builds(
    Item,
    item_id=st.just("i1"),
    title=TEXTS,
    description=TEXTS,
    categories=st.lists(st.lists(TEXTS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    tags=st.lists(TEXTS, max_size=3).map(tuple),
    brand=TEXTS,
    price=st.none() | st.floats(0, allow_infinity=False),
    publish_time_s=st.none() | st.floats(0, 1e11),
    expire_time_s=st.none() | st.floats(0, 1e11),
    available=st.booleans(),
    language=TEXTS,
    text_vector=st.none() | st.lists(FLOATS, min_size=1, max_size=5).map(lambda values: np.array(values, np.float32)),
    image_vector=st.none() | st.lists(FLOATS, min_size=1, max_size=5).map(lambda values: np.array(values, np.float32)),
    attributes=st.dictionaries(TEXTS, TEXTS | st.floats(allow_nan=False) | st.booleans(), max_size=4),
    domain=TEXTS,
    update_time_s=st.floats(0, 1e11),
)


@given(ITEMS)
def test_everything_comes_back(item):
    found = from_record("i1", to_record(item))
    assert facts(found) == facts(item)
    assert {name: type(value) for name, value in found.attributes.items()} == {
        name: type(value) for name, value in item.attributes.items()
    }


@pytest.mark.parametrize("record", GOLDEN.values())
def test_records_of_every_format_are_read(record):
    assert facts(from_record("i1", bytes.fromhex(record))) == facts(FULL)


def test_this_release_writes_what_its_golden_record_says():
    assert to_record(FULL).hex() == GOLDEN[FORMAT]


def test_a_field_of_a_later_release_is_skipped():
    later = msgspec.msgpack.decode(to_record(FULL)) | {"video": ["https://example.org"]}
    assert facts(from_record("i1", msgspec.msgpack.encode(later))) == facts(FULL)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "'i1' cannot be read"),
        (bytes.fromhex(GOLDEN[1])[:-1], "'i1' cannot be read"),
        (msgspec.msgpack.encode({"v": 2, "u": 0.0}), "'i1' is of format 2; this release reads format 1"),
    ],
)
def test_a_record_that_is_none_is_named(record, reason):
    with pytest.raises(Unavailable, match=reason):
        from_record("i1", record)


def test_what_is_damaged_is_not_there_but_what_a_later_release_wrote_is_not_passed_over():
    later = msgspec.msgpack.encode({"v": 2, "u": 0.0})
    items, gone = told_apart([("a", to_record(Item("a"))), ("b", None), ("c", b"\x00")])
    assert ([item.item_id for item in items], gone) == (["a"], ["b", "c"])
    with pytest.raises(Unavailable, match="this release reads format 1"):
        told_apart([("a", later)])


def test_a_small_item_is_small_and_a_vector_costs_four_bytes_a_number():
    bare = len(to_record(Item("i1")))
    assert bare < 20
    assert len(to_record(Item("i1", text_vector=np.ones(384, np.float32)))) < bare + 384 * 4 + 10


def test_an_item_is_too_large_as_a_whole():
    wrong = size_violation(bytes(MAX_RECORD_BYTES + 1))
    assert (wrong.field, wrong.reason) == ("", "the item is 262145 bytes large; at most 262144 are allowed")
    assert size_violation(bytes(MAX_RECORD_BYTES)) is None
