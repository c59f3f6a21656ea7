"""What is SQLite's own: durability, one writer for many callers, locks and full disks, and what is overwritten."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from longtide_server.attribution import Shown
from longtide_server.errors import InvalidInput, Overloaded, Unavailable
from longtide_server.event_store import sqlite as sqlite_store
from longtide_server.event_store import sqlite_file, sqlite_log
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.event_store.sqlite_file import hold
from longtide_server.events import Event

WRITER = Path(__file__).parent / "writer.py"
SOON_S = 5.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "events.db"


@pytest.fixture
async def store(path):
    store = SqliteEventStore(path)
    yield store
    await store.close()


@pytest.fixture
def lock(path):
    """Takes the only place of a writer in the file, as another process could; returns what gives it back."""
    connections = []

    def locked():
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connections.append(other)
        other.execute("BEGIN IMMEDIATE")
        return other.rollback

    yield locked
    for connection in connections:
        connection.close()


class Traced:
    """What the stores that are opened from now on execute, and when their writer has begun."""

    def __init__(self, monkeypatch):
        self.statements, self._begun, connect = [], threading.Event(), sqlite_log.connect

        def traced(path):
            connection = connect(path)
            connection.set_trace_callback(self._executes)
            return connection

        monkeypatch.setattr(sqlite_log, "connect", traced)

    def _executes(self, statement):
        self.statements.append(statement)
        if statement == "BEGIN IMMEDIATE" and threading.current_thread() is not threading.main_thread():
            self._begun.set()

    async def begun(self):
        assert await asyncio.to_thread(self._begun.wait, SOON_S)


@pytest.fixture
def traced(monkeypatch):
    return Traced(monkeypatch)


async def ids(store):
    return [event.event_id for event in (await store.history("user:ann")).events]


async def counts(write):
    written = await write
    return written.new, written.duplicates


async def test_a_batch_is_written_whole_or_not_at_all(store, event):
    unwritable = event("e3", user_id="\ud800")  # no UTF-8: it fails in the middle of the batch
    with pytest.raises(Unavailable, match="cannot write"):
        await store.write([event("e1"), event("e2"), unwritable, event("e4")])
    assert await ids(store) == []
    assert await counts(store.write([event("e1")])) == (1, 0)


async def test_callers_who_write_at_the_same_time_share_a_commit(traced, path, lock, event):
    store = SqliteEventStore(path)
    unlock = lock()
    first = asyncio.ensure_future(store.write([event("first")]))
    await traced.begun()
    others = [asyncio.ensure_future(store.write([event(f"e{n}"), event("first")])) for n in range(20)]
    await asyncio.sleep(0)
    unlock()
    assert await counts(first) == (1, 0)
    assert [await counts(one) for one in others] == [(1, 1)] * 20
    assert traced.statements.count("COMMIT") == 2
    await store.close()


async def test_an_acknowledged_event_survives_a_power_cut(path, monkeypatch):
    opened, connect = [], sqlite_log.connect
    monkeypatch.setattr(sqlite_log, "connect", lambda path: opened.append(connect(path)) or opened[-1])
    store = SqliteEventStore(path)
    [writer] = opened
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    await store.close()


async def test_an_acknowledged_event_survives_a_killed_server(path):
    """Kills a process while it writes: what it said it had written is there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WRITER), str(path), stdout=asyncio.subprocess.PIPE
    )
    printed = [await process.stdout.readline() for _ in range(100)]
    process.kill()
    printed += (await process.communicate())[0].splitlines(keepends=True)
    acknowledged = [line.decode().strip() for line in printed if line.endswith(b"\n")]  # the last may be cut
    store = SqliteEventStore(path)
    kept = set(await ids(store))
    assert len(acknowledged) >= 100
    assert set(acknowledged) <= kept
    assert await counts(store.write([Event("after", "ann", "a", 1, 0.0)])) == (1, 0)
    # A batch is whole even when the process died in the middle of it.
    assert len(kept) % 3 == 0
    await store.close()


