"""States of an earlier run are used for exactly the histories that they are of, and for nothing else."""

import os
import shutil

import numpy as np
import pytest
from tests.server.conftest import FakeEncoder, make_event

from longtide_server.encoder import Encoded
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.event_store import Version
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.users.state_file import SavedStates, StateRow, save_states, sweep_states
from longtide_server.users.user_states import UserStates

SOON_S = 5.0
VERSION = Version(2, 7, "e7")


def encoded(seed=0):
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=n).astype(np.float32) for n in (4, 6, 3))
    query, state, log_probability = vectors
    return Encoded(query, state, np.array([3, 1, 2]), log_probability, 0.25)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "states" / "s1.arrow"


def test_what_is_saved_is_found(path):
    save_states(path, "s1", "log", [StateRow(f"user:u{n}", VERSION, n, encoded(n)) for n in range(2_500)])
    saved = SavedStates(path, "s1", "log")
    assert len(saved) == 2_500
    found, expected = saved.find("user:u1234", VERSION, 1234), encoded(1234)
    for name in ("query", "state", "items", "log_probability"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert found.log_z == expected.log_z


@pytest.mark.parametrize(
    ("owner", "version", "count"),
    [
        ("user:bob", VERSION, 3),
        ("user:ann", Version(3, 7, "e7"), 3),
        ("user:ann", Version(2, 8, "e7"), 3),
        ("user:ann", Version(2, 7, "e8"), 3),
        ("user:ann", VERSION, 4),
    ],
)
def test_of_another_history_nothing_is_found(path, owner, version, count):
    save_states(path, "s1", "log", [StateRow("user:ann", VERSION, 3, encoded())])
    saved = SavedStates(path, "s1", "log")
    assert saved.find("user:ann", VERSION, 3) is not None
    assert saved.find(owner, version, count) is None


def test_states_of_another_snapshot_are_not_used(path):
    save_states(path, "s2", "log", [StateRow("user:ann", VERSION, 3, encoded())])
    assert len(SavedStates(path, "s1", "log")) == 0


def test_states_of_another_log_are_not_used(path):
    save_states(path, "s1", "another log", [StateRow("user:ann", VERSION, 3, encoded())])
    assert len(SavedStates(path, "s1", "log")) == 0


async def test_states_of_what_happened_after_a_backup_are_not_used_once_it_is_put_back(make_snapshot, path, tmp_path):
    """Another event has the place of one that was written after the backup."""
    snapshot, log, backup = make_snapshot(), tmp_path / "events.db", tmp_path / "backup.db"

    async def run(event, saved=()):
        store = SqliteEventStore(log)
        log_id = await store.identity()
        found = [SavedStates(one, "world", log_id) for one in saved]
        encoder = CoalescingEncoder(FakeEncoder(snapshot.embeddings), SOON_S)
        states = UserStates(snapshot, store, encoder, 10, saved=found)
        await store.write([event])
        ann = await states.encoded(await states.get("user:ann"), (), 3, SOON_S)
        save_states(path, "world", log_id, states.rows())
        await store.close()
        return ann.state.tolist()

    await run(make_event("1", "a", 1.0))
    shutil.copy(log, backup)
    assert await run(make_event("2", "e", 2.0), [path]) == [2, 1 / 2 + 5]
    shutil.copy(backup, log)
    assert await run(make_event("3", "b", 3.0), [path]) == [2, 1 / 2 + 2]


@pytest.mark.parametrize("damage", [b"", b"no arrow file", None])
def test_a_missing_or_damaged_file_is_no_file(path, damage):
    if damage is not None:
        path.parent.mkdir()
        path.write_bytes(damage)
    saved = SavedStates(path, "s1", "log")
    assert saved.find("user:ann", VERSION, 3) is None


def test_a_file_that_was_cut_off_is_no_file(path):
    save_states(path, "s1", "log", [StateRow(f"user:u{n}", VERSION, n, encoded(n)) for n in range(100)])
    path.write_bytes(path.read_bytes()[:-200])
    assert len(SavedStates(path, "s1", "log")) == 0


def test_files_that_nobody_saves_into_are_cleared_away_those_of_workers_too(path):
    root = path.parent
    current, another, worker = path, root / "s2.arrow", root / "worker-3" / "s1.arrow"
    for file in (current, another, worker):
        save_states(file, "s1", "log", [StateRow("user:gone", VERSION, 1, encoded())])
    (root / "s1.partial").touch()
    for file in (another, worker, root / "s1.partial"):
        os.utime(file, (1_000.0, 1_000.0))
    (root / "s2.signals").touch()
    sweep_states(root, before_s=2_000.0)
    assert sorted(file.name for file in root.rglob("*") if file.is_file()) == ["s1.arrow", "s2.signals"]
    assert len(SavedStates(current, "s1", "log")) == 1


async def test_another_run_encodes_only_what_is_new(world, path, event):
    await world.did("ann", "abc")
    await world.did("bob", "ab")
    for owner in ("user:ann", "user:bob"):
        await world.states.encoded(await world.states.get(owner), (), 3, SOON_S)
    save_states(path, "world", "log", world.states.rows())
    await world.did("bob", "e")  # after the states were saved
    calls = len(world.encoder.calls)

    states = UserStates(world.snapshot, world.store, world.coalescing, 10, saved=[SavedStates(path, "world", "log")])
    ann, bob = await states.get("user:ann"), await states.get("user:bob")
    before = await world.states.encoded(await world.states.get("user:ann"), (), 3, SOON_S)
    found = await states.encoded(ann, (), 3, SOON_S)
    np.testing.assert_array_equal(found.state, before.state)
    assert len(world.encoder.calls) == calls
    assert (await states.encoded(bob, (), 3, SOON_S)).state.tolist() == [3, 1 / 4 + 2 / 2 + 5]
    assert world.encoder.rows[calls:] == [[[1, 2, 5]]]


async def test_what_is_not_encoded_to_its_end_is_not_saved(world):
    await world.did("ann", "ab")
    await world.states.get("user:ann")
    assert world.states.rows() == []
    await world.states.encoded(await world.states.get("user:ann"), (), 3, SOON_S)
    assert [row.owner for row in world.states.rows()] == ["user:ann"]
    await world.did("ann", "c")
    assert world.states.rows() == []


async def test_another_run_knows_who_somebody_was_before_an_event_that_is_written_to_it(world, path):
    await world.did("ann", "abc")
    await world.states.encoded(await world.states.get("user:ann"), (), 3, SOON_S)
    save_states(path, "world", "log", world.states.rows())
    before = world.store.version("user:ann")
    states = UserStates(world.snapshot, world.store, world.coalescing, 10, saved=[SavedStates(path, "world", "log")])
    await world.did("ann", "d")
    last = world.store.histories["user:ann"][-1]
    calls = len(world.encoder.calls)
    ann = await states.recalled("user:ann", before, {last.event_id}, last.time_s, SOON_S)
    assert ann.items.tolist() == [1, 2, 3]
    assert ann.encoded.query.tolist() == world.snapshot.embeddings[3].tolist()
    assert len(world.encoder.calls) == calls
