"""How much may wait to be written: who finds no room is refused, or waits in turn."""

import asyncio

import pytest

from longtide_server.errors import Overloaded
from longtide_server.event_store.backlog import Backlog


@pytest.fixture
def full():
    """A backlog with room for 10, of which 8 are taken."""
    backlog = Backlog(10, "events")
    backlog.enter(8)
    return backlog


async def test_there_is_room_up_to_the_limit(full):
    full.enter(2)
    with pytest.raises(Overloaded, match="10 events are waiting to be written"):
        full.enter(1)
    full.leave(8)
    full.enter(8)


async def test_who_waits_for_room_enters_in_turn_however_little_the_next_one_needs(full):
    entered = []

    async def enter(name, size):
        await full.enter_in_turn(size)
        entered.append(name)

    waiting = [asyncio.create_task(enter(name, size)) for name, size in (("large", 9), ("small", 1))]
    await asyncio.sleep(0)
    assert entered == []
    full.leave(4)
    await asyncio.sleep(0)
    assert entered == []
    full.leave(4)
    await asyncio.gather(*waiting)
    assert entered == ["large", "small"]


async def test_who_gives_up_waiting_leaves_the_room_to_the_next(full):
    gone = asyncio.create_task(full.enter_in_turn(9))
    next_one = asyncio.create_task(full.enter_in_turn(2))
    await asyncio.sleep(0)
    gone.cancel()
    await next_one
    with pytest.raises(Overloaded, match="10 events are waiting"):
        full.enter(1)