async def test_of_processes_that_share_a_file_none_loses_what_another_writes_even_if_one_is_killed(path, event):
    """Two write as fast as they can, and are read and written to from here; then one is killed."""
    with hold(path):
        store = SqliteEventStore(path, shared=True)
        writers = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(WRITER), str(path), name), stdout=asyncio.subprocess.PIPE
            )
            for name in ("one-", "other-")
        ]
        printed = [[await writer.stdout.readline() for _ in range(60)] for writer in writers]
        for n in range(50):
            written = await store.write([event(f"here-{n}", user_id="bob", time_s=float(n))])
            assert (written.new, len(written.appended["user:bob"].events)) == (1, 1)
            seen = set(await ids(store))
            assert {line.decode().strip() for lines in printed for line in lines} <= seen
            for lines, writer in zip(printed, writers, strict=True):
                lines.append(await writer.stdout.readline())
        writers[0].kill()
        printed[0] += (await writers[0].communicate())[0].splitlines(keepends=True)
        printed[1] += [await writers[1].stdout.readline() for _ in range(60)]  # the other goes on
        writers[1].kill()
        printed[1] += (await writers[1].communicate())[0].splitlines(keepends=True)
        acknowledged = {line.decode().strip() for lines in printed for line in lines if line.endswith(b"\n")}
        kept = await ids(store)
        assert acknowledged <= set(kept)
        assert len(kept) == len(set(kept))
        assert len(kept) % 3 == 0
        history = await store.history("user:bob")
        assert [one.event_id for one in history.events] == [f"here-{n}" for n in range(50)]
        await store.close()


async def test_a_store_that_is_shared_is_held_by_whoever_started_its_processes(path, event):
    with hold(path):
        with pytest.raises(InvalidInput, match=r"events\.db is in use by another process"):
            SqliteEventStore(path)
        one, other = SqliteEventStore(path, shared=True), SqliteEventStore(path, shared=True)
        await one.write([event("e1")])
        assert await ids(other) == ["e1"]
        await one.close()
        await other.close()
    alone = SqliteEventStore(path)
    assert await ids(alone) == ["e1"]
    await alone.close()


async def test_a_deletion_leaves_nothing_in_a_shared_file_either(path, event):
    one, other = SqliteEventStore(path, shared=True), SqliteEventStore(path, shared=True)
    await one.write([event(f"secret-{n}", "a-secret-item") for n in range(200)])
    assert len(await ids(other)) == 200
    await other.delete("user:ann", 10.0)
    assert b"secret" not in b"".join(file.read_bytes() for file in path.parent.iterdir())
    await one.close()
    await other.close()


async def test_a_stamp_that_cannot_be_read_is_none(path, event):
    store = SqliteEventStore(path, shared=True)
    assert store.stamp() is not None
    store._watch.close()
    assert store.stamp() is None
    await store.close()
    assert store.stamp() is None


async def test_a_locked_file_is_unavailable_and_writes_again_later(path, lock, event, monkeypatch):
    monkeypatch.setattr(sqlite_log, "BUSY_TIMEOUT_S", 0.05)
    store = SqliteEventStore(path)
    unlock = lock()
    with pytest.raises(Unavailable, match="locked"):
        await store.write([event("e1")])
    unlock()
    assert await ids(store) == []
    assert await counts(store.write([event("e1")])) == (1, 0)
    await store.close()


async def test_a_probe_of_a_locked_file_fails_until_it_is_free(path, lock, monkeypatch):
    monkeypatch.setattr(sqlite_log, "BUSY_TIMEOUT_S", 0.05)
    store = SqliteEventStore(path)
    unlock = lock()
    with pytest.raises(Unavailable, match="locked"):
        await store.probe()
    unlock()
    await store.probe()
    await store.close()


async def test_a_probe_writes_to_the_disk_so_that_a_full_one_is_noticed(store, path):
    log = path.with_name(f"{path.name}-wal")
    before = log.stat().st_size
    await store.probe()
    assert log.stat().st_size > before


async def test_a_probe_reads_too(store, path):
    with pytest.raises(Unavailable, match="no such table"):
        store.file.connection.execute("DROP TABLE events")
        await store.probe()


async def test_a_short_lock_is_waited_out(traced, path, lock, event):
    store = SqliteEventStore(path)
    unlock = lock()
    write = asyncio.ensure_future(store.write([event("e1")]))
    await traced.begun()
    unlock()
    assert await counts(write) == (1, 0)
    await store.close()


async def test_a_history_can_be_read_while_another_writes(store, lock, event):
    await store.write([event("e1")])
    unlock = lock()
    assert await ids(store) == ["e1"]
    unlock()


