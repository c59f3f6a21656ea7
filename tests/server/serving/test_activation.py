"""Another snapshot is tried, warmed and swapped in; nobody is refused, and no answer mixes two."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from longtide_server.answers import Answer, Query, Recommendation
from longtide_server.errors import (
    Conflict,
    DeadlineExceeded,
    EncoderUnavailable,
    EncoderUnreachable,
    NotFound,
    Overloaded,
    SnapshotError,
    Unavailable,
)
from longtide_server.recommender import Recommender
from longtide_server.serving import servings as servings_module
from longtide_server.serving.activation import Activation
from longtide_server.serving.canary import Bars, canary_queries, try_out
from longtide_server.serving.serving import Serving
from longtide_server.snapshot import CURRENT, ENCODER, resolve
from longtide_server.sources.neighbors import NeighborIndex

SOON_S = 10.0
LENIENT = Bars(recall=0.0, latency_s=SOON_S)


async def answer(served, user="ann"):
    with served.servings.current as serving:
        return await serving.responses.recommend(Query(user, 12), SOON_S)


async def test_the_newest_comes_first_and_the_active_one_is_marked(served):
    listed = await served.activation.listed()
    assert [(one.manifest.snapshot_id, one.active) for one in listed] == [("c", False), ("b", False), ("a", True)]
    assert (await served.activation.get("b")).folder == served.directory / "b"


async def test_the_next_request_is_answered_from_the_new_snapshot(served, event):
    await served.writer.write([event("e1", "item-3"), event("e2", "item-5", 1.0)])
    before = await answer(served)
    active = await served.activation.activate("c")
    assert (active.manifest.snapshot_id, active.active) == ("c", True)
    after = await answer(served)
    assert (before.snapshot_id, after.snapshot_id) == ("a", "c")
    assert after.recommendations == before.recommendations
    assert (served.directory / CURRENT).read_text().strip() == "c"


async def test_events_are_felt_by_the_new_snapshot_too(served, event):
    await answer(served)
    await served.activation.activate("b")
    await served.writer.write([event("e1", "item-3")])
    assert "item-3" not in [one.item_id for one in (await answer(served)).recommendations]


async def test_an_event_that_is_written_during_the_swap_is_felt(served, event):
    await served.writer.write([event("e0", "item-1")])
    await answer(served)
    activating = asyncio.create_task(served.activation.activate("b"))
    written = 0
    while not activating.done():
        await served.writer.write([event(f"w{written}", f"item-{written % 8}", 1.0 + written)])
        shown = [one.item_id for one in (await answer(served)).recommendations]
        assert f"item-{written % 8}" not in shown
        written += 1
    assert written > 2
    assert (await answer(served)).snapshot_id == "b"
    user = await served.servings.current.states.get("user:ann")
    assert len(user.items) == written + 1


async def test_recent_people_are_warm_before_the_swap(served, event):
    await served.writer.write([event(f"e{n}", "item-3", float(n), f"u{n}") for n in range(20)])
    for n in range(20):
        await answer(served, f"u{n}")
    await served.activation.activate("b")
    states = served.servings.current.states
    assert set(states.recent()) >= {f"user:u{n}" for n in range(20)}
    users = [await states.get(f"user:u{n}") for n in range(20)]
    assert all(user.encoded is not None for user in users)


@pytest.mark.parametrize("at_once", [1, 3])
async def test_whoever_cannot_be_warmed_is_left_out(world, at_once):
    for user, item in (("ann", "a"), ("bob", "b"), ("cid", "c"), ("dan", "d")):
        await world.did(user, item)
    world.encoder.unsound = (2,)
    assert await world.serving.warm([f"user:{name}" for name in ("ann", "bob", "cid", "dan")], SOON_S, at_once) == 3
    assert (await world.states.get("user:bob")).encoded is None
    assert (await world.states.get("user:dan")).encoded is not None


async def test_warming_ends_when_its_time_is_over(world):
    await world.did("ann", "a")
    await world.did("bob", "b")
    world.encoder.answering_allowed.clear()
    before = asyncio.all_tasks()
    assert await world.serving.warm(["user:ann", "user:bob"], 0.05, 2) == 0
    left = [task for task in asyncio.all_tasks() - before if "warm" in task.get_coro().__qualname__]
    world.encoder.answering_allowed.set()
    assert left == []


async def test_what_is_in_use_goes_when_it_is_no_longer(served):
    with served.servings.current:
        await served.activation.activate("b")
        await asyncio.sleep(0.05)
        assert not served.opened[0].released.is_set()
        with served.servings.current as new:
            assert new.snapshot.snapshot_id == "b"
    async with asyncio.timeout(SOON_S):
        await served.opened[0].released.wait()


async def test_what_is_used_for_too_long_goes_all_the_same(served, monkeypatch):
    monkeypatch.setattr(servings_module, "DRAIN_S", 0.05)
    with served.servings.current:
        await served.activation.activate("b")
        async with asyncio.timeout(SOON_S):
            await served.opened[0].released.wait()


async def test_an_unknown_snapshot_is_not_found(served):
    with pytest.raises(NotFound, match="'z'"):
        await served.activation.activate("z")
    assert (await answer(served)).snapshot_id == "a"


async def test_the_active_snapshot_stays_also_after_a_restart(served):
    (served.directory / CURRENT).write_text("c")  # as a training into the directory does
    assert (await served.activation.activate("a")).active
    assert len(served.opened) == 1
    assert (served.directory / CURRENT).read_text().strip() == "a"


async def test_a_snapshot_whose_folder_was_renamed_is_found_after_a_restart(served):
    (served.directory / "b").rename(served.directory / "by-hand")
    await served.activation.activate("b")
    assert resolve(served.directory) == served.directory / "by-hand"


async def test_a_damaged_snapshot_is_refused(served):
    (served.directory / "b" / ENCODER).write_bytes(b"short")
    with pytest.raises(SnapshotError, match="truncated"):
        await served.activation.activate("b")
    assert (await answer(served)).snapshot_id == "a"
    assert (served.directory / CURRENT).read_text().strip() == "a"


async def test_one_at_a_time(served):
    first = asyncio.create_task(served.activation.activate("b"))
    await asyncio.sleep(0)
    with pytest.raises(Conflict, match="another snapshot is being activated"):
        await served.activation.activate("c")
    assert (await first).manifest.snapshot_id == "b"


async def test_whoever_asks_for_the_same_waits_for_it_too(served):
    both = await asyncio.gather(served.activation.activate("b"), served.activation.activate("b"))
    assert [one.manifest.snapshot_id for one in both] == ["b", "b"]
    assert len(served.opened) == 2


@pytest.mark.parametrize("current", ["a", None])
async def test_beside_one_snapshots_own_folder_nothing_is_written_or_deleted(served, current):
    """Also where the directory that it lies in is another server's, and says what is current for that one."""
    if current is None:
        (served.directory / CURRENT).unlink()
    before = {path.name for path in served.directory.iterdir()}
    one_folder = served.directory / "a"
    activation = Activation(one_folder, one_folder, served.servings, keep=1)
    for name in ("b", "c", "c"):
        assert (await activation.activate(name)).active
        assert (await answer(served)).snapshot_id == name
    assert {path.name for path in served.directory.iterdir()} == before
    assert current is None or resolve(served.directory) == one_folder


