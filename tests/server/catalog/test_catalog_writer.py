"""Copies of the catalogue feel each change before it is answered, in its order, other servers' changes too."""

import asyncio
import itertools
import time

import pytest
from tests.redis_servers import cli

from longtide_server.catalog import freshness
from longtide_server.catalog.catalog_writer import BEHIND, PIECE_ITEMS, CatalogWriter, keep_refreshing
from longtide_server.catalog.freshness import Freshness
from longtide_server.catalog.live_catalogs import LiveCatalogs
from longtide_server.catalog_store import Revision
from longtide_server.errors import Unavailable
from longtide_server.items.item import Item
from longtide_server.stores import open_stores


class Copy:
    """What the catalogue says, by id, and how it was told."""

    def __init__(self):
        self.titles = {}
        self.told = []

    def apply(self, items, deleted):
        self.told.append(([item.item_id for item in items], list(deleted)))
        for item in items:
            self.titles[item.item_id] = item.title
        for item_id in deleted:
            self.titles.pop(item_id, None)


class SlowCopy(Copy):
    """It takes 2 ms to take up an item, or that one is gone."""

    def apply(self, items, deleted):
        super().apply(items, deleted)
        time.sleep(0.002 * (len(items) + len(deleted)))


async def until(condition):
    async with asyncio.timeout(5.0):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


async def take_turns(turns, copy):
    """Note how much the copy has been told at every turn of the event loop."""
    while True:
        turns.append(sum(len(items) + len(deleted) for items, deleted in copy.told))
        await asyncio.sleep(0)


@pytest.fixture
async def store(tmp_path):
    stores = await open_stores(f"sqlite:///{tmp_path / 'events.db'}")
    yield stores.items
    await stores.events.close()


@pytest.fixture
async def workers(tmp_path):
    """Two stores over one file, as two workers have them."""
    opened = [await open_stores(f"sqlite:///{tmp_path / 'events.db'}", shared=True) for _ in range(2)]
    yield [stores.items for stores in opened]
    for stores in opened:
        await stores.events.close()


@pytest.fixture
async def shared(redis_port):
    """Two stores over one Redis, as two servers have them."""
    cli(redis_port, "flushall")
    opened = [await open_stores(f"redis://127.0.0.1:{redis_port}") for _ in range(2)]
    yield [stores.items for stores in opened]
    for stores in opened:
        await stores.events.close()


async def test_a_change_is_felt_before_it_is_answered(store):
    writer, copy = CatalogWriter(store), Copy()
    await writer.add(copy)
    await writer.upsert([Item("i1", title="One"), Item("i2", title="Two")], None, 0.0)
    assert copy.titles == {"i1": "One", "i2": "Two"}
    await writer.upsert([Item("i1", title="Uno", brand="not named")], frozenset({"title"}), 0.0)
    assert await writer.delete(["i2", "i3"]) == 1
    assert copy.titles == {"i1": "Uno"}
    assert copy.told[-2:] == [([], ["i2"]), ([], ["i3"])]


async def test_others_have_their_turn_while_copies_take_up_what_is_long(store):
    """An item may hold thousands of words, and a batch a thousand of such items."""
    writer, copy, turns = CatalogWriter(store), SlowCopy(), []
    await writer.add(copy)
    other = asyncio.create_task(take_turns(turns, copy))
    await writer.upsert([Item(f"i{n}") for n in range(30)], None, 0.0)
    await writer.delete([f"i{n}" for n in range(30)])
    other.cancel()
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 5
    assert len(copy.told) == 60


async def test_others_have_their_turn_while_a_new_catalogue_reads_what_is_stored(store):
    writer, copy, turns = CatalogWriter(store), SlowCopy(), []
    await writer.upsert([Item(f"i{n}") for n in range(30)], None, 0.0)
    other = asyncio.create_task(take_turns(turns, copy))
    await LiveCatalogs(writer.everything).add(copy)
    other.cancel()
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 5
    assert len(copy.told) == 30


