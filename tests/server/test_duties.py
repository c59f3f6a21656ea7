"""What a worker does when the supervisor leads it to another snapshot."""

import asyncio

import pytest

from longtide_server.encoder import ON_CPU, EncoderAt
from longtide_server.errors import Conflict, SnapshotError
from longtide_server.serving import servings as servings_module
from longtide_server.snapshot import ENCODER
from longtide_server.workers.duties import Duties
from longtide_server.workers.messages import Abandon, Commit, Drain, Family, Look, Prepare, Sample

SOON_S = 10.0
EVENTS = Family("longtide_events", "Events.", "counter", [("longtide_events_total", {}, 3.0)])


@pytest.fixture
async def duties(served):
    made = Duties(served.servings, {}, lambda: [EVENTS])
    yield made
    await made.abandon()


async def test_what_is_prepared_is_served_once_that_is_said(duties, served):
    await duties.answer(Prepare(served.directory / "b", EncoderAt("127.0.0.1:1", ON_CPU)))
    assert served.servings.snapshot_id == "a"
    await duties.answer(Commit(served.directory / "b"))
    assert served.servings.snapshot_id == "b"
    async with asyncio.timeout(SOON_S):
        await duties.answer(Drain())
    assert served.opened[0].released.is_set()


async def test_a_damaged_snapshot_is_refused(duties, served):
    (served.directory / "b" / ENCODER).write_bytes(b"short")
    with pytest.raises(SnapshotError, match="truncated"):
        await duties.answer(Prepare(served.directory / "b", None))
    assert served.servings.snapshot_id == "a"


async def test_what_was_abandoned_is_let_go_and_not_served(duties, served):
    await duties.answer(Prepare(served.directory / "b", None))
    await duties.answer(Abandon())
    assert served.opened[1].released.is_set()
    with pytest.raises(Conflict, match="None is prepared"):
        await duties.answer(Commit(served.directory / "b"))
    assert served.servings.snapshot_id == "a"


@pytest.mark.parametrize("instead", ["abandoned", "another"])
async def test_what_is_given_up_on_while_it_is_prepared_is_never_served(duties, served, monkeypatch, instead):
    begun, held = asyncio.Event(), asyncio.Event()
    real = servings_module.try_out

    async def slow(recommender, bars):
        if recommender.snapshot.snapshot_id == "b":
            begun.set()
            await held.wait()
        return await real(recommender, bars)

    monkeypatch.setattr(servings_module, "try_out", slow)
    preparing = asyncio.create_task(duties.answer(Prepare(served.directory / "b", None)))
    await begun.wait()
    await duties.answer(Abandon() if instead == "abandoned" else Prepare(served.directory / "c", None))
    held.set()
    await asyncio.wait((preparing,), timeout=SOON_S)
    assert served.opened[1].released.is_set()
    with pytest.raises(Conflict):
        await duties.answer(Commit(served.directory / "b"))
    if instead == "another":
        await duties.answer(Commit(served.directory / "c"))
        assert served.servings.snapshot_id == "c"


async def test_it_says_what_it_has_counted(duties):
    assert await duties.answer(Look()) == Sample([EVENTS])
