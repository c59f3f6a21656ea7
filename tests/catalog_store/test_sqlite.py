"""What is SQLite's own: one transaction with the events, a full disk, an older file, a file that is only read."""

import asyncio
import sqlite3
import threading
from contextlib import closing

import msgspec
import numpy as np
import pytest

from longtide_server.catalog_store import ItemPage, Revision, sqlite_items
from longtide_server.catalog_store import sqlite as sqlite_store
from longtide_server.errors import InvalidInput, Overloaded, Unavailable
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import Event
from longtide_server.items.item import Item
from longtide_server.stores import open_stores

EVENT = Event("e1", "ann", "a", 1, 0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.db"


@pytest.fixture
async def stores(path):
    opened = await open_stores(f"sqlite:///{path}")
    yield opened
    await opened.events.close()


async def ids(items):
    return [item.item_id for item in (await items.page(99)).items]


async def test_events_and_items_that_wait_share_a_commit(stores, path):
    statements, begun = [], threading.Event()

    def executes(statement):
        statements.append(statement)
        begun.set()

    stores.events.file.connection.set_trace_callback(executes)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        first = asyncio.ensure_future(stores.events.write([EVENT]))
        assert await asyncio.to_thread(begun.wait, 5.0)
        upserts = [asyncio.ensure_future(stores.items.upsert([Item(f"i{n}")], None, 0.0)) for n in range(5)]
        await asyncio.sleep(0)
        other.execute("ROLLBACK")
    await asyncio.gather(first, *upserts)
    assert statements.count("COMMIT") == 2
    assert await ids(stores.items) == [f"i{n}" for n in range(5)]


async def test_a_full_disk_is_unavailable_and_leaves_nothing_half_written(stores):
    await stores.items.upsert([Item("i1")], None, 0.0)
    connection = stores.events.file.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    many = [Item(f"{n}", description="x" * 500, text_vector=np.ones(3, np.float32)) for n in range(100)]
    with pytest.raises(Unavailable, match="full"):
        await stores.items.upsert(many, None, 0.0)
    assert await ids(stores.items) == ["i1"]
    connection.execute(f"PRAGMA max_page_count = {pages + 1_000}")
    # Nor did it declare a size.
    assert (await stores.items.upsert([Item("i2", text_vector=np.ones(4, np.float32))], None, 0.0)).written == 1


async def test_an_item_that_cannot_be_read_takes_no_event_along(stores):
    await stores.items.upsert([Item("i1")], None, 0.0)
    later = msgspec.msgpack.encode({"v": 2, "u": 0.0})  # of a later release
    stores.events.file.connection.execute("UPDATE items SET record = ? WHERE item_id = 'i1'", (later,))
    change = stores.items.upsert([Item("i1", title="x")], frozenset({"title"}), 0.0)
    failed, written = await asyncio.gather(change, stores.events.write([EVENT]), return_exceptions=True)
    assert isinstance(failed, Unavailable)
    assert "the record of item 'i1' is of format 2" in str(failed)
    assert written.new == 1


async def test_a_damaged_item_is_told_as_deleted_and_holds_up_no_other(stores):
    await stores.items.upsert([Item("i1"), Item("i2")], None, 0.0)
    stores.events.file.connection.execute("UPDATE items SET record = x'00' WHERE item_id = 'i1'")
    found = await stores.items.changes(Revision(), 9)
    assert ([item.item_id for item in found.items], found.deleted) == (["i2"], ["i1"])
    await stores.items.upsert([Item("i1", title="whole again")], None, 0.0)
    found = await stores.items.changes(found.revision, 9)
    assert ([item.title for item in found.items], found.deleted) == (["whole again"], [])


async def test_pages_and_changes_of_some_fields_leave_out_what_is_damaged(stores):
    items = stores.items
    await items.upsert([Item(f"i{n}", title="t") for n in range(6)], None, 0.0)
    damage = "UPDATE items SET record = x'00' WHERE item_id IN ('i1', 'i2', 'i3')"
    stores.events.file.connection.execute(damage)
    assert await ids(items) == ["i0", "i4", "i5"]
    page = await items.page(2, "i0")  # of which the next two are damaged
    assert ([item.item_id for item in page.items], page.more) == (["i4"], True)
    done = await items.upsert([Item(f"i{n}", price=2.0) for n in (0, 1, 4)], frozenset({"price"}), 1.0)
    assert (done.written, [one.index for one in done.refused]) == (2, [1])
    assert "write all of it" in done.refused[0].violation.reason
    assert (await items.get("i4")).title == "t"
    await items.upsert([Item("i1")], None, 1.0)
    assert await ids(items) == ["i0", "i1", "i4", "i5"]
    await items.delete(["i4", "i5"])
    assert not (await items.page(2, "i1")).items


async def test_what_fails_in_a_way_it_should_not_fails_alone(stores):
    def fails(connection):
        connection.execute("INSERT INTO items VALUES (1, 'half', x'00')")
        raise ZeroDivisionError

    failed, written = await asyncio.gather(
        stores.events.file.change(fails), stores.events.write([EVENT]), return_exceptions=True
    )
    assert isinstance(failed, ZeroDivisionError)
    assert written.new == 1
    assert await ids(stores.items) == []


async def test_only_so_much_may_wait(path, monkeypatch):
    monkeypatch.setattr(sqlite_store, "MAX_WAITING_BYTES", 1_500)
    stores = await open_stores(f"sqlite:///{path}")
    large = Item("i1", description="x" * 1_000)
    first, second = await asyncio.gather(
        *(stores.items.upsert([large], None, 0.0) for _ in range(2)), return_exceptions=True
    )
    assert first.written == 1
    assert isinstance(second, Overloaded)
    assert "bytes of items are waiting" in str(second)
    assert (await stores.items.upsert([large], None, 0.0)).written == 1
    await stores.events.close()


async def test_a_file_of_an_earlier_release_gets_its_catalogue(path):
    events = SqliteEventStore(path)
    await events.write([EVENT])
    await events.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'items'").fetchone() == (0,)
    stores = await open_stores(f"sqlite:///{path}")
    await stores.items.upsert([Item("i1")], None, 0.0)
    assert await ids(stores.items) == ["i1"]
    await stores.events.close()
    again = SqliteEventStore(path)  # as that earlier release opens it
    assert len((await again.history("user:ann")).events) == 1
    await again.close()


async def test_a_file_that_is_only_read_is_read_while_a_server_writes(stores, path):
    await stores.items.upsert([Item("i1")], None, 0.0)
    reader = await open_stores(f"sqlite:///{path}", writes=False)
    await stores.items.upsert([Item("i2")], None, 0.0)
    assert await ids(reader.items) == ["i1", "i2"]
    with pytest.raises(Unavailable, match="read only"):
        await reader.items.upsert([Item("i3")], None, 0.0)
    await reader.events.close()
    with pytest.raises(InvalidInput, match="in use by another process"):
        await open_stores(f"sqlite:///{path}")


async def test_a_file_that_is_only_read_and_never_had_a_catalogue_has_no_items(path):
    """A log that was imported into the file, for example, and that no server has opened."""
    events = SqliteEventStore(path)
    await events.write([EVENT])
    await events.close()
    reader = await open_stores(f"sqlite:///{path}", writes=False)
    assert await reader.items.page(9) == ItemPage((), more=False)
    assert await reader.items.get("i1") is None
    assert await reader.items.revision() == Revision()
    found = await reader.items.changes(Revision(), 9)
    assert (list(found.items), list(found.deleted), found.more) == ([], [], False)
    await reader.events.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'items'").fetchone() == (0,)


async def test_a_catalogue_that_cannot_be_made_leaves_the_file_free(path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_items, "SCHEMA", "CREATE TABLE nonsense;")
        with pytest.raises(Unavailable, match=r"events\.db cannot be opened"):
            await open_stores(f"sqlite:///{path}")
    await (await open_stores(f"sqlite:///{path}")).events.close()


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("upsert", ([Item("i1")], None, 0.0)),
        ("get", ("i1",)),
        ("page", (3,)),
        ("delete", (["i1"],)),
        ("changes", (Revision(), 3)),
        ("revision", ()),
    ],
)
async def test_a_closed_store_refuses(stores, call, arguments):
    await stores.events.close()
    with pytest.raises(Unavailable, match="closing"):
        await getattr(stores.items, call)(*arguments)