async def test_only_so_many_events_may_wait(traced, path, lock, event, monkeypatch):
    monkeypatch.setattr(sqlite_store, "MAX_WAITING_EVENTS", 3)
    store = SqliteEventStore(path)
    unlock = lock()
    accepted = [asyncio.ensure_future(store.write([event("being written")]))]
    await traced.begun()
    accepted += [asyncio.ensure_future(store.write([event(f"waits {n}")])) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 events are waiting"):
        await store.write([event("too many")])
    unlock()
    assert [await counts(one) for one in accepted] == [(1, 0)] * 3
    assert await counts(store.write([event("too many")])) == (1, 0)
    await store.close()


async def test_a_caller_who_gives_up_undoes_nothing(traced, path, lock, event):
    store = SqliteEventStore(path)
    unlock = lock()
    gone = asyncio.ensure_future(store.write([event("e1")]))
    await traced.begun()
    gone.cancel()
    unlock()
    await store.write([event("e2")])
    assert await ids(store) == ["e1", "e2"]
    await store.close()


async def test_closing_finishes_what_was_accepted(traced, path, lock, event):
    store = SqliteEventStore(path)
    unlock = lock()
    writes = [asyncio.ensure_future(store.write([event("e0")]))]
    await traced.begun()
    writes += [asyncio.ensure_future(store.write([event(f"e{n}")])) for n in range(1, 5)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    unlock()
    await closing
    assert [await counts(one) for one in writes] == [(1, 0)] * 5
    again = SqliteEventStore(path)
    assert await ids(again) == ["e0", "e1", "e2", "e3", "e4"]
    await again.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_a_store_that_was_read_and_closed_is_one_file(path, event, shared):
    store = SqliteEventStore(path, shared=shared)
    await store.write([event("e1"), event("e2")])
    await asyncio.gather(*(ids(store) for _ in range(8)))
    await store.close()
    assert not [file.name for file in path.parent.iterdir() if file.name.endswith(("-wal", "-shm"))]
    alone = path.parent.parent / "copy.db"
    alone.write_bytes(path.read_bytes())
    copy = SqliteEventStore(alone)
    assert await ids(copy) == ["e1", "e2"]
    await copy.close()


async def test_a_closed_store_refuses(store, event):
    await store.close()
    await store.close()
    with pytest.raises(Unavailable, match="closing"):
        await store.write([event("e1")])
    with pytest.raises(Unavailable):
        await store.history("user:ann")


async def test_a_full_disk_is_unavailable_and_leaves_nothing_half_written(store, path, event):
    await store.write([event("e1")])
    pages = store.file.connection.execute("PRAGMA page_count").fetchone()[0]
    store.file.connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite answers as on a full disk
    with pytest.raises(Unavailable, match="full"):
        await store.write([event(f"{n}", "x" * 500) for n in range(100)])
    assert await ids(store) == ["e1"]
    store.file.connection.execute(f"PRAGMA max_page_count = {pages + 1_000}")
    assert await counts(store.write([event(f"{n}", "x" * 500) for n in range(100)])) == (100, 0)


async def test_what_one_caller_did_wrong_is_not_anothers_loss(traced, path, lock, event):
    store = SqliteEventStore(path)
    unlock = lock()
    first = asyncio.ensure_future(store.write([event("first")]))
    await traced.begun()
    unwritable = asyncio.ensure_future(store.write([event("e1"), event("e2", user_id="\ud800")]))
    good = asyncio.ensure_future(store.write([event("e3")]))
    await asyncio.sleep(0)
    unlock()
    await first
    with pytest.raises(Unavailable, match="cannot write"):
        await unwritable
    assert await counts(good) == (1, 0)
    assert await ids(store) == ["first", "e3"]
    await store.close()


async def test_nothing_of_a_deleted_event_is_left_in_the_files(store, path, event):
    await store.write([event(f"secret-{n}", "a-secret-item", user_id="ann") for n in range(200)])
    await store.write([event("kept", "another-item", user_id="bob")])

    def written():
        return b"".join(file.read_bytes() for file in path.parent.iterdir())

    assert b"a-secret-item" in written()
    await store.delete("user:ann", 10.0)
    assert b"secret" not in written()
    assert b"another-item" in written()


def left_of(secret, path):
    """Which of the files of a store hold something."""
    return [file.name for file in path.parent.iterdir() if secret in file.read_bytes()]


async def test_what_a_backup_kept_from_being_erased_is_erased_after_it_however_busy_the_store_is(
    store, path, event, monkeypatch
):
    monkeypatch.setattr(sqlite_file, "ERASE_EVERY_S", 0.05)
    await store.write([event("e1", "a-secret-item"), event("b1", user_id="bob")])
    with closing(sqlite3.connect(path, isolation_level=None)) as backup:
        backup.execute("BEGIN")
        backup.execute("SELECT * FROM events").fetchall()
        await store.delete("user:ann", 10.0)
        assert left_of(b"secret", path) == ["events.db-wal"]
        backup.execute("COMMIT")
    end_s = time.monotonic() + SOON_S
    n = 0
    while left_of(b"secret", path):
        assert time.monotonic() < end_s
        n += 1
        await asyncio.gather(*(store.write([event(f"b1-{n}-{one}", user_id="bob")]) for one in range(4)))


async def test_what_a_killed_server_still_had_to_erase_the_next_one_erases(store, path, event, tmp_path):
    await store.write([event("e1", "a-secret-item")])
    with closing(sqlite3.connect(path, isolation_level=None)) as backup:
        backup.execute("BEGIN")
        backup.execute("SELECT * FROM events").fetchall()
        await store.delete("user:ann", 10.0)
        killed = tmp_path / "killed" / "events.db"  # what a kill leaves at this moment
        killed.parent.mkdir()
        for name in ("events.db", "events.db-wal"):
            killed.with_name(name).write_bytes(path.with_name(name).read_bytes())
    assert left_of(b"secret", killed) == ["events.db-wal"]
    again = SqliteEventStore(killed)
    assert left_of(b"secret", killed) == []
    await again.close()


async def test_a_deletion_while_somebody_reads_holds_nobody_up(store, path, event):
    await store.write([event("e1"), event("b1", user_id="bob")])
    with sqlite3.connect(path, isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchall()
        begun = time.monotonic()
        _, written = await asyncio.gather(store.delete("user:ann", 10.0), store.write([event("b2", user_id="bob")]))
        assert time.monotonic() - begun < 2.0
        assert written.new == 1
        reader.execute("COMMIT")
    reader.close()
    assert await ids(store) == []


async def test_a_file_has_one_writer_and_any_readers(store, path, event):
    await store.write([event("e1")])
    with pytest.raises(InvalidInput, match=r"events\.db is in use by another process"):
        SqliteEventStore(path)
    reader = SqliteEventStore(path, writes=False)
    assert await ids(reader) == ["e1"]
    with pytest.raises(Unavailable, match="read only"):
        await reader.write([event("e2")])
    await reader.close()
    await store.close()
    again = SqliteEventStore(path)
    assert await ids(again) == ["e1"]
    await again.close()


def test_a_file_that_is_only_read_must_be_there(path):
    with pytest.raises(InvalidInput, match=r"there is no event store .*events\.db"):
        SqliteEventStore(path, writes=False)
    assert not path.parent.exists()


def test_a_file_that_is_only_read_must_hold_something(path):
    path.parent.mkdir()
    path.touch()
    with pytest.raises(InvalidInput, match=r"events\.db is empty, and no event store"):
        SqliteEventStore(path, writes=False)
    assert found_in(path.parent) == {"events.db": b""}


@pytest.mark.parametrize("writes", [True, False])
async def test_a_file_of_another_format_is_named(path, writes):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE events (position INTEGER PRIMARY KEY)")
    connection.close()
    with pytest.raises(InvalidInput, match=r"events\.db is of format 0; this release reads format 2"):
        SqliteEventStore(path, writes=writes)


def found_in(folder):
    """What the files of a folder hold, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
async def backup(path, event, tmp_path):
    """The file of a store that was closed, alone in its folder: one event, and two items that were shown."""
    store = SqliteEventStore(path)
    await store.write([event("e1")])
    await store.add_shown({Shown("2026-11-01", "snapshot", "home", 1): 2}, "flush")
    await store.close()
    alone = tmp_path / "backup" / path.name
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    return alone


async def read_only(path):
    """The ids of ann's events, read as an export reads them."""
    store = SqliteEventStore(path, writes=False)
    try:
        return await ids(store)
    finally:
        await store.close()


async def test_reading_changes_nothing_and_leaves_nothing_behind(backup):
    before = found_in(backup.parent)
    assert await read_only(backup) == ["e1"]
    assert found_in(backup.parent) == before


@pytest.mark.parametrize("name", ["a store.db", "what?.db", "half#.db", "100%25.db", "größer.db"])
async def test_a_file_that_is_only_read_may_have_any_name(backup, name):
    assert await read_only(backup.rename(backup.with_name(name))) == ["e1"]


async def test_a_link_to_a_file_is_read_as_the_file(backup, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(backup)
    assert await read_only(link) == ["e1"]
    assert list(found_in(backup.parent)) == ["events.db"]


async def test_a_store_is_opened_and_read_while_its_server_takes_long_to_write(store, path, lock, event):
    await store.write([event("e1")])
    unlock = lock()
    begun_s = time.monotonic()
    assert await read_only(path) == ["e1"]
    assert time.monotonic() - begun_s < sqlite_log.BUSY_TIMEOUT_S
    unlock()
    assert await counts(store.write([event("e2")])) == (1, 0)


async def test_what_a_killed_server_wrote_is_read(store, path, event, tmp_path):
    await store.write([event("e1")])
    killed = tmp_path / "killed" / "events.db"
    killed.parent.mkdir()
    for name in ("events.db", "events.db-wal"):
        killed.with_name(name).write_bytes(path.with_name(name).read_bytes())
    assert await read_only(killed) == ["e1"]


async def test_a_store_whose_server_stops_while_it_is_read_is_one_file_once_it_was_read(path, event):
    store = SqliteEventStore(path)
    await store.write([event("e1")])
    reader = SqliteEventStore(path, writes=False)
    assert await ids(reader) == ["e1"]
    await store.close()
    await reader.close()
    assert sorted(found_in(path.parent)) == ["events.db", "events.db.lock"]
    assert await read_only(path) == ["e1"]


@pytest.fixture
def without_rights():
    """What a command begins with for which a folder that is read-only is one, though root should start it."""
    if os.geteuid() != 0:
        return []
    drop = ["setpriv", "--bounding-set", "-dac_override"]
    if shutil.which("setpriv") is None or subprocess.run([*drop, "true"], check=False).returncode:
        pytest.skip("root may write everywhere here")
    return drop


def test_a_backup_in_a_read_only_folder_is_read(backup, without_rights):
    before = found_in(backup.parent)
    backup.chmod(0o444)
    backup.parent.chmod(0o555)
    command = [sys.executable, "-m", "longtide_server", "report", "--store", f"sqlite:///{backup}", "--json"]
    done = subprocess.run([*without_rights, *command], capture_output=True, text=True, check=False)
    backup.parent.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert [line["shown"] for line in json.loads(done.stdout)["lines"]] == [2]
    assert found_in(backup.parent) == before


def no_room_for(name, path):
    """SQLite cannot make a file of its own beside this one, as in a read-only folder."""
    path.with_name(f"{path.name}-{name}").symlink_to("nowhere/file")


async def test_a_file_is_read_alone_where_nothing_can_be_made_beside_it(backup):
    no_room_for("wal", backup)
    assert await read_only(backup) == ["e1"]


async def test_a_file_is_not_read_without_the_write_ahead_log_that_lies_beside_it(store, path, event, tmp_path):
    """Else what was written last would be missing, and nobody would know."""
    await store.write([event("e1")])
    copy = tmp_path / "copy" / "events.db"
    copy.parent.mkdir()
    for name in ("events.db", "events.db-wal"):
        copy.with_name(name).write_bytes(path.with_name(name).read_bytes())
    no_room_for("shm", copy)
    with pytest.raises(Unavailable, match=r"events\.db cannot be opened"):
        await read_only(copy)


def a_directory(path):
    path.mkdir(parents=True)


def a_folder_that_is_a_file(path):
    path.parent.write_text("")


def something_else(path):
    path.parent.mkdir()
    path.write_bytes(b"certainly no database" * 100)


@pytest.mark.parametrize("obstacle", [a_directory, a_folder_that_is_a_file, something_else])
def test_a_file_that_cannot_be_opened_is_named(path, obstacle):
    obstacle(path)
    with pytest.raises(Unavailable, match=r"events\.db cannot be opened"):
        SqliteEventStore(path)


def test_what_is_no_store_is_not_read_and_stays_as_it_was(path):
    something_else(path)
    before = found_in(path.parent)
    with pytest.raises(Unavailable, match=r"events\.db cannot be opened: file is not a database"):
        SqliteEventStore(path, writes=False)
    assert found_in(path.parent) == before
