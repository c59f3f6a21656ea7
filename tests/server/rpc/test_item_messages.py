"""Items as messages: nothing is lost on the way, and what no item can be is named."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.items import facts

from longtide.v1 import catalog_pb2
from longtide_server.errors import InvalidInput
from longtide_server.items.item import Item, violation
from longtide_server.items.item_fields import FIELDS
from longtide_server.rpc.item_messages import read_item, write_item

TEXTS = st.text(st.characters(codec="utf-8"), max_size=9)
NAMES = st.text(st.sampled_from(string.ascii_letters + "ä🌊 >|"), min_size=1, max_size=9)
VECTORS = st.lists(st.floats(0.5, 2.0**100, width=32), min_size=1, max_size=5)
TIMES = st.integers(1, 7_000_000_000_000_000).map(lambda micros: micros / 1e6)  # until the year 2191
ITEMS = st.builds(
    Item,
    item_id=NAMES,
    title=TEXTS,
    description=TEXTS,
    categories=st.lists(st.lists(NAMES, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    tags=st.lists(NAMES, max_size=3, unique=True).map(tuple),
    brand=TEXTS,
    price=st.none() | st.floats(0, allow_infinity=False),
    publish_time_s=st.none() | TIMES,
    expire_time_s=st.none() | TIMES.map(lambda time_s: time_s + 7e9),
    available=st.booleans(),
    language=TEXTS,
    text_vector=st.none() | VECTORS.map(lambda values: np.array(values, np.float32)),
    image_vector=st.none() | VECTORS.map(lambda values: np.array(values, np.float32)),
    attributes=st.dictionaries(NAMES, TEXTS | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()),
    domain=TEXTS,
)


@given(ITEMS)
def test_an_item_comes_back_from_its_message(item):
    assert violation(item) is None
    wire = write_item(item).SerializeToString()
    found = read_item(catalog_pb2.Item.FromString(wire))
    times = ("publish_time_s", "expire_time_s")
    for name in times:
        assert getattr(found, name) == pytest.approx(getattr(item, name), abs=1e-6)
    assert {name: value for name, value in facts(found).items() if name not in times} == {
        name: value for name, value in facts(item).items() if name not in times
    }
    assert [type(value) for value in found.attributes.values()] == [type(value) for value in item.attributes.values()]


def test_every_field_of_the_contract_has_its_place():
    named = {field.name for field in catalog_pb2.Item.DESCRIPTOR.fields}
    assert named == {*FIELDS, "item_id", "update_time"}
    assert {*FIELDS.values()} == {*facts(Item("i1"))} - {"item_id", "update_time_s", "unwritten"}


def test_what_is_absent_is_none_and_what_is_zero_is_zero():
    bare = read_item(catalog_pb2.Item(item_id="i1"))
    assert facts(bare) == facts(Item("i1"))
    free = read_item(catalog_pb2.Item(item_id="i1", price=0.0, publish_time={"seconds": 0}))
    assert (free.price, free.publish_time_s) == (0.0, 0.0)
    assert write_item(free).HasField("price")
    assert not write_item(bare).HasField("price")


def test_only_the_fields_that_are_asked_for_are_read():
    message = catalog_pb2.Item(item_id="i1", title="Title", price=1.0, availability=99, update_time={"seconds": 5})
    assert facts(read_item(message, frozenset({"price"}))) == facts(Item("i1", price=1.0))


def test_the_last_moment_of_the_year_9999_is_a_time():
    message = catalog_pb2.Item(item_id="i1")
    message.expire_time.FromJsonString("9999-12-31T23:59:59.999999Z")
    item = read_item(message)
    assert violation(item) is None
    assert write_item(item).expire_time.ToJsonString().startswith("9999-12-31T23:59:59.9")


@pytest.mark.parametrize(
    ("message", "field", "reason"),
    [
        ({"availability": 7}, "availability", "7 is no availability; use 1 or 2"),
        ({"attributes": [{"name": "a"}]}, "attributes[0]", "must have a text, a number or a flag"),
        (
            {"attributes": [{"name": "a", "flag": False}, {"name": "a", "text": "x"}]},
            "attributes[1].name",
            "is that of an attribute before it",
        ),
        ({"publish_time": {"nanos": -1}}, "publish_time", "has -1 nanos; 0 to 999999999 are allowed"),
        ({"expire_time": {"nanos": 10**9}}, "expire_time", "has 1000000000 nanos; 0 to 999999999 are allowed"),
    ],
)
def test_what_no_item_can_have_is_named(message, field, reason):
    with pytest.raises(InvalidInput) as caught:
        read_item(catalog_pb2.Item(item_id="i1", **message))
    [wrong] = caught.value.violations
    assert (wrong.field, wrong.reason) == (field, reason)
