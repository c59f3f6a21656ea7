"""The catalogue through both clients: what an item is made of, what is sent, and what comes back."""

import decimal
import pickle
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from google.rpc import code_pb2

from longtide import (
    AsyncClient,
    InvalidArgumentError,
    Item,
    ItemError,
    NotFoundError,
    Tags,
    UnavailableError,
    UpsertResult,
)
from longtide._filter_messages import filter_message
from longtide.v1 import catalog_pb2

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
FULL = Item(
    "i1",
    "Clay mask",
    description="For the face.",
    categories=[("Beauty", "Skin care"), ["Gifts"]],
    tags=["vegan", "new"],
    brand="Lumo",
    price=12.5,
    publish_time=NOON,
    expire_time=NOON + timedelta(days=1, microseconds=250),
    available=False,
    language="en",
    text_vector=[0.1, -2],
    image_vector=np.array([1.0, 0.5, 0.25]),
    attributes={"colour": "green", "grams": 50, "refill": True},
    domain="shop",
)


# An item


def test_an_item_is_complete_and_plain_once_it_is_made():
    assert FULL.categories == (("Beauty", "Skin care"), ("Gifts",))
    assert FULL.tags == ("vegan", "new")
    assert FULL.expire_time == datetime(2026, 11, 2, 12, 0, 0, 250, UTC)
    assert FULL.image_vector == (1.0, 0.5, 0.25)
    assert FULL.attributes == {"colour": "green", "grams": 50.0, "refill": True}
    assert [type(value) for value in FULL.attributes.values()] == [str, float, bool]
    assert pickle.loads(pickle.dumps(FULL)) == FULL
    assert len({FULL, pickle.loads(pickle.dumps(FULL))}) == 1


def test_an_id_is_enough():
    item = Item("i1")
    assert (item.title, item.categories, item.price, item.available, item.text_vector) == ("", (), None, True, None)


def test_times_become_utc_and_may_be_seconds():
    berlin = timezone(timedelta(hours=1))
    assert Item("i1", publish_time=datetime(2026, 11, 1, 13, tzinfo=berlin)).publish_time == NOON
    assert Item("i1", expire_time=0).expire_time == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_category_of_one_string_is_one_name_as_it_is():
    assert Item("i1", categories=["Beauty > Masks", ("Gifts",)]).categories == (("Beauty > Masks",), ("Gifts",))


@pytest.mark.parametrize(
    "vector",
    [[0.1, 2], (0.1, 2), np.array([0.1, 2]), np.array([0.1, 2], np.float32), iter([0.1, 2.0]), [np.float16(0.1), 2]],
)
def test_a_vector_may_be_any_numbers(vector):
    assert Item("i1", text_vector=vector).text_vector == pytest.approx((0.1, 2.0), rel=1e-3)


