"""What is written is felt by every copy before the write is answered, and holds nobody else up meanwhile."""

import asyncio
import itertools
import time

import pytest
from tests.server.conftest import MemoryStore, make_event

from longtide_server.errors import Unavailable
from longtide_server.event_store import Appended, Version, Written
from longtide_server.users.history_writer import HistoryWriter, in_pieces


class SlowCopies:
    """They take 0.1 ms to take up an event."""

    def __init__(self):
        self.events = []

    def apply(self, written):
        for appended in written.appended.values():
            self.events += appended.events
            time.sleep(0.0001 * len(appended.events))


async def test_others_have_their_turn_while_a_large_batch_is_felt():
    store, copies, turns = MemoryStore(), SlowCopies(), []
    writer = HistoryWriter(store)
    writer.add(copies)

    async def take_turns():
        while True:
            turns.append(len(copies.events))
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    events = [make_event(f"e{n}", user_id=f"u{n // 3}") for n in range(3_000)]
    written = await writer.write(events)
    other.cancel()
    assert written.new == 3_000
    assert copies.events == events
    assert max(after - before for before, after in itertools.pairwise(turns)) < 500


async def test_of_a_deletion_that_failed_nobody_knows_how_far_it_came(world, monkeypatch):
    """The store has deleted what it then could not say: nothing of it may live on in memory."""
    await world.did("ann", "ab")
    assert len((await world.states.get("user:ann")).items) == 2

    async def loses_the_answer(owner, now_s):
        del world.store.histories[owner]
        world.store.rewrites[owner] = 1
        raise Unavailable("it did not answer in time")

    monkeypatch.setattr(world.store, "delete", loses_the_answer, raising=False)
    with pytest.raises(Unavailable):
        await world.writer.delete("user:ann", 0.0)
    assert len((await world.states.get("user:ann")).items) == 0


def test_a_history_is_never_in_two_pieces():
    def appended(count):
        return Appended(Version(), Version(0, count), [make_event(f"e{n}") for n in range(count)])

    sizes = {"a": 1, "b": 1_000, "c": 150, "d": 150, "e": 1}
    pieces = [*in_pieces(Written(1_302, 5, {owner: appended(size) for owner, size in sizes.items()}))]
    assert [[*piece.appended] for piece in pieces] == [["a", "b"], ["c", "d"], ["e"]]
    assert [piece.new for piece in pieces] == [1_001, 300, 1]
