"""What every store of the catalogue promises, whatever it keeps its items in."""

import asyncio
import time

import numpy as np
import pytest
from tests.items import facts

from longtide_server.catalog_store import Revision
from longtide_server.events import Event, EventType
from longtide_server.items.item import Item
from longtide_server.items.item_fields import FIELDS
from longtide_server.stores import open_stores

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
    attributes={"colour": "green", "grams": 50.0, "refill": True},
    domain="shop",
)
NOW_S = 1_700_000_000.5


def vector(size):
    return np.ones(size, np.float32)


def only(*names):
    return frozenset(names)


async def put(store, *items, fields=None, now_s=NOW_S):
    """Write items; what is refused, as (place, field, reason)."""
    upserted = await store.upsert(items, fields, now_s)
    assert upserted.written + len(upserted.refused) == len(items)
    return [(one.index, one.violation.field, one.violation.reason) for one in upserted.refused]


async def title_of(store, item_id):
    item = await store.get(item_id)
    return None if item is None else item.title


async def all_pages(store, size):
    """Every page as ids."""
    pages, after = [], ""
    while True:
        page = await store.page(size, after)
        pages.append([item.item_id for item in page.items])
        if not page.more:
            return pages
        after = page.items[-1].item_id


class Follower:
    """A copy of what the catalogue says, as a server keeps one."""

    def __init__(self, store):
        self.store = store
        self.titles = {}
        self.revision = Revision()

    async def follow(self, limit=1_000):
        """Catch up; how many changes that took."""
        count = 0
        while True:
            found = await self.store.changes(self.revision, limit)
            assert len(found.items) + len(found.deleted) <= limit
            self.titles.update({item.item_id: item.title for item in found.items})
            for item_id in found.deleted:
                self.titles.pop(item_id, None)
            assert found.revision.number >= self.revision.number
            self.revision = found.revision
            count += len(found.items) + len(found.deleted)
            if not found.more:
                return count


# What is written


async def test_every_field_comes_back_with_the_time_of_writing(store):
    await put(store, FULL, Item("i2"))
    assert facts(await store.get("i1")) == facts(FULL) | {"update_time_s": NOW_S}
    assert facts(await store.get("i2")) == facts(Item("i2", update_time_s=NOW_S))
    assert await store.get("i3") is None


async def test_items_survive_a_restart(store, opened):
    await put(store, FULL, Item("gone"), Item("i2", title="Two"))
    await store.delete(["gone"])
    revision = await store.revision()
    await opened.close()
    again = await opened()
    assert facts(await again.get("i1")) == facts(FULL) | {"update_time_s": NOW_S}
    assert await again.get("gone") is None
    assert await again.revision() == revision
    assert await put(again, Item("i3", text_vector=vector(2))) == [
        (0, "text_vector", "holds 2 numbers; the first one written has declared that each holds 3")
    ]


async def test_writing_again_replaces_everything(store):
    await put(store, FULL)
    await put(store, Item("i1", brand="Other"), now_s=NOW_S + 1)
    assert facts(await store.get("i1")) == facts(Item("i1", brand="Other", update_time_s=NOW_S + 1))


async def test_of_one_item_twice_in_a_batch_the_last_counts(store):
    await put(store, Item("i1", title="First"), Item("i1", title="Last"))
    assert await title_of(store, "i1") == "Last"
    assert await all_pages(store, 9) == [["i1"]]


async def test_ids_of_any_letters_are_kept_apart(store):
    ids = ["a", "A", "a ", "ä", "\0", "a\0", "🌊", "{catalog}", "(", "[a", "+", "-", "0"]
    await put(store, *(Item(item_id, title=f"title of {item_id}") for item_id in ids))
    assert [await title_of(store, item_id) for item_id in ids] == [f"title of {item_id}" for item_id in ids]
    assert await all_pages(store, 2) == [sorted(ids, key=str.encode)[at : at + 2] for at in range(0, len(ids), 2)]
    await store.delete(["\0", "("])
    follower = Follower(store)
    await follower.follow(limit=2)
    assert follower.titles.keys() == set(ids) - {"\0", "("}


