"""What can be asked of the catalogue, through a real gRPC server over a real file."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import field_mask_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from longtide.v1 import catalog_pb2, catalog_pb2_grpc
from longtide_server.catalog.catalog_writer import CatalogWriter
from longtide_server.items.item import Item
from longtide_server.rpc import item_pages
from longtide_server.rpc.catalog_service import CatalogService
from longtide_server.stores import open_stores

NOW_S = 1_700_000_000.25


@asynccontextmanager
async def serving(service):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 * 1024 * 1024)])
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield catalog_pb2_grpc.CatalogServiceStub(channel)
    await server.stop(None)


@pytest.fixture
async def catalog(tmp_path):
    stores = await open_stores(f"sqlite:///{tmp_path / 'events.db'}")
    writer = CatalogWriter(stores.items)
    async with serving(CatalogService(stores.items, writer, lambda: NOW_S)) as stub:
        yield SimpleNamespace(stub=stub, store=stores.items, writer=writer, close=stores.events.close)
    await stores.events.close()


def items(*messages):
    return [catalog_pb2.Item(**message) for message in messages]


async def upsert(catalog, *messages, mask=None):
    request = catalog_pb2.UpsertItemsRequest(items=items(*messages))
    if mask is not None:
        request.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=mask))
    return await catalog.stub.UpsertItems(request)


async def get(catalog, item_id):
    return (await catalog.stub.GetItem(catalog_pb2.GetItemRequest(item_id=item_id))).item


async def refusal(call):
    """The status, the message and the violations that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    bad = error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(caught.value).details if caught.value.trailing_metadata() else ():
        detail.Unpack(bad)
    violations = [(one.field, one.description) for one in bad.field_violations]
    return caught.value.code().name, caught.value.details(), violations


# Writing


async def test_an_item_comes_back_with_the_servers_time(catalog):
    sent = {"item_id": "i1", "title": "Mask", "price": 12.5, "update_time": {"seconds": 1}}
    answer = await upsert(catalog, sent)
    assert (answer.written_count, len(answer.errors)) == (1, 0)
    item = await get(catalog, "i1")
    assert (item.title, item.price) == ("Mask", 12.5)
    assert item.update_time.ToMilliseconds() == NOW_S * 1_000
    assert item.availability == catalog_pb2.AVAILABILITY_AVAILABLE


async def test_bad_items_are_refused_alone_by_index(catalog):
    await upsert(catalog, {"item_id": "v", "text_vector": {"values": [1, 2]}})
    answer = await upsert(
        catalog,
        {"item_id": "", "title": "x"},
        {"item_id": "good", "price": 1.0},
        {"item_id": "dear", "price": -1.0},
        {"item_id": "odd", "availability": 9},
        {"item_id": "good", "price": 2.0},
        {"item_id": "flat", "text_vector": {"values": [1, 2, 3]}},
        {"item_id": "fine", "text_vector": {"values": [3, 4]}},
    )
    assert answer.written_count == 2
    assert [(one.index, one.item_id, one.field, one.reason) for one in answer.errors] == [
        (0, "", "item_id", "must not be empty"),
        (2, "dear", "price", "is -1.0; a finite number, 0 or more, is allowed"),
        (3, "odd", "availability", "9 is no availability; use 1 or 2"),
        (4, "good", "item_id", "is that of an item before it in the batch"),
        (
            5,
            "flat",
            "text_vector",
            "holds 3 numbers; the first one written has declared that each holds 2",
        ),
    ]
    assert (await get(catalog, "good")).price == 1.0


async def test_a_batch_without_a_good_item_is_refused(catalog):
    await upsert(catalog, {"item_id": "v", "text_vector": {"values": [1, 2]}})
    code, message, violations = await refusal(
        upsert(catalog, {"item_id": "a", "price": -1}, {"item_id": "b", "text_vector": {"values": [1]}})
    )
    assert (code, message) == ("INVALID_ARGUMENT", "none of the 2 items can be written")
    assert [field for field, _ in violations] == ["items[0].price", "items[1].text_vector"]


async def test_an_item_that_is_too_large_is_refused_without_a_field(catalog):
    large = {"item_id": "a", "categories": [{"names": ["x" * 256] * 16}] * 64, "description": "y" * 65_536}
    _, _, violations = await refusal(upsert(catalog, large))
    assert violations == [("items[0]", "the item is 330973 bytes large; at most 262144 are allowed")]


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_is_of_1_to_1000_items(catalog, count):
    code, message, _ = await refusal(upsert(catalog, *({"item_id": f"i{n}"} for n in range(count))))
    assert (code, message) == ("INVALID_ARGUMENT", f"items: holds {count} items; 1 to 1000 are allowed")


async def test_a_thousand_items_are_a_batch(catalog):
    answer = await upsert(catalog, *({"item_id": f"i{n}", "title": str(n)} for n in range(1_000)))
    assert answer.written_count == 1_000