async def test_copies_are_told_whole_items_though_only_some_fields_were_sent(store):
    writer, told = CatalogWriter(store), []
    await writer.upsert([Item("i1", title="One", brand="Lumo")], None, 0.0)
    copy = Copy()
    copy.apply = lambda items, deleted: told.extend(items)
    await writer.add(copy)
    await writer.upsert([Item("i1", price=3.0)], frozenset({"price"}), 0.0)
    assert [(item.title, item.brand, item.price) for item in told] == [("One", "Lumo", 3.0)]


async def test_what_was_stored_before_is_read_and_not_told(store):
    writer, copy = CatalogWriter(store), Copy()
    await writer.upsert([Item(f"i{n:03}", title=str(n)) for n in range(450)], None, 0.0)
    await writer.delete(["i007", "only a snapshot knows it"])
    await writer.add(copy)
    await writer.refresh()
    assert copy.told == []
    pieces = [piece async for piece in writer.everything()]
    assert [len(items) + len(deleted) for items, deleted in pieces] == [PIECE_ITEMS, PIECE_ITEMS, 51]
    assert len({item.item_id for items, _ in pieces for item in items}) == 449
    assert [item_id for _, deleted in pieces for item_id in deleted] == ["i007", "only a snapshot knows it"]


async def test_of_an_empty_catalogue_there_is_nothing_to_read(store):
    assert [piece async for piece in CatalogWriter(store).everything()] == []


async def test_reading_everything_ends_though_others_go_on_writing(store):
    writer = CatalogWriter(store)
    await writer.upsert([Item(f"i{n:03}") for n in range(450)], None, 0.0)
    read = 0
    async for items, _ in writer.everything():
        read += len(items)
        await writer.upsert([Item(f"i{n:03}", title="again") for n in range(450)], None, 0.0)
    assert read <= 2 * 450


async def test_copies_that_come_and_go_are_told_while_they_are_there(store):
    writer, first, second = CatalogWriter(store), Copy(), Copy()
    await writer.add(first)
    await writer.upsert([Item("i1")], None, 0.0)
    await writer.add(second)
    await writer.upsert([Item("i2")], None, 0.0)
    writer.remove(first)
    await writer.upsert([Item("i3")], None, 0.0)
    writer.remove(second)
    await writer.upsert([Item("i4")], None, 0.0)
    assert list(first.titles) == ["i1", "i2"]
    assert list(second.titles) == ["i2", "i3"]
    await writer.add(first)
    await writer.upsert([Item("i5")], None, 0.0)
    assert list(first.titles) == ["i1", "i2", "i5"]


async def test_what_another_server_changes_is_felt_in_the_order_of_the_store(shared):
    here, there = (CatalogWriter(store) for store in shared)
    copies = [Copy(), Copy()]
    for writer, copy in zip((here, there), copies, strict=True):
        await writer.add(copy)

    async def write(writer, name):
        for turn in range(30):
            await writer.upsert([Item(f"i{n}", title=f"{name} {turn}") for n in range(3)], None, 0.0)
            if turn % 5 == 0:
                await writer.delete(["i2"])

    await asyncio.gather(*(write(writer, name) for writer, name in ((here, "here"), (there, "there")) for _ in "ab"))
    await asyncio.gather(here.refresh(), there.refresh())
    stored = {item.item_id: item.title for item in (await shared[0].page(9)).items}
    assert copies[0].titles == copies[1].titles == stored


async def test_what_another_worker_changes_is_felt_as_soon_as_it_is_asked_for(workers):
    here, there, copy = *(CatalogWriter(store) for store in workers), Copy()
    await here.add(copy)
    for turn in range(50):
        await there.upsert([Item("i1", title=f"there {turn}")], None, 0.0)
        await here.catch_up()
        assert copy.titles == {"i1": f"there {turn}"}
    await there.delete(["i1"])
    await asyncio.gather(*(here.catch_up() for _ in range(20)))
    assert copy.titles == {}


