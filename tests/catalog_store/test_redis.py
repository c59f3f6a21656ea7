"""What is Redis' own: what survives its end, what happens without it, and what it has lost."""

import asyncio
import contextlib
import signal
import time

import pytest
from tests.redis_servers import cli, free_port, redis_cluster, redis_server

from longtide_server.catalog_store import Revision
from longtide_server.catalog_store import redis as redis_store
from longtide_server.catalog_store.redis import KEYS, OVERTAKEN
from longtide_server.errors import Overloaded, Unavailable
from longtide_server.event_store import redis_commands
from longtide_server.items.item import Item
from longtide_server.stores import open_stores

ITEMS, IDS, CHANGES, META = KEYS


@pytest.fixture
async def items(redis_port):
    cli(redis_port, "flushall")
    stores = await open_stores(f"redis://127.0.0.1:{redis_port}")
    yield stores.items
    await stores.events.close()


async def ids(items):
    return [item.item_id for item in (await items.page(1_000)).items]


async def test_what_was_acknowledged_survives_a_killed_redis(tmp_path):
    acknowledged, enough = {}, asyncio.Event()

    async def write_for_ever(items, caller):
        with contextlib.suppress(Unavailable):
            for turn in range(1_000_000):
                sent = [Item(f"{caller}-{turn % 20}-{n}", title=str(turn)) for n in range(3)]
                await items.upsert(sent, None, 0.0)
                acknowledged.update({one.item_id: turn for one in sent})
                if turn > 60:
                    enough.set()

    port = free_port()
    with redis_server(tmp_path, port=port) as (_, process):
        stores = await open_stores(f"redis://127.0.0.1:{port}")
        writers = [asyncio.create_task(write_for_ever(stores.items, caller)) for caller in range(4)]
        await enough.wait()
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*writers)
        with pytest.raises(Unavailable):
            await stores.items.upsert([Item("i1")], None, 0.0)
        with pytest.raises(Unavailable):
            await stores.items.get("i1")
        with pytest.raises(Unavailable):
            await stores.items.revision()
    with redis_server(tmp_path, port=port):
        kept = {item.item_id: int(item.title) for item in (await stores.items.page(1_000)).items}
        assert all(kept[item_id] >= turn for item_id, turn in acknowledged.items())
        found = await stores.items.changes(Revision(), 1_000)
        assert {item.item_id: int(item.title) for item in found.items} == kept
        await stores.events.close()