# Masks


async def test_a_mask_says_what_is_changed(catalog):
    await upsert(catalog, {"item_id": "i1", "title": "Old", "price": 1.0, "brand": "Lumo"})
    await upsert(catalog, {"item_id": "i1", "title": "New", "brand": "x"}, mask=["title", "price", "title"])
    item = await get(catalog, "i1")
    assert (item.title, item.brand, item.HasField("price")) == ("New", "Lumo", False)


async def test_what_a_mask_leaves_out_may_be_wrong(catalog):
    answer = await upsert(catalog, {"item_id": "i1", "title": "x" * 2_000, "price": 1.0}, mask=["price"])
    assert answer.written_count == 1


async def test_a_star_replaces_everything(catalog):
    await upsert(catalog, {"item_id": "i1", "title": "Old", "brand": "Lumo"})
    await upsert(catalog, {"item_id": "i1", "title": "New"}, mask=["*"])
    assert (await get(catalog, "i1")).brand == ""


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([], "names no field; leave it out to replace every field"),
        (["price", "*"], "'*' cannot be changed"),
        (["item_id"], "'item_id' cannot be changed"),
        (["update_time"], "'update_time' cannot be changed"),
        (["text_vector.values"], "'text_vector.values' cannot be changed"),
        (["publishTime"], "'publishTime' cannot be changed"),
        ([""], "'' cannot be changed"),
        (["x" * 1_000], "'" + "x" * 60 + "' cannot be changed"),
    ],
)
async def test_a_mask_that_is_wrong_is_named(catalog, mask, reason):
    code, message, [(field, _)] = await refusal(upsert(catalog, {"item_id": "i1"}, mask=mask))
    assert (code, field) == ("INVALID_ARGUMENT", "update_mask")
    assert message.startswith(f"update_mask: {reason}")


# Reading


@pytest.mark.parametrize("item_id", ["never written", "deleted"])
async def test_an_item_that_is_not_there_is_not_found(catalog, item_id):
    await upsert(catalog, {"item_id": "deleted"})
    await catalog.stub.DeleteItems(catalog_pb2.DeleteItemsRequest(item_ids=["deleted"]))
    code, message, _ = await refusal(get(catalog, item_id))
    assert (code, message) == ("NOT_FOUND", f"there is no item '{item_id}'")


async def pages(catalog, **request):
    """Every page as ids."""
    found, token = [], ""
    while True:
        page = await catalog.stub.ListItems(catalog_pb2.ListItemsRequest(page_token=token, **request))
        found.append([item.item_id for item in page.items])
        token = page.next_page_token
        if not token:
            return found


async def test_pages_end_where_the_items_do(catalog):
    assert await pages(catalog) == [[]]
    await upsert(catalog, *({"item_id": item_id} for item_id in ("b", "é", "a", "c")))
    assert await pages(catalog, page_size=3) == [["a", "b", "c"], ["é"]]
    assert await pages(catalog, page_size=2) == [["a", "b"], ["c", "é"]]
    assert await pages(catalog, page_size=4) == await pages(catalog) == [["a", "b", "c", "é"]]


async def test_pages_of_many_items_hold_each_once(catalog):
    await upsert(catalog, *({"item_id": f"i{n:03}"} for n in range(1_000)))
    for size, count in ((1_000, 1), (999, 2), (150, 7), (100, 10), (30, 34)):
        found = await pages(catalog, page_size=size)
        assert len(found) == count
        assert [item_id for page in found for item_id in page] == [f"i{n:03}" for n in range(1_000)]


async def test_a_page_of_large_items_is_short_enough_for_a_plain_client(catalog):
    for at in range(0, 120, 40):
        await upsert(catalog, *({"item_id": f"i{n:03}", "description": "ä" * 32_000} for n in range(at, at + 40)))
    found = await pages(catalog, page_size=1_000)
    assert len(found) == 3
    assert [item_id for page in found for item_id in page] == [f"i{n:03}" for n in range(120)]


async def test_of_items_that_seldom_pass_a_page_ends_after_so_many_were_looked_at(catalog, monkeypatch):
    monkeypatch.setattr(item_pages, "MAX_LOOKED_AT", 200)
    await upsert(catalog, *({"item_id": f"i{n:03}", "price": n} for n in range(500)))

    def passes(item):
        return item.price in (3, 5, 450)

    found, after = [], ""
    while after is not None:
        page = await item_pages.listed(catalog.store, 2, after, passes)
        found.append([message.item_id for message in page.messages])
        after = page.last
    assert found == [["i003", "i005"], [], [], ["i450"]]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"page_size": 0}, "page_size: is 0; 1 to 1000 are allowed"),
        ({"page_size": 1_001}, "page_size: is 1001; 1 to 1000 are allowed"),
        ({"page_token": "no token"}, "page_token: is not one that this service has given"),
        ({"page_token": "ff"}, "page_token: is not one that this service has given"),
        ({"page_token": "61" * 513}, "page_token: is not one that this service has given"),
    ],
)
async def test_a_page_that_cannot_be_is_named(catalog, request_, reason):
    code, message, _ = await refusal(catalog.stub.ListItems(catalog_pb2.ListItemsRequest(**request_)))
    assert (code, message) == ("INVALID_ARGUMENT", reason)