async def test_where_what_is_current_lies_elsewhere_nothing_is_written_or_deleted(served, tmp_path):
    (tmp_path / CURRENT).write_text("snapshots/a")  # by hand
    activation = Activation(tmp_path, resolve(tmp_path), served.servings, keep=1)
    for name in ("b", "c"):
        assert (await activation.activate(name)).active
    assert sorted(path.name for path in served.directory.iterdir()) == ["CURRENT", "a", "b", "c"]
    assert (served.directory / CURRENT).read_text() == "a"


async def test_closing_does_not_wait_for_warming(served, monkeypatch):
    monkeypatch.setattr(servings_module, "WARM_USERS", 0)
    began, hang = asyncio.Event(), asyncio.Event()

    async def warm(self, owners, timeout_s, at_once):
        if timeout_s == servings_module.WARM_REST_S:
            began.set()
            await hang.wait()
        return 0

    monkeypatch.setattr(Serving, "warm", warm)
    await served.activation.activate("b")
    await began.wait()  # the fixture closes it now


async def test_it_goes_on_when_the_caller_gives_up(served):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await served.activation.activate("b")
    async with asyncio.timeout(SOON_S):
        while served.servings.current.snapshot.snapshot_id != "b":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_canaries_that_find_it_wanting_leave_the_old_one(served, monkeypatch):
    async def fails(recommender, bars):
        raise SnapshotError("canaries: no")

    monkeypatch.setattr(servings_module, "try_out", fails)
    with pytest.raises(SnapshotError, match="canaries"):
        await served.activation.activate("b")
    assert served.opened[1].released.is_set()
    assert (await answer(served)).snapshot_id == "a"


async def test_the_last_ones_are_kept_and_the_one_that_is_served(served):
    await served.activation.activate("c")
    assert sorted(path.name for path in served.directory.iterdir()) == ["CURRENT", "b", "c"]
    await served.activation.activate("b")  # back to an older one
    assert sorted(path.name for path in served.directory.iterdir()) == ["CURRENT", "b", "c"]


async def test_the_one_that_is_served_stays_though_newer_ones_are_kept(served):
    activation = Activation(served.directory, served.directory / "a", served.servings, keep=1)
    await activation.activate("b")
    assert sorted(path.name for path in served.directory.iterdir()) == ["CURRENT", "b", "c"]


class FailingSwap:
    """What is prepared fails."""

    def __init__(self):
        self.snapshot_id, self.abandoned = "a", 0

    async def prepare(self, folder):
        raise EncoderUnavailable("it does not start")

    async def abandon(self):
        self.abandoned += 1