async def test_a_cluster_that_loses_the_catalogues_master_is_unavailable_until_it_is_back(tmp_path):
    with redis_cluster(tmp_path, node_timeout_ms=1_000) as nodes:
        stores = await open_stores(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        await stores.items.upsert([Item("i1")], None, 0.0)
        [holder] = [node for node in nodes if cli(node.port, "exists", ITEMS) == "1"]
        holder.process.kill()
        async with asyncio.timeout(10.0):
            with pytest.raises(Unavailable):
                await stores.items.upsert([Item("i2")], None, 0.0)
        with holder.running():
            for _ in range(100):
                with contextlib.suppress(Unavailable):
                    await stores.items.upsert([Item("i2")], None, 0.0)
                    break
                await asyncio.sleep(0.2)
            assert await ids(stores.items) == ["i1", "i2"]
        await stores.events.close()


async def test_changes_that_redis_has_lost_are_noticed_and_later_ones_are_not_missed(items, redis_port):
    """As after a failover to a replica that had not got them yet."""
    await items.upsert([Item("i1", title="kept")], None, 0.0)
    kept, stored = await items.revision(), cli(redis_port, "zscore", CHANGES, "i1")
    await items.upsert([Item("i1", title="lost"), Item("i2")], None, 0.0)
    known = await items.revision()
    record = await items._commands.run("HGET", ITEMS, "i1")
    await items._commands.run("HSET", ITEMS, "i1", record.replace(b"lost", b"kept"))
    await items._commands.run("HDEL", ITEMS, "i2")
    await items._commands.run("ZREM", CHANGES, "i2")
    await items._commands.run("ZREM", IDS, "i2")
    await items._commands.run("ZADD", CHANGES, stored, "i1")
    await items._commands.run("HSET", META, "revision", kept.number, "last", "i1")
    await items.upsert([Item("i3")], None, 0.0)
    assert (await items.revision()).number > known.number
    found = await items.changes(known, 9)
    assert ([(item.item_id, item.title) for item in found.items], found.restarted) == (
        [("i1", "kept"), ("i3", "")],
        True,
    )
    assert not (await items.changes(found.revision, 9)).restarted


async def test_a_damaged_item_is_told_as_deleted_and_holds_up_no_other(items):
    await items.upsert([Item("i1"), Item("i2")], None, 0.0)
    await items._commands.run("HSET", ITEMS, "i1", b"\x00")
    found = await items.changes(Revision(), 9)
    assert ([item.item_id for item in found.items], found.deleted) == (["i2"], ["i1"])


async def test_pages_and_changes_of_some_fields_leave_out_what_is_damaged(items):
    await items.upsert([Item(f"i{n}", title="t") for n in range(6)], None, 0.0)
    for n in (1, 2, 3):
        await items._commands.run("HSET", ITEMS, f"i{n}", b"\x00")
    assert [item.item_id for item in (await items.page(9)).items] == ["i0", "i4", "i5"]
    page = await items.page(2, "i0")  # of which the next two are damaged
    assert ([item.item_id for item in page.items], page.more) == (["i4"], True)
    done = await items.upsert([Item(f"i{n}", price=2.0) for n in (0, 1, 4)], frozenset({"price"}), 1.0)
    assert (done.written, [one.index for one in done.refused]) == (2, [1])
    assert "write all of it" in done.refused[0].violation.reason
    assert (await items.get("i4")).title == "t"
    await items.upsert([Item("i1")], None, 1.0)
    assert [item.item_id for item in (await items.page(9)).items] == ["i0", "i1", "i4", "i5"]


async def test_an_emptied_redis_begins_anew(items, redis_port):
    await items.upsert([Item("i1")], None, 0.0)
    known = await items.revision()
    cli(redis_port, "flushall")
    found = await items.changes(known, 9)
    assert (len(found.items), found.restarted, found.revision) == (0, True, Revision())
    await items.upsert([Item("i2")], None, 0.0)
    assert [item.item_id for item in (await items.changes(found.revision, 9)).items] == ["i2"]


async def test_revisions_rise_though_the_clock_of_redis_is_set_back(items):
    ahead = 2**52
    await items._commands.run("HSET", META, "revision", ahead, "last", "i0")
    await items.upsert([Item("i1"), Item("i2")], None, 0.0)
    assert await items.revision() == Revision(ahead + 2, "i2")
    await items.delete(["i1"])
    assert await items.revision() == Revision(ahead + 3, "i1")
    assert [item.item_id for item in (await items.changes(Revision(ahead + 1, "i1"), 9)).items] == ["i2"]


async def test_scripts_that_redis_has_forgotten_are_sent_again(items, redis_port):
    for n in range(3):
        cli(redis_port, "script", "flush")
        assert (await items.upsert([Item(f"i{n}")], None, 0.0)).written == 1
        cli(redis_port, "script", "flush")
        assert len((await items.page(9)).items) == n + 1


async def test_a_redis_that_is_full_is_unavailable_and_leaves_no_item_half_written(tmp_path):
    with redis_server(tmp_path, "--maxmemory", "8mb") as (port, _):
        stores = await open_stores(f"redis://127.0.0.1:{port}")
        with pytest.raises(Unavailable, match="maxmemory"):
            for turn in range(100):
                await stores.items.upsert([Item(f"{turn}-{n}", description="x" * 1_000) for n in range(300)], None, 0.0)
        cli(port, "config", "set", "maxmemory", "200mb")
        paged = set()
        while len(page := (await stores.items.page(1_000, max(paged, default=""))).items):
            paged |= {item.item_id for item in page}
        assert paged
        assert int(cli(port, "zcard", CHANGES)) == int(cli(port, "hlen", ITEMS)) == len(paged)
        await stores.events.close()


async def test_who_is_always_too_late_gives_up(items, redis_port, monkeypatch):
    """Another server changes the item between every reading and writing."""
    await items.upsert([Item("i1")], None, 0.0)
    other = await open_stores(f"redis://127.0.0.1:{redis_port}")
    write, turns = items._write, iter(range(1_000))

    async def overtaken(changes):
        await other.items.upsert([Item("i1", brand=str(next(turns)))], None, 0.0)
        return await write(changes)

    monkeypatch.setattr(items, "_write", overtaken)
    with pytest.raises(Unavailable, match="again and again"):
        await items.upsert([Item("i1", title="late"), Item("i2", title="in time")], frozenset({"title"}), 0.0)
    assert [item.title for item in (await items.page(9)).items] == ["", "in time"]
    assert not int(cli(redis_port, "exists", OVERTAKEN))
    await other.events.close()


def too_late_once(items, monkeypatch):
    """The item is deleted between the first reading and writing."""
    write, turns = items._write, iter(range(1_000))

    async def overtaken(changes):
        if next(turns) == 0:
            await items.delete(["i1"])
        return await write(changes)

    monkeypatch.setattr(items, "_write", overtaken)


async def test_a_server_that_vanished_while_it_tried_again_delays_the_others_for_a_moment(
    items, redis_port, monkeypatch
):
    await items.upsert([Item("i1")], None, 0.0)
    too_late_once(items, monkeypatch)
    cli(redis_port, "set", OVERTAKEN, "gone", "px", "300")
    began = time.monotonic()
    await items.upsert([Item("i1", title="new")], frozenset({"title"}), 0.0)
    assert 0.25 < time.monotonic() - began < 3.0
    assert (await items.get("i1")).title == "new"
    assert not int(cli(redis_port, "exists", OVERTAKEN))


async def test_whoever_is_overtaken_while_trying_again_goes_on_from_what_was_written_then(
    items, redis_port, monkeypatch
):
    """And without asking for it: told with the refusal, it is one way less in which others could be faster again."""
    await items.upsert([Item("i1", brand="old"), Item("i2")], None, 0.0)
    other = await open_stores(f"redis://127.0.0.1:{redis_port}")
    write, stored, turns, asked = items._write, items._stored, iter(range(1_000)), []

    async def overtaken(changes):
        if (turn := next(turns)) < 4:
            await other.items.upsert([Item("i1", brand=f"by {turn}")], None, 0.0)
        return await write(changes)

    async def counted(places, sent):
        asked.append(list(places))
        return await stored(places, sent)

    monkeypatch.setattr(items, "_write", overtaken)
    monkeypatch.setattr(items, "_stored", counted)
    await items.upsert([Item("i2", title="two"), Item("i1", title="one")], frozenset({"title"}), 0.0)
    found = (await items.page(9)).items
    assert [(item.title, item.brand) for item in found] == [("one", "by 3"), ("two", "")]
    assert asked == [[0, 1], [1]]
    await other.events.close()


async def test_who_may_not_try_again_in_time_gives_up(items, redis_port, monkeypatch):
    monkeypatch.setattr(redis_commands, "LOCK_WAIT_S", 0.1)
    await items.upsert([Item("i1")], None, 0.0)
    too_late_once(items, monkeypatch)
    cli(redis_port, "set", OVERTAKEN, "another")
    with pytest.raises(Unavailable, match="at once"):
        await items.upsert([Item("i1", title="new")], frozenset({"title"}), 0.0)
    assert cli(redis_port, "get", OVERTAKEN) == "another"


async def test_a_change_counts_although_the_right_to_try_again_has_ended_meanwhile(items, redis_port, monkeypatch):
    await items.upsert([Item("i1")], None, 0.0)
    too_late_once(items, monkeypatch)
    stored = items._stored

    async def slow(places, sent):
        cli(redis_port, "del", OVERTAKEN)
        return await stored(places, sent)

    monkeypatch.setattr(items, "_stored", slow)
    await items.upsert([Item("i1", title="new")], frozenset({"title"}), 0.0)
    assert (await items.get("i1")).title == "new"


async def test_only_so_much_may_wait(redis_port, monkeypatch):
    monkeypatch.setattr(redis_store, "MAX_WAITING_BYTES", 1_500)
    stores = await open_stores(f"redis://127.0.0.1:{redis_port}")
    large = Item("i1", description="x" * 1_000)
    first, second = await asyncio.gather(
        *(stores.items.upsert([large], None, 0.0) for _ in range(2)), return_exceptions=True
    )
    assert first.written == 1
    assert isinstance(second, Overloaded)
    assert (await stores.items.upsert([large], None, 0.0)).written == 1
    await stores.events.close()