async def test_only_items_that_pass_a_filter_are_listed(catalog):
    await upsert(catalog, {"item_id": "a", "tags": ["new"]}, {"item_id": "b"}, {"item_id": "c", "tags": ["new"]})
    request = catalog_pb2.ListItemsRequest(filter={"tags": {"names": ["new"]}}, page_size=1)
    first = await catalog.stub.ListItems(request)
    request.page_token = first.next_page_token
    second = await catalog.stub.ListItems(request)
    assert [item.item_id for page in (first, second) for item in page.items] == ["a", "c"]


async def test_a_wrong_filter_is_named_where_it_stands(catalog):
    request = catalog_pb2.ListItemsRequest(filter={"tags": {}})
    code, message, _ = await refusal(catalog.stub.ListItems(request))
    assert (code, message) == ("INVALID_ARGUMENT", "filter.tags.names: must hold a name")


# Deleting


async def test_a_deletion_says_how_many_items_there_were(catalog):
    await upsert(catalog, {"item_id": "a"}, {"item_id": "b"})
    request = catalog_pb2.DeleteItemsRequest(item_ids=["a", "a", "unknown"])
    assert (await catalog.stub.DeleteItems(request)).deleted_count == 1
    assert (await catalog.stub.DeleteItems(request)).deleted_count == 0
    assert await pages(catalog) == [["b"]]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([], "item_ids: holds 0 ids; 1 to 10000 are allowed"),
        (["a"] * 10_001, "item_ids: holds 10001 ids; 1 to 10000 are allowed"),
        (["a", ""], "item_ids[1]: must not be empty"),
        (["a", "x" * 513], "item_ids[1]: is 513 bytes long; at most 512 are allowed"),
    ],
)
async def test_a_deletion_that_cannot_be_is_named(catalog, ids, reason):
    code, message, _ = await refusal(catalog.stub.DeleteItems(catalog_pb2.DeleteItemsRequest(item_ids=ids)))
    assert (code, message) == ("INVALID_ARGUMENT", reason)


async def test_of_many_wrong_ids_the_first_are_named(catalog):
    _, _, violations = await refusal(
        catalog.stub.DeleteItems(catalog_pb2.DeleteItemsRequest(item_ids=["x" * 600] * 10_000))
    )
    assert [field for field, _ in violations] == [f"item_ids[{n}]" for n in range(10)]


async def test_changes_are_felt_before_they_are_answered(catalog):
    told = []
    copy = SimpleNamespace(apply=lambda items, deleted: told.append(([item.title for item in items], list(deleted))))
    await catalog.writer.add(copy)
    await upsert(catalog, {"item_id": "a", "title": "A"})
    await catalog.stub.DeleteItems(catalog_pb2.DeleteItemsRequest(item_ids=["a"]))
    assert told == [(["A"], []), ([], ["a"])]


async def test_a_store_that_is_away_is_unavailable(catalog):
    await catalog.close()
    for call in (
        upsert(catalog, {"item_id": "a"}),
        get(catalog, "a"),
        catalog.stub.ListItems(catalog_pb2.ListItemsRequest()),
        catalog.stub.DeleteItems(catalog_pb2.DeleteItemsRequest(item_ids=["a"])),
    ):
        code, message, _ = await refusal(call)
        assert (code, message) == ("UNAVAILABLE", "the event store is closing")


async def test_an_item_of_every_field_survives_the_way_there_and_back(catalog):
    sent = catalog_pb2.Item(
        item_id="i1",
        title="Mask",
        description="For the face.",
        categories=[{"names": ["Beauty", "Masks"]}, {"names": ["Gifts"]}],
        tags=["new", "vegan"],
        brand="Lumo",
        price=12.5,
        publish_time={"seconds": 100, "nanos": 250_000_000},
        expire_time={"seconds": 200},
        availability=catalog_pb2.AVAILABILITY_UNAVAILABLE,
        language="en",
        text_vector={"values": [0.25, -1.0]},
        image_vector={"values": [3.0]},
        attributes=[{"name": "colour", "text": "green"}, {"name": "g", "number": 5}, {"name": "refill", "flag": False}],
        domain="shop",
    )
    await catalog.stub.UpsertItems(catalog_pb2.UpsertItemsRequest(items=[sent]))
    found = await get(catalog, "i1")
    found.ClearField("update_time")
    assert found == sent
    assert (await catalog.store.get("i1")).attributes == {"colour": "green", "g": 5.0, "refill": False}
    assert isinstance(await catalog.store.get("i1"), Item)