async def test_the_store_is_asked_only_when_there_is_something_new(workers, monkeypatch):
    here, there, copy = *(CatalogWriter(store) for store in workers), Copy()
    await here.add(copy)
    changes, asked = workers[0].changes, []

    async def counted(since, limit):
        asked.append(since)
        return await changes(since, limit)

    monkeypatch.setattr(workers[0], "changes", counted)
    await there.upsert([Item("i1")], None, 0.0)
    for _ in range(20):
        await here.catch_up()
    assert asked == [Revision()]
    await here.upsert([Item("i2")], None, 0.0)
    for _ in range(20):
        await here.catch_up()
    assert len(asked) <= 3  # a change of one's own may be looked at twice
    assert copy.titles == {"i1": "", "i2": ""}


async def test_nobody_waits_long_for_what_others_change_and_it_is_felt_later(workers, monkeypatch):
    here, there, copy = *(CatalogWriter(store) for store in workers), Copy()
    await here.add(copy)
    changes, may_go_on = workers[0].changes, asyncio.Event()

    async def slow(since, limit):
        await may_go_on.wait()
        return await changes(since, limit)

    monkeypatch.setattr(workers[0], "changes", slow)
    await there.upsert([Item("i1")], None, 0.0)
    assert here.behind_reason() == ""
    async with asyncio.timeout(5.0):
        await here.catch_up()
    assert copy.titles == {}
    assert here.behind_reason() == BEHIND
    may_go_on.set()
    await here.close()
    assert copy.titles == {"i1": ""}
    assert here.behind_reason() == ""


async def test_answers_are_behind_until_what_they_could_not_wait_for_is_felt(workers, monkeypatch):
    """And not only until somebody has been told of what had changed before."""
    here, there, copy = *(CatalogWriter(store) for store in workers), Copy()
    await here.add(copy)
    changes, reads = workers[0].changes, asyncio.Semaphore(0)

    async def slow(since, limit):
        found = await changes(since, limit)
        await reads.acquire()
        return found

    monkeypatch.setattr(workers[0], "changes", slow)
    await there.upsert([Item("i1")], None, 0.0)
    await here.catch_up()  # it has read i1
    await there.upsert([Item("i2")], None, 0.0)
    await here.catch_up()
    reads.release()
    await until(lambda: copy.titles)
    assert here.behind_reason() == BEHIND
    reads.release()
    await here.close()
    assert copy.titles == {"i1": "", "i2": ""}
    assert here.behind_reason() == ""


