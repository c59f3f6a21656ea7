"""Workers are kept going, and are led to another snapshot together, whatever happens to some of them meanwhile."""

import asyncio
from pathlib import Path

import pytest

from longtide_server.errors import DeadlineExceeded, SnapshotError, Unavailable

SOON_S = 10.0


def serving(fleet):
    """What the workers serve that answer calls: what they began with, or have swapped to."""
    return [
        (worker.number, "new" if "Commit" in worker.asked else worker.hosted.snapshot_id)
        for worker in sorted(fleet.made, key=lambda one: one.number)
        if worker.listens
    ]


def all_of(name):
    return [(number, name) for number in range(3)]


async def until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_lost_worker_is_replaced_and_the_others_go_on(fleet):
    await fleet.fleet.start()
    first = list(fleet.made)
    fleet.made[1].kill()
    await until(lambda: len(fleet.made) == 4 and serving(fleet) == all_of("old"))
    assert [worker.listens for worker in first] == [True, False, True]


async def test_a_worker_that_hangs_is_replaced(fleet):
    await fleet.fleet.start()
    hanging = fleet.made[2]
    hanging.failures["hang"], hanging.hangs = DeadlineExceeded("no answer"), True
    await until(lambda: not hanging.listens and serving(fleet) == all_of("old"))
    assert hanging.status == -9


async def test_a_worker_that_does_not_come_up_is_tried_again(fleet):
    await fleet.fleet.start()
    tries = []

    def dead(worker):
        tries.append(worker)
        if len(tries) < 4:
            worker.kill()

    fleet.prepared_for = dead
    fleet.made[0].kill()
    await until(lambda: serving(fleet) == all_of("old"))
    assert [worker.number for worker in tries] == [0] * 4


async def test_a_fleet_of_which_one_cannot_start_does_not_start(fleet):
    fleet.prepared_for = lambda worker: worker.number == 1 and worker.kill()
    with pytest.raises(Unavailable, match="while it started"):
        await fleet.fleet.start()


async def test_all_swap_and_the_old_one_goes(fleet):
    await fleet.fleet.start()
    await fleet.fleet.prepare(Path("new"))
    assert serving(fleet) == all_of("old")
    await fleet.fleet.commit()
    assert (fleet.fleet.snapshot_id, serving(fleet)) == ("new", all_of("new"))
    assert {tuple(worker.asked[:2]) for worker in fleet.made} == {("Prepare", "Commit")}
    await until(lambda: fleet.closed == ["old"])
    assert [worker.asked[2:] for worker in fleet.made] == [["Drain"]] * 3


async def test_one_worker_tries_it_before_the_others_are_troubled(fleet):
    await fleet.fleet.start()
    fleet.made[0].failures["Prepare"] = SnapshotError("canaries: no")
    with pytest.raises(SnapshotError, match="canaries"):
        await fleet.fleet.prepare(Path("new"))
    await fleet.fleet.abandon()
    assert [worker.asked.count("Prepare") for worker in fleet.made] == [1, 0, 0]
    assert (serving(fleet), fleet.closed) == (all_of("old"), ["new"])


async def test_if_one_cannot_all_stay_with_the_old_one(fleet):
    await fleet.fleet.start()
    fleet.made[2].failures["Prepare"] = Unavailable("no memory")
    with pytest.raises(Unavailable, match="no memory"):
        await fleet.fleet.prepare(Path("new"))
    await fleet.fleet.abandon()
    assert all(worker.asked[-1] == "Abandon" for worker in fleet.made)
    assert (serving(fleet), fleet.closed) == (all_of("old"), ["new"])


async def test_whoever_comes_up_between_preparing_and_swapping_starts_again_with_the_new_one(fleet):
    await fleet.fleet.start()
    await fleet.fleet.prepare(Path("new"))
    fleet.made[0].kill()
    await until(lambda: serving(fleet) == all_of("old"))
    await fleet.fleet.commit()
    assert (0, "old") not in serving(fleet)
    await until(lambda: serving(fleet) == all_of("new"))


async def test_whoever_still_loads_the_old_one_at_the_swap_starts_again_with_the_new_one(fleet):
    await fleet.fleet.start()
    slow = []

    def loads_slowly(worker):
        if not slow:
            worker.may_load.clear()
            slow.append(worker)

    fleet.prepared_for = loads_slowly
    fleet.made[1].kill()
    await until(lambda: slow)
    await fleet.fleet.prepare(Path("new"))
    await fleet.fleet.commit()
    slow[0].may_load.set()
    await until(lambda: serving(fleet) == all_of("new"))
    assert not slow[0].listens
    assert slow[0].asked == []


async def test_whoever_does_not_swap_in_time_does_not_go_on_with_the_old_one(fleet):
    await fleet.fleet.start()
    await fleet.fleet.prepare(Path("new"))
    fleet.made[1].failures["Commit"] = DeadlineExceeded("no answer")
    await fleet.fleet.commit()
    assert (1, "old") not in serving(fleet)
    fleet.made[1].asked.clear()
    await until(lambda: serving(fleet) == all_of("new"))


async def test_without_workers_nothing_is_prepared(fleet):
    await fleet.fleet.start()
    fleet.prepared_for = lambda worker: worker.kill()
    for worker in fleet.made:
        worker.kill()
    await until(lambda: not fleet.fleet.pids)
    with pytest.raises(Unavailable, match="no worker is up"):
        await fleet.fleet.prepare(Path("new"))
    await fleet.fleet.abandon()