# Some fields


async def test_a_change_of_some_fields_leaves_the_others(store):
    await put(store, FULL)
    sent = Item("i1", title="not named", price=None, available=True, text_vector=vector(3))
    assert await put(store, sent, fields=only("price", "availability", "text_vector"), now_s=NOW_S + 1) == []
    found = facts(await store.get("i1"))
    changed = {"price": None, "available": True, "text_vector": ("float32", [1, 1, 1]), "update_time_s": NOW_S + 1}
    assert found == facts(FULL) | changed


async def test_of_a_new_item_the_other_fields_stay_empty(store):
    await put(store, Item("i1", title="not named", price=3.0), fields=only("price"))
    unwritten = frozenset(FIELDS) - {"price"}
    assert facts(await store.get("i1")) == facts(Item("i1", price=3.0, update_time_s=NOW_S, unwritten=unwritten))


async def test_it_is_known_which_fields_were_never_written(store):
    await put(store, Item("i1", price=3.0), fields=only("price"))
    await put(store, Item("i1"), fields=only("tags", "price"))
    assert (await store.get("i1")).unwritten == frozenset(FIELDS) - {"price", "tags"}
    await put(store, Item("i1"))
    assert (await store.get("i1")).unwritten == frozenset()


async def test_a_change_of_no_field_is_noted_as_written(store):
    await put(store, FULL)
    await put(store, Item("i1"), fields=only(), now_s=NOW_S + 1)
    assert facts(await store.get("i1")) == facts(FULL) | {"update_time_s": NOW_S + 1}


async def test_fields_that_do_not_go_with_those_that_are_kept_are_refused_alone(store):
    await put(store, FULL)
    refused = await put(
        store,
        Item("i2", expire_time_s=50.0),
        Item("i1", expire_time_s=50.0),
        Item("i3", expire_time_s=60.0),
        fields=only("expire_time"),
    )
    assert refused == [(1, "expire_time", "is not after publish_time")]
    assert (await store.get("i1")).expire_time_s == 200.0
    assert (await store.get("i3")).expire_time_s == 60.0


async def test_an_item_that_becomes_too_large_is_refused_alone(store):
    large = Item("i1", categories=tuple(("x" * 256,) * 15 for _ in range(64)))
    assert await put(store, large, Item("i2")) == []
    refused = await put(
        store, Item("i2", description="y" * 65_536), Item("i1", description="y" * 65_536), fields=only("description")
    )
    assert refused == [(1, "", "the item is 314269 bytes large; at most 262144 are allowed")]
    assert (await store.get("i1")).description == ""


async def test_changes_of_different_fields_at_the_same_time_all_count(store, opened):
    """Through two servers where a store can be shared: none undoes what another has just written."""
    other = await opened() if store.shared else store
    await put(store, Item("i1"))

    async def write(server, number):
        await put(server, Item("i1", attributes={"n": float(number)}), fields=only("attributes"))
        name = f"{('title', 'brand', 'language', 'description')[number % 4]}"
        await put(server, Item("i1", **{name: f"by {number}"}), fields=only(name))

    await asyncio.gather(*(write((store, other)[number % 2], number) for number in range(16)))
    found = await store.get("i1")
    for number, name in enumerate(("title", "brand", "language", "description")):
        assert getattr(found, name) in {f"by {one}" for one in range(number, 16, 4)}
    assert facts(await other.get("i1")) == facts(found)


@pytest.mark.parametrize("servers", [2, 8])
async def test_hundreds_of_changes_of_one_item_at_once_all_succeed(store, opened, servers):
    stores = [store, *[await opened() for _ in range(servers - 1)]] if store.shared else [store]
    changes = (
        put(stores[number % len(stores)], Item("i1", price=float(number)), fields=only("price"))
        for number in range(300)
    )
    assert await asyncio.gather(*changes) == [[]] * 300
    assert (await store.get("i1")).price in range(300)