def test_numbers_of_other_kinds_are_numbers():
    item = Item("i1", price=decimal.Decimal("9.95"), attributes={"a": np.float32(0.5), "b": np.int64(3)})
    assert item.price == 9.95
    assert item.attributes == {"a": 0.5, "b": 3.0}
    assert all(type(value) is float for value in item.attributes.values())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"item_id": 7}, TypeError, "item_id must be a str, not int"),
        ({"title": "\ud800"}, ValueError, "title cannot be encoded"),
        ({"categories": "Beauty"}, TypeError, "categories must be an iterable of categories, not one str"),
        ({"categories": [("Beauty", 1)]}, TypeError, r"categories\[0\]\[1\] must be a str, not int"),
        ({"tags": "new"}, TypeError, "tags must be an iterable of str, not one str"),
        ({"price": "9.95"}, TypeError, "price must be a number, not str"),
        ({"publish_time": NOON.replace(tzinfo=None)}, ValueError, "publish_time must know its time zone"),
        ({"available": "false"}, TypeError, "available must be a bool, not str"),
        ({"text_vector": "0.5"}, TypeError, "text_vector must be an iterable of numbers, not str"),
        ({"text_vector": b"abcd"}, TypeError, "text_vector must be an iterable of numbers, not bytes"),
        ({"text_vector": ["0.5"]}, TypeError, "text_vector must be an iterable of numbers: .*not str"),
        ({"image_vector": np.ones((2, 2))}, TypeError, "image_vector must be an iterable of numbers"),
        ({"image_vector": 0.5}, TypeError, "image_vector must be an iterable of numbers"),
        ({"attributes": {"a": None}}, TypeError, r"attributes\['a'\] must be a str, a number or a bool, not NoneType"),
        ({"attributes": {"a": np.bool_(True)}}, TypeError, r"attributes\['a'\] must be a str, a number or a bool"),
        ({"attributes": {1: "x"}}, TypeError, "attributes must be a str, not int"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(wrong, error, message):
    with pytest.raises(error, match=message):
        Item(**{"item_id": "i1", **wrong})


# Writing and reading


def test_an_item_comes_back_as_it_was_written(client, server):
    assert client.upsert_items([FULL, Item("i2")]) == UpsertResult(2)
    server.items["i1"].update_time.FromDatetime(NOON)
    found = client.get_item("i1")
    assert found == FULL
    assert found.update_time == NOON
    assert client.get_item("i2") == Item("i2")
    assert client.upsert_items([found]) == UpsertResult(1)
    assert not server.requests[-1].items[0].HasField("update_time")


def test_what_is_absent_is_not_sent(client, server):
    client.upsert_items([Item("i1")])
    [sent] = server.requests[-1].items
    assert sent == catalog_pb2.Item(item_id="i1", availability=catalog_pb2.AVAILABILITY_AVAILABLE)
    assert not server.requests[-1].HasField("update_mask")


def test_some_fields_are_named_as_the_item_names_them(client, server):
    client.upsert_items([Item("i1", price=1.0)], ["price", "available"])
    assert server.requests[-1].update_mask.paths == ["price", "availability"]
    client.upsert_items([Item("i1")], fields=[])
    assert server.requests[-1].HasField("update_mask")
    with pytest.raises(TypeError, match="fields must be an iterable of str, not one str"):
        client.upsert_items([Item("i1")], "price")


def test_a_wrong_field_is_the_callers_error_and_no_items(client):
    with pytest.raises(InvalidArgumentError, match="the request is wrong") as caught:
        client.upsert_items([Item("i1")], ["nonsense"])
    assert caught.value.violations[0].field == "update_mask"


def test_items_go_in_batches_that_the_server_takes(client, server):
    assert client.upsert_items(Item(f"i{n}") for n in range(2_500)) == UpsertResult(2_500)
    assert [len(request.items) for request in server.requests] == [1_000, 1_000, 500]


def test_no_message_is_larger_than_any_server_takes(client, server):
    large = [Item(f"i{n}", description="x" * 60_000) for n in range(150)]
    assert client.upsert_items(large).written_count == 150
    assert len(server.requests) == 3
    assert all(request.ByteSize() < 4 * 1024 * 1024 for request in server.requests)


def test_refused_items_are_named_by_their_place_among_all(client):
    items = [Item(f"i{n}", price=-1 if n in (3, 1_001) else 1) for n in range(1_002)]
    assert client.upsert_items(items) == UpsertResult(
        1_000, (ItemError(3, "i3", "price", "is too low"), ItemError(1_001, "i1001", "price", "is too low"))
    )


def test_a_batch_without_a_good_item_is_no_exception(client, server):
    server.max_violations = 1
    items = [Item(f"i{n}", price=1 if n < 1_000 else -1) for n in range(1_002)]
    assert client.upsert_items(items) == UpsertResult(
        1_000,
        (ItemError(1_000, "i1000", "price", "is too low"), ItemError(1_001, "i1001", "", "the request is wrong")),
    )


def test_nothing_to_write_is_nothing_sent(client, server):
    assert client.upsert_items([]) == UpsertResult()
    assert client.delete_items([]) == 0
    assert server.requests == []


def test_what_is_no_item_is_refused(client, server):
    with pytest.raises(TypeError, match=r"items must be longtide\.Item objects, not dict"):
        client.upsert_items([{"item_id": "i1"}])
    assert server.requests == []


def test_writes_are_retried_and_then_fail(client, server, rich_status):
    server.failures.append(rich_status(code_pb2.UNAVAILABLE, "starting"))
    assert client.upsert_items([Item("i1")]).written_count == 1
    server.failures.extend([rich_status(code_pb2.UNAVAILABLE, "the disk is gone")] * 4)
    with pytest.raises(UnavailableError, match="the disk is gone"):
        client.upsert_items([Item("i1")])


async def test_items_may_come_as_they_are_made(server):
    async def made():
        for n in range(3):
            yield Item(f"i{n}")

    async with AsyncClient(server.target) as client:
        assert await client.upsert_items(made()) == UpsertResult(3)


def test_an_item_that_is_not_there_is_not_found(client):
    with pytest.raises(NotFoundError, match="there is no item 'i1'"):
        client.get_item("i1")


def test_items_are_listed_page_by_page_as_they_are_used(client, server):
    client.upsert_items(Item(f"i{n}", price=n) for n in range(5))
    server.requests.clear()
    assert [item.item_id for item in client.list_items(page_size=2)] == [f"i{n}" for n in range(5)]
    assert [(one.page_size, one.page_token) for one in server.requests] == [(2, ""), (2, "i1"), (2, "i3")]
    server.requests.clear()
    listed = client.list_items(page_size=2)
    assert next(listed) == Item("i0", price=0)
    listed.close()
    assert len(server.requests) == 1


def test_many_ids_are_deleted_in_messages_that_any_server_takes(client, server):
    client.upsert_items([Item("i1"), Item("i2")])
    server.requests.clear()
    assert client.delete_items(["i1", *("x" * 500 + str(n) for n in range(12_000)), "i2"]) == 2
    assert [len(request.item_ids) for request in server.requests] == [5_000, 5_000, 2_002]
    assert all(request.ByteSize() < 4 * 1024 * 1024 for request in server.requests)
    with pytest.raises(TypeError, match="item_ids must be an iterable of str, not one str"):
        client.delete_items("i1")


def test_what_a_newer_server_says_is_read_as_far_as_it_is_known(client, server):
    server.items["i1"] = catalog_pb2.Item(
        item_id="i1", availability=9, attributes=[{"name": "of another kind"}, {"name": "a", "number": 1}]
    )
    assert client.get_item("i1") == Item("i1", attributes={"a": 1.0})


def test_items_are_listed_by_a_filter(client, server):
    assert list(client.list_items(Tags("new"))) == []
    assert server.requests[-1].filter == filter_message(Tags("new"))
