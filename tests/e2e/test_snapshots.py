"""Another snapshot is activated under load, each over a TorchServe of its own, and nobody notices.

Whether one process serves, or several, which share a TorchServe and swap together.
"""

import asyncio
import signal
from collections import defaultdict
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import psutil
import pytest

from longtide import AsyncClient
from longtide_server.snapshot import copy_snapshot, resolve, set_current

CALLERS = 8
PAUSE_S = 0.03
ENOUGH = 100
AT = datetime(2024, 3, 1, tzinfo=UTC)  # a fixed time, so that a snapshot's answer is always the same


def java_processes(server) -> list[psutil.Process]:
    return [process for process in server.tree() if process.name() == "java"]


@pytest.fixture(scope="module")
def trained(world, command, tmp_path_factory):
    """Another snapshot of the same log."""
    trained = tmp_path_factory.mktemp("trained")
    smaller = [part for name in ("model.dim=8", "model.hidden=8", "train.epochs=3") for part in ("--set", name)]
    command("train", world.log, "--items", world.items, "--out", trained, "--text-model", "none", *smaller)
    return resolve(trained)


@pytest.mark.parametrize("workers", [1, 2])
async def test_under_load_every_answer_is_whole_and_from_one_snapshot(world, trained, start, alive, tmp_path, workers):
    served = tmp_path / "served"
    old = copy_snapshot(resolve(world.snapshot), served).name
    set_current(served, old)
    server = start(None, "--workers", workers, snapshot=served)

    answers = []  # (whether the activation was over when it was asked for, who asked, the answer)
    activated = stopped = False

    async def ask(clients, caller):
        client = clients[caller]
        session = [] if caller % 2 else ["item-c"]  # what a session adds is always encoded, the rest may be kept
        while not stopped:
            after = activated
            answer = await client.recommend(world.users[caller], 12, session_items=session, request_time=AT)
            answers.append((after, caller, answer))
            await asyncio.sleep(PAUSE_S)

    async def answered(count):
        target = len(answers) + count
        while len(answers) < target:  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_S)

    address = server.wait_serving()
    async with AsyncExitStack() as connected:
        clients = [await connected.enter_async_context(AsyncClient(address, timeout=20.0)) for _ in range(CALLERS)]
        client = clients[0]
        await client.write_events(world.events())
        (java,) = java_processes(server)
        async with asyncio.TaskGroup() as load:  # a call that fails ends the test
            for caller in range(CALLERS):
                load.create_task(ask(clients, caller))
            await answered(ENOUGH)
            new = copy_snapshot(trained, served).name
            before = len(answers)
            snapshot = await client.activate_snapshot(new)
            during = len(answers) - before
            activated = True
            await answered(ENOUGH)
            stopped = True
        listings = [await one.list_snapshots() for one in clients]

    assert (snapshot.snapshot_id, snapshot.active) == (new, True)
    for listed in listings:
        assert [(one.snapshot_id, one.active) for one in listed] == [(new, True), (old, False)]
    assert during > ENOUGH
    assert not [answer.degraded_reason for _, _, answer in answers if answer.degraded]
    assert {answer.snapshot_id for _, _, answer in answers[:before]} == {old}
    assert {answer.snapshot_id for _, _, answer in answers} == {old, new}
    assert {answer.snapshot_id for after, _, answer in answers if after} == {new}

    lists = defaultdict(set)
    for _, caller, answer in answers:
        lists[caller, answer.snapshot_id].add(tuple(item.item_id for item in answer))
    assert {len(found) for found in lists.values()} == {1}  # none is a mixture
    assert any(lists[caller, old] != lists[caller, new] for caller in range(CALLERS))

    assert alive([java]) == []
    processes = server.tree()
    assert server.stop(signal.SIGTERM) == 0
    assert alive(processes) == []
    assert "Traceback" not in "".join(server.errors)