async def test_a_stamp_stays_only_as_long_as_no_item_changes(store, opened):
    """By whomever; what else is written is no news of an item."""
    other = await opened() if store.shared else store
    await put(store, Item("i1"))
    seen = [store.stamp()]
    if seen == [None]:
        return  # whoever wants to know asks for the changes
    changes = (
        lambda one: put(one, Item("i1", title="again")),
        lambda one: put(one, Item("i1", brand="Lumo"), fields=only("brand")),
        lambda one: one.delete(["i1"]),
    )
    for one in (other, store):
        for change in changes:
            await change(one)
            assert store.stamp() not in seen
            seen.append(store.stamp())
    for unchanging in (other.delete(["i1"]), put(other, Item("i2", price=-1.0, description="y" * 400_000))):
        await unchanging
    assert store.stamp() == seen[-1]


# Vectors


async def test_the_first_vector_declares_the_size_of_all(store):
    assert await put(store, Item("i1", text_vector=vector(4)), Item("i2")) == []
    refused = await put(
        store,
        Item("i3", text_vector=vector(5), title="refused"),
        Item("i4", text_vector=vector(4), image_vector=vector(2)),
        Item("i5", image_vector=vector(3)),
    )
    assert refused == [
        (0, "text_vector", "holds 5 numbers; the first one written has declared that each holds 4"),
        (2, "image_vector", "holds 3 numbers; the first one written has declared that each holds 2"),
    ]
    assert await store.get("i3") is None
    assert len((await store.get("i4")).image_vector) == 2


async def test_in_one_batch_the_first_item_with_a_vector_declares(store):
    refused = await put(store, Item("i1"), Item("i2", text_vector=vector(2)), Item("i3", text_vector=vector(3)))
    assert [(place, field) for place, field, _ in refused] == [(2, "text_vector")]


async def test_a_refused_item_declares_nothing(store):
    await put(store, Item("i1", image_vector=vector(2)))
    assert len(await put(store, Item("i2", text_vector=vector(7), image_vector=vector(3)))) == 1
    assert await put(store, Item("i3", text_vector=vector(8))) == []


async def test_a_declaration_outlives_its_item_but_not_the_last_item(store):
    await put(store, Item("i1", text_vector=vector(4), image_vector=vector(2)), Item("other"))
    await store.delete(["i1"])
    assert len(await put(store, Item("i2", text_vector=vector(5)))) == 1
    await store.delete(["other", "unknown"])
    assert await put(store, Item("i2", text_vector=vector(5), image_vector=vector(3))) == []
    assert len(await put(store, Item("i3", text_vector=vector(4)))) == 1


async def test_a_vector_is_checked_where_it_is_one_of_some_fields(store):
    await put(store, Item("i1", text_vector=vector(4)))
    assert len(await put(store, Item("i1", text_vector=vector(5)), fields=only("text_vector"))) == 1
    assert await put(store, Item("i1", text_vector=vector(5), title="new"), fields=only("title")) == []


async def test_of_two_servers_that_declare_at_once_one_is_refused(store, opened):
    other = await opened() if store.shared else store
    sizes = [*range(1, 21)]
    tries = await asyncio.gather(
        *(put((store, other)[size % 2], Item(f"i{size}", text_vector=vector(size))) for size in sizes)
    )
    [declared] = [size for size, refused in zip(sizes, tries, strict=True) if not refused]
    reasons = {reason for refused in tries for _, _, reason in refused}
    assert all(reason.endswith(f"has declared that each holds {declared}") for reason in reasons)
    assert [item.item_id for item in (await store.page(99)).items] == [f"i{declared}"]


# Pages


async def test_pages_go_by_the_bytes_of_the_ids(store):
    await put(store, *(Item(item_id) for item_id in ("b", "é", "Z", "a", "aa", "10", "9")))
    assert await all_pages(store, 3) == [["10", "9", "Z"], ["a", "aa", "b"], ["é"]]
    assert await all_pages(store, 7) == [["10", "9", "Z", "a", "aa", "b", "é"]]