async def test_catching_up_with_a_store_that_fails_fails_nobody(workers, monkeypatch):
    here, there, copy = *(CatalogWriter(store) for store in workers), Copy()
    await here.add(copy)

    async def fails(since, limit):
        raise Unavailable("away")

    await there.upsert([Item("i1")], None, 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(workers[0], "changes", fails)
        await here.catch_up()
        assert copy.titles == {}
        assert here.behind_reason() == BEHIND
    await here.catch_up()
    assert copy.titles == {"i1": ""}
    assert here.behind_reason() == ""


async def test_a_server_follows_the_others_by_itself(shared):
    here, there, copy = *(CatalogWriter(store) for store in shared), Copy()
    await here.add(copy)
    following = asyncio.create_task(keep_refreshing(here, 0.01, Freshness()))
    await there.upsert([Item("i1", title="there")], None, 0.0)
    for _ in range(200):
        if copy.titles:
            break
        await asyncio.sleep(0.01)
    following.cancel()
    assert copy.titles == {"i1": "there"}


async def test_following_goes_on_after_a_failure(shared, monkeypatch):
    here, there, copy = *(CatalogWriter(store) for store in shared), Copy()
    await here.add(copy)
    changes, failures = shared[0].changes, iter([Unavailable("away"), ZeroDivisionError()])

    async def failing(since, limit):
        for failure in failures:
            raise failure
        return await changes(since, limit)

    monkeypatch.setattr(shared[0], "changes", failing)
    await there.upsert([Item("i1")], None, 0.0)
    following = asyncio.create_task(keep_refreshing(here, 0.01, Freshness()))
    for _ in range(200):
        if copy.titles:
            break
        await asyncio.sleep(0.01)
    following.cancel()
    assert copy.titles == {"i1": ""}


async def test_that_what_others_change_is_not_known_is_said_after_a_while(workers, monkeypatch):
    monkeypatch.setattr(freshness, "STALE_AFTER_S", 0.2)
    here, fresh = CatalogWriter(workers[0]), Freshness()
    await here.add(Copy())
    keeping = asyncio.create_task(keep_refreshing(here, 0.01, fresh))

    async def fails(since, limit):
        raise Unavailable("away")

    async def becomes(reason):
        async with asyncio.timeout(5.0):
            while True:
                if fresh.stale_reason() == reason:
                    return
                await asyncio.sleep(0.01)

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(workers[0], "changes", fails)
            await asyncio.sleep(0.05)
            assert fresh.stale_reason() == ""  # it may be back at once
            await becomes("the catalogue could not be asked: away")
        await becomes("")
    keeping.cancel()


async def test_a_store_that_hangs_is_said_to_be_away_before_it_lets_go(workers, monkeypatch):
    monkeypatch.setattr(freshness, "STALE_AFTER_S", 0.2)
    here, fresh, lets_go = CatalogWriter(workers[0]), Freshness(), asyncio.Event()
    await here.add(Copy())
    changes = workers[0].changes

    async def hangs(since, limit):
        await lets_go.wait()
        return await changes(since, limit)

    monkeypatch.setattr(workers[0], "changes", hangs)
    keeping = asyncio.create_task(keep_refreshing(here, 0.01, fresh))
    await asyncio.sleep(0.05)
    assert fresh.stale_reason() == ""
    await asyncio.sleep(0.2)
    assert fresh.stale_reason() == "the catalogue could not be asked: it has not said everything yet"
    lets_go.set()
    await until(lambda: not fresh.stale_reason())
    keeping.cancel()


async def test_callers_at_the_same_time_share_the_telling(store, monkeypatch):
    writer, copy = CatalogWriter(store), Copy()
    await writer.add(copy)
    changes, asked = store.changes, []

    async def counted(since, limit):
        asked.append(since)
        return await changes(since, limit)

    monkeypatch.setattr(store, "changes", counted)
    await asyncio.gather(*(writer.upsert([Item(f"i{n}")], None, 0.0) for n in range(40)))
    assert len(copy.titles) == 40
    assert len(asked) < 20


async def test_what_a_caller_gave_up_on_is_stored_and_felt(store):
    writer, copy = CatalogWriter(store), Copy()
    await writer.add(copy)
    task = asyncio.create_task(writer.upsert([Item("i1")], None, 0.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await writer.close()
    assert copy.titles == {"i1": ""}


async def test_a_part_of_a_failed_change_that_is_stored_is_felt(store, monkeypatch):
    writer, copy = CatalogWriter(store), Copy()
    await writer.add(copy)
    upsert = store.upsert

    async def fails_after_all(items, fields, now_s):
        await upsert(items[:1], fields, now_s)
        raise Unavailable("the other half is lost")

    monkeypatch.setattr(store, "upsert", fails_after_all)
    with pytest.raises(Unavailable, match="the other half"):
        await writer.upsert([Item("i1"), Item("i2")], None, 0.0)
    assert copy.titles == {"i1": ""}


async def test_a_change_that_cannot_be_felt_is_not_answered_as_done_and_is_felt_later(store, monkeypatch):
    writer, copy = CatalogWriter(store), Copy()
    await writer.add(copy)

    async def fails(since, limit):
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "changes", fails)
        with pytest.raises(Unavailable, match="away"):
            await writer.upsert([Item("i1")], None, 0.0)
    assert copy.titles == {}
    await writer.refresh()
    assert copy.titles == {"i1": ""}
    assert (await store.revision()) > Revision()