async def test_what_could_not_be_prepared_is_let_go(served):
    swap = FailingSwap()
    with pytest.raises(EncoderUnavailable):
        await Activation(served.directory, served.directory / "a", swap, keep=2).activate("b")
    assert swap.abandoned == 1


# The canaries.


async def test_canaries_of_a_healthy_snapshot_are_content(served):
    recommender = served.servings.current.recommender
    trial = await try_out(recommender, Bars(recall=0.9, latency_s=SOON_S))
    assert trial.canaries == len(canary_queries(recommender)) > 4
    assert trial.recall > 0.9


async def test_canaries_leave_nothing_in_the_log(served):
    await try_out(served.servings.current.recommender, LENIENT)
    assert [piece async for piece in served.store.everything()] == []


async def test_canaries_do_not_ask_the_log(world):
    world.store.failure = Unavailable("Redis is restarting")
    assert (await try_out(world.recommender, LENIENT)).canaries == 3
    assert world.states.count == 0


async def test_an_encoder_that_fails_is_found(world):
    world.encoder.failure = EncoderUnavailable("broken weights")
    with pytest.raises(SnapshotError, match=r"canaries: the encoder fails: broken weights"):
        await try_out(world.recommender, LENIENT)


@pytest.mark.parametrize(
    "failure",
    [
        DeadlineExceeded("it did not answer within 10 s"),
        Overloaded("the encoder's queue is full"),
        EncoderUnreachable("TorchServe cannot be reached"),
    ],
)
async def test_an_encoder_that_cannot_answer_now_is_not_the_snapshots_fault(world, failure):
    world.encoder.failure = failure
    with pytest.raises(Unavailable, match=f"canaries: the encoder cannot answer now: {failure}"):
        await try_out(world.recommender, LENIENT)


async def test_an_encoder_that_answers_when_asked_again_is_not_the_snapshots_fault(world, monkeypatch):
    encode = world.encoder.encode

    async def fails_once(batch, timeout_s):
        monkeypatch.setattr(world.encoder, "encode", encode)
        raise EncoderUnavailable("its worker died")

    monkeypatch.setattr(world.encoder, "encode", fails_once)
    with pytest.raises(Unavailable, match=r"canaries: an answer is degraded.*its worker died"):
        await try_out(world.recommender, LENIENT)


async def test_a_catalogue_that_may_be_old_is_not_the_snapshots_fault(world):
    reason = "the catalogue could not be asked: away"
    recommender = Recommender(world.snapshot, world.states, stale_catalog=lambda: reason)
    with pytest.raises(Unavailable, match=f"canaries: an answer is degraded: {reason}"):
        await try_out(recommender, LENIENT)


SANE = [("a", 0.4), ("b", 0.3), ("c", 0.2), ("d", 0.1)]


class Answering:
    """A recommender of whom one list is not what the snapshot of a world gives."""

    def __init__(self, recommender, items):
        self.snapshot, self.states = recommender.snapshot, recommender.states
        self._items = items

    async def recommend_to(self, asker, query, timeout_s):
        items = tuple(Recommendation(item_id, "", score, sources=(), neighbors=()) for item_id, score in self._items)
        return Answer(items, "world")

    def recommendable_count(self):
        return len(SANE) + 1  # one of which each canary has just seen


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (SANE, None),
        (SANE[:3], "a list has 3 of 10 items"),
        ([*SANE[:3], ("a", 0.1)], "a list repeats an item"),
        ([*SANE[:3], ("e", 0.1)], "a list repeats an item, or shows one that was just seen"),
        ([("b", 0.3), ("a", 0.4), *SANE[2:]], "the scores of a list are not falling shares"),
        ([("a", 1.2), *SANE[1:]], "the scores of a list are not falling shares"),
        ([*SANE[:3], ("d", 0.0)], "the scores of a list are not falling shares"),
    ],
)
async def test_a_list_that_no_healthy_snapshot_gives_is_found(make_world, items, reason):
    """The only canary has just turned to e."""
    answering = Answering(make_world(moments=[("bob", 0, "e")]).recommender, items)
    with nullcontext() if reason is None else pytest.raises(SnapshotError, match=reason):
        await try_out(answering, LENIENT)


async def test_slow_answers_may_be_the_busy_machines_fault(world):
    with pytest.raises(Unavailable, match="canaries: an answer takes"):
        await try_out(world.recommender, Bars(recall=0.0, latency_s=0.0))


async def test_an_index_that_misses_the_nearest_is_found(make_world, monkeypatch):
    world = make_world()
    monkeypatch.setattr(NeighborIndex, "recall", lambda *_: 0.5)
    with pytest.raises(SnapshotError, match=r"finds 0.50 of the nearest; 0.7 are required"):
        await try_out(world.recommender, replace(LENIENT, recall=0.7))


async def test_scores_that_are_no_numbers_are_found(make_world, make_snapshot):
    snapshot = make_snapshot()
    world = make_world(snapshot=replace(snapshot, popularity=np.full(6, np.nan)))
    with np.errstate(invalid="ignore"), pytest.raises(SnapshotError, match="canaries"):
        await try_out(world.recommender, LENIENT)