async def test_an_empty_catalogue_has_an_empty_page(store):
    assert await all_pages(store, 3) == [[]]


async def test_an_item_that_is_written_between_two_pages_moves_nothing(store):
    await put(store, *(Item(f"i{n}") for n in range(0, 10, 2)))
    first = await store.page(2)
    await put(store, Item("i1"), Item("i3"), Item("i0", title="changed"))
    await store.delete(["i2", "i4"])
    second = await store.page(2, first.items[-1].item_id)
    assert [item.item_id for item in (*first.items, *second.items)] == ["i0", "i2", "i3", "i6"]


async def test_pages_that_are_read_while_items_are_written_hold_every_other_item_once(store):
    await put(store, *(Item(f"kept {n:03}") for n in range(300)))

    async def write():
        for n in range(30):
            await put(store, *(Item(f"kept {k:03}", title=str(n)) for k in range(n, 300, 30)), Item(f"new {n}"))
            await store.delete([f"new {n}"])

    writing = asyncio.create_task(write())
    while not writing.done():
        found = [item_id for page in await all_pages(store, 17) for item_id in page]
        assert [item_id for item_id in found if item_id.startswith("kept")] == [f"kept {n:03}" for n in range(300)]
    await writing


async def test_a_page_and_a_piece_of_changes_end_before_they_are_too_large_to_hold(store):
    large = [Item(f"i{n:02}", description=str(n) * 30_000, title=str(n)) for n in range(200)]
    await put(store, *large)
    page = await store.page(1_000)
    assert page.more
    assert 4_000_000 <= sum(len(item.description) for item in page.items) < 4_100_000
    assert sum(map(len, await all_pages(store, 1_000))) == 200
    found = await store.changes(Revision(), 1_000)
    assert found.more
    assert len(found.items) < 200
    follower = Follower(store)
    await follower.follow()
    assert len(follower.titles) == 200


# Deletion


async def test_a_deleted_item_is_gone_and_known_to_be(store):
    await put(store, Item("i1"), Item("i2"))
    follower = Follower(store)
    await follower.follow()
    assert await store.delete(["i1", "i1", "never written"]) == 1
    assert await store.get("i1") is None
    assert await all_pages(store, 9) == [["i2"]]
    found = await store.changes(follower.revision, 9)
    assert (list(found.items), sorted(found.deleted)) == ([], ["i1", "never written"])


async def test_a_new_copy_learns_of_every_deletion(store):
    await put(store, Item("i1"), Item("i2"))
    await store.delete(["i2", "only a snapshot knows it"])
    found = await store.changes(Revision(), 9)
    assert [item.item_id for item in found.items] == ["i1"]
    assert sorted(found.deleted) == ["i2", "only a snapshot knows it"]


async def test_deleting_again_changes_nothing(store):
    await put(store, Item("i1"))
    assert await store.delete(["i1", "i2"]) == 1
    revision = await store.revision()
    assert await store.delete(["i2", "i1"]) == 0
    assert await store.revision() == revision


async def test_writing_it_again_revives_a_deleted_item_without_its_past(store):
    await put(store, FULL)
    await store.delete(["i1"])
    await put(store, Item("i1", price=1.0, title="not named"), fields=only("price"))
    unwritten = frozenset(FIELDS) - {"price"}
    assert facts(await store.get("i1")) == facts(Item("i1", price=1.0, update_time_s=NOW_S, unwritten=unwritten))
    assert await all_pages(store, 9) == [["i1"]]
    found = await store.changes(Revision(), 9)
    assert ([item.item_id for item in found.items], list(found.deleted)) == (["i1"], [])


# Changes


async def test_every_change_has_a_later_revision(store):
    revisions = [await store.revision()]
    assert revisions == [Revision()]
    for n in range(3):
        await put(store, Item("i1", title=str(n)), Item(f"i{n + 2}"))
        revisions.append(await store.revision())
        await store.delete([f"i{n + 2}"])
        revisions.append(await store.revision())
    assert revisions == sorted(revisions)
    assert len({one.number for one in revisions}) == len(revisions)


async def test_of_an_item_that_changed_often_the_last_change_is_told(store):
    await put(store, Item("i1"), Item("i2"))
    follower = Follower(store)
    assert await follower.follow() == 2
    for n in range(5):
        await put(store, Item("i1", title=str(n)))
    assert await follower.follow() == 1
    assert follower.titles == {"i1": "4", "i2": ""}
    assert await follower.follow() == 0


async def test_changes_come_in_their_order_and_in_pieces(store):
    await put(store, *(Item(f"i{n}") for n in (3, 1, 2)))
    await put(store, Item("i1"))
    first = await store.changes(Revision(), 2)
    assert ([item.item_id for item in first.items], first.more) == (["i3", "i2"], True)
    second = await store.changes(first.revision, 2)
    assert ([item.item_id for item in second.items], second.more) == (["i1"], False)
    assert second.revision == await store.revision()
    nothing = await store.changes(second.revision, 2)
    assert (len(nothing.items), nothing.revision, nothing.more) == (0, second.revision, False)


async def test_a_revision_that_is_current_is_where_changes_begin(store):
    await put(store, Item("i1"))
    begin = await store.revision()
    await put(store, Item("i1", title="later"), Item("i2"))
    found = await store.changes(begin, 9)
    assert ([item.item_id for item in found.items], found.restarted) == (["i1", "i2"], False)


async def test_who_follows_misses_nothing_while_several_servers_write(store, opened):
    servers = [store, *[await opened() for _ in range(2)]] if store.shared else [store] * 3
    done = asyncio.Event()

    async def write(number):
        server = servers[number % 3]
        for turn in range(40):
            title = f"{number}/{turn}"
            await put(server, Item(f"own {number}", title=title), Item(f"shared {turn % 5}", title=title))
            if turn % 7 == number % 7:
                await server.delete([f"own {number}"])

    async def follow(follower):
        while not done.is_set():
            await follower.follow(limit=3)
        await follower.follow()

    followers = [Follower(server) for server in servers]
    following = asyncio.gather(*(follow(one) for one in followers))
    await asyncio.gather(*(write(number) for number in range(6)))
    done.set()
    await following
    stored = {item.item_id: item.title for item in (await store.page(99)).items}
    assert len(stored) >= 5
    assert [one.titles for one in followers] == [stored] * 3


# Many, and beside the events


async def test_ten_thousand_items_are_written_and_read_soon(store):
    items = [Item(f"i{n:05}", title=f"Title {n}", text_vector=vector(64), price=float(n)) for n in range(10_000)]
    begun_s = time.monotonic()
    for at in range(0, 10_000, 1_000):
        assert await put(store, *items[at : at + 1_000]) == []
    follower = Follower(store)
    assert await follower.follow() == 10_000
    assert [item_id for page in await all_pages(store, 1_000) for item_id in page] == [one.item_id for one in items]
    assert await store.delete([one.item_id for one in items]) == 10_000
    assert await follower.follow() == 10_000
    assert follower.titles == {}
    assert time.monotonic() - begun_s < 30


async def test_events_and_items_do_not_get_in_each_others_way(store_url):
    stores = await open_stores(store_url)
    events = [Event(f"e{n}", "catalog", "a", EventType.VIEW, float(n)) for n in range(20)]
    writes = [*(stores.events.write([one]) for one in events), *(put(stores.items, Item(f"i{n}")) for n in range(20))]
    await asyncio.gather(*writes)
    assert len((await stores.events.history("user:catalog")).events) == 20
    assert len((await stores.items.page(99)).items) == 20
    assert [owner async for piece in stores.events.everything() for owner, _ in piece] == ["user:catalog"] * 20
    await stores.events.close()
