"""The seam to the encoder: what is packed and unpacked, and how the calls of many callers become few."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from longtide_handlers.encoder_handler import LongtideEncoderHandler
from longtide_server import encoder as encoder_module
from longtide_server.encoder import AnswerSizes, Batches, CoalescingEncoder, LocalEncoder, Steps, pack, unpack
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, LongtideError, Overloaded
from longtide_server.snapshot import ENCODER

SOON_S = 5.0  # for what happens at once, unless it never happens


def steps(*items, state=(0.0, 0.0), top_n=3):
    """A user's next views, a second apart."""
    return Steps(
        items=np.array(items, np.int32),
        types=np.ones(len(items), np.uint8),
        gaps=np.ones(len(items), np.float32),
        values=np.full(len(items), np.nan, np.float32),
        state=np.array(state, np.float32),
        top_n=top_n,
    )


@pytest.fixture
async def local(tiny_snapshot):
    encoder = LocalEncoder(tiny_snapshot.path / ENCODER, AnswerSizes.of(tiny_snapshot.embeddings))
    yield encoder
    await encoder.close()


@pytest.fixture(params=["fake", "local"])
def tried(request, local, tiny_snapshot, make_world):
    """An encoder, and what goes with it: the rules hold for the fake as for the real one."""
    snapshot = make_world().snapshot if request.param == "fake" else tiny_snapshot
    encoder = make_world(snapshot=snapshot).encoder if request.param == "fake" else local
    facts = snapshot.manifest.encoder
    return SimpleNamespace(
        encoder=encoder,
        items=len(snapshot.catalog),
        embeddings=snapshot.embeddings,
        temperature=facts.temperature,
        start=np.zeros(facts.state_size, np.float32),
    )


async def test_every_row_has_its_result_in_order(tried):
    rows = [steps(1, 2, 3, state=tried.start), steps(2, state=tried.start), steps(3, 1, state=tried.start)]
    together = await tried.encoder.encode(rows, SOON_S)
    alone = [(await tried.encoder.encode([row], SOON_S))[0] for row in rows]
    assert len(together) == 3
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.query, other.query, atol=1e-5)
        np.testing.assert_allclose(one.state, other.state, atol=1e-5)
        assert one.items.tolist() == other.items.tolist()
    assert not np.allclose(together[0].query, together[1].query, atol=1e-3)


async def test_a_kept_state_goes_on(tried):
    [whole] = await tried.encoder.encode([steps(1, 2, 3, 2, state=tried.start)], SOON_S)
    [before] = await tried.encoder.encode([steps(1, 2, state=tried.start)], SOON_S)
    [after] = await tried.encoder.encode([steps(3, 2, state=before.state)], SOON_S)
    np.testing.assert_allclose(after.query, whole.query, atol=1e-5)
    np.testing.assert_allclose(after.state, whole.state, atol=1e-5)


async def test_a_query_is_a_unit_vector_and_its_items_are_the_nearest(tried):
    [encoded] = await tried.encoder.encode([steps(1, 2, state=tried.start, top_n=3)], SOON_S)
    assert np.linalg.norm(encoded.query) == pytest.approx(1.0, abs=1e-5)
    cosine = tried.embeddings[1:] @ encoded.query
    assert encoded.items.tolist() == (np.argsort(-cosine, kind="stable")[:3] + 1).tolist()
    expected = cosine[encoded.items - 1] / tried.temperature - encoded.log_z
    np.testing.assert_allclose(encoded.log_probability, expected, atol=1e-4)


async def test_the_probabilities_of_the_whole_catalogue_are_one(tried):
    [encoded] = await tried.encoder.encode([steps(1, state=tried.start, top_n=1_000)], SOON_S)
    assert sorted(encoded.items.tolist()) == list(range(1, tried.items + 1))
    assert np.exp(encoded.log_probability).sum() == pytest.approx(1.0, abs=1e-5)


def test_rows_are_packed_one_after_the_other():
    packed = pack([steps(7, 8, state=(1, 2), top_n=5), steps(9, state=(3, 4), top_n=2)])
    assert np.frombuffer(packed["lengths"], np.int32).tolist() == [2, 1]
    assert np.frombuffer(packed["items"], np.int32).tolist() == [7, 8, 9]
    assert packed["types"] == b"\x01\x01\x01"
    assert np.frombuffer(packed["gaps"], np.float32).tolist() == [1, 1, 1]
    assert np.isnan(np.frombuffer(packed["values"], np.float32)).tolist() == [True] * 3
    assert np.frombuffer(packed["states"], np.float32).tolist() == [1, 2, 3, 4]
    assert np.frombuffer(packed["top_n"], np.int32).tolist() == [5]


def test_the_handler_reads_what_is_packed_and_its_answer_is_unpacked(tiny_snapshot):
    handler = LongtideEncoderHandler()
    handler.initialize(
        SimpleNamespace(
            system_properties={"model_dir": str(tiny_snapshot.path), "gpu_id": None},
            manifest={"model": {"serializedFile": ENCODER}},
        )
    )
    facts = tiny_snapshot.manifest.encoder
    start = np.zeros(facts.state_size, np.float32)
    batch = [steps(1, 2, state=start), steps(3, state=start)]
    [answer] = handler.handle([pack(batch)], None)
    first, second = unpack(answer, batch, AnswerSizes.of(tiny_snapshot.embeddings))
    assert first.query.shape == second.query.shape == (facts.dim,)
    assert first.state.shape == (facts.state_size,)
    assert len(first.items) == len(first.log_probability) == 3
    assert first.items.min() >= 1


TWO = [steps(1, state=(0.0,)), steps(2, state=(0.0,))]
SIZES = AnswerSizes(dim=2, item_count=9)


def answer(b=2, d=2, s=1, n=1, **parts):
    """A handler's answer by hand; a part may be replaced."""
    parts.setdefault("log_probability", np.full(b * n, -1.0))
    shapes = {"query": b * d, "state": b * s, "items": b * n, "log_probability": b * n, "log_z": b}
    kinds = {"items": np.int32}
    header = np.array([b, d, s, n], np.int32).tobytes()
    arrays = (parts.get(name, np.arange(size) + 1.0) for name, size in shapes.items())
    types = (kinds.get(name, np.float32) for name in shapes)
    return header + b"".join(np.asarray(a, t).tobytes() for a, t in zip(arrays, types, strict=True))


def test_an_answer_is_unpacked_row_by_row():
    first, second = unpack(answer(query=[1, 0, 0, 1], state=[5, 6], items=[8, 9], log_z=[0.5, 1.5]), TWO, SIZES)
    assert (first.query.tolist(), first.state.tolist(), first.items.tolist()) == ([1, 0], [5], [8])
    assert (second.query.tolist(), second.state.tolist(), second.items.tolist()) == ([0, 1], [6], [9])
    assert (first.log_z, second.log_z) == (0.5, 1.5)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        answer()[:15],
        answer()[:-1],
        answer() + b"\0",
        answer(b=1),
        answer(b=3),
        answer(n=0),
        answer(d=3),
        answer(s=2),
    ],
    ids=["empty", "no header", "short", "long", "a row too few", "a row too many", "no items", "wider", "other states"],
)
def test_an_answer_of_another_shape_is_refused(damaged):
    with pytest.raises(EncoderUnavailable, match="the encoder answered"):
        unpack(damaged, TWO, SIZES)


@pytest.mark.parametrize("item", [0, -1, 10, 2**31 - 1])
def test_an_answer_with_items_that_there_are_not_is_refused(item):
    with pytest.raises(EncoderUnavailable, match=f" to {max(item, 9)}; there are 1 to 9"):
        unpack(answer(items=[9, item]), TWO, SIZES)


def test_an_answer_whose_probabilities_are_none_is_refused():
    assert unpack(answer(log_probability=[-1.0, 1e-5]), TWO, SIZES)  # as near to one as rounding comes
    with pytest.raises(EncoderUnavailable, match="a log-probability of "):
        unpack(answer(log_probability=[-1.0, 0.5]), TWO, SIZES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["query", "state", "log_probability", "log_z"])
def test_of_an_answer_only_the_rows_that_are_not_finite_are_refused(part, value):
    size = 4 if part == "query" else 2
    first, second = unpack(answer(**{part: [-1.0] * (size - 1) + [value]}), TWO, SIZES)
    assert (first.items.tolist(), second) == ([1], None)


def test_an_answer_of_which_no_row_is_finite_is_refused():
    with pytest.raises(EncoderUnavailable, match="the encoder answered nothing that is finite"):
        unpack(answer(log_z=[np.nan, np.inf]), TWO, SIZES)


async def test_the_local_encoder_keeps_its_callers_deadline_and_works_on(local, tiny_snapshot):
    row = steps(1, state=np.zeros(tiny_snapshot.manifest.encoder.state_size))
    with pytest.raises(DeadlineExceeded):
        await local.encode([row], 0.0)
    assert len(await local.encode([row], SOON_S)) == 1


async def test_what_the_local_model_cannot_encode_is_an_unavailable_encoder(local, tiny_snapshot):
    nonsense = steps(1, state=(1.0, 2.0, 3.0))  # not the size of its states
    with pytest.raises(EncoderUnavailable, match="the encoder failed"):
        await local.encode([nonsense], SOON_S)


async def test_a_closed_local_encoder_refuses(local, tiny_snapshot):
    await local.close()
    with pytest.raises(EncoderUnavailable):
        await local.encode([steps(1, state=np.zeros(tiny_snapshot.manifest.encoder.state_size))], SOON_S)


@pytest.fixture
def held(world):
    """A fake encoder whose first call has begun and waits."""
    world.encoder.answering_allowed.clear()
    return world.encoder


def calling(encoder, *rows, timeout_s=30.0, patient=False):
    """Callers, each with a row of its own, who call at the same time."""
    return [asyncio.ensure_future(encoder.encode(row, timeout_s, lambda: patient)) for row in rows]


async def outcomes(callers):
    """What became of callers, of whom none may hang."""
    done, hanging = await asyncio.wait(callers, timeout=SOON_S / 5)
    for caller in hanging:
        caller.cancel()
    assert not hanging, f"{len(hanging)} of {len(callers)} callers hang"
    assert not [caller for caller in done if caller.cancelled()], "a caller was cancelled, and not told why"
    return [caller.exception() or caller.result() for caller in callers]


async def test_a_lone_caller_waits_for_nobody(world):
    encoded = await world.coalescing.encode(steps(2), SOON_S)
    assert world.encoder.rows == [[[2]]]
    assert encoded.state.tolist() == [1, 2]


async def test_what_arrives_while_a_call_runs_goes_out_together(world, held):
    first = calling(world.coalescing, steps(1))
    await held.call_begun.acquire()
    others = calling(world.coalescing, steps(2), steps(3), steps(4))
    await asyncio.sleep(0)
    assert held.rows == [[[1]]]
    held.answering_allowed.set()
    results = await outcomes([*first, *others])
    assert held.rows == [[[1]], [[2], [3], [4]]]
    assert [encoded.state.tolist() for encoded in results] == [[1, 1], [1, 2], [1, 3], [1, 4]]


async def test_only_so_many_may_wait(world, held, monkeypatch):
    monkeypatch.setattr(encoder_module, "MAX_WAITING", 2)
    running = calling(world.coalescing, steps(1))
    await held.call_begun.acquire()
    waiting = calling(world.coalescing, steps(2), steps(3))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 users are waiting"):
        await world.coalescing.encode(steps(4), SOON_S)
    held.answering_allowed.set()
    assert [encoded.state[1] for encoded in await outcomes([*running, *waiting])] == [1, 2, 3]
    assert await world.coalescing.encode(steps(4), SOON_S)


async def test_a_batch_holds_only_so_many_users(held):
    callers = calling(CoalescingEncoder(held, SOON_S, Batches(users=2)), *(steps(item) for item in (1, 2, 3)))
    held.answering_allowed.set()
    await outcomes(callers)
    assert held.rows == [[[1], [2]], [[3]]]


async def test_long_histories_go_on_from_call_to_call_side_by_side(held, monkeypatch):
    monkeypatch.setattr(encoder_module, "FEW_EVENTS", 1)
    callers = calling(CoalescingEncoder(held, SOON_S, Batches(events=4)), *(steps(*[item] * 5) for item in (1, 2)))
    held.answering_allowed.set()
    results = await outcomes(callers)
    assert held.rows == [[[1, 1], [2, 2]], [[1, 1], [2, 2]], [[1], [2]]]
    assert [encoded.state.tolist() for encoded in results] == [[5, 1.9375], [5, 3.875]]  # 1 + 1/2 + 1/4 + ...


async def test_a_lone_history_takes_few_calls_none_of_them_long(held):
    callers = calling(CoalescingEncoder(held, SOON_S, Batches(steps=100)), steps(*[1] * 250))
    held.answering_allowed.set()
    assert (await outcomes(callers))[0].state.tolist() == [250, 2]
    assert [len(row) for call in held.rows for row in call] == [100, 100, 50]


async def test_nobody_waits_for_long_histories_nor_they_for_ever(held, monkeypatch):
    monkeypatch.setattr(encoder_module, "FEW_EVENTS", 1)
    coalescing = CoalescingEncoder(held, SOON_S, Batches(users=3, events=8))
    callers = calling(coalescing, *(steps(*[item] * 3) for item in (1, 2)), *map(steps, (4, 5, 3)))
    held.answering_allowed.set()
    results = await outcomes(callers)
    assert held.rows[0] == [[4], [5], [1]]  # of a history one event, beside as many of the others as there is room for
    assert held.rows[1] == [[3], [1], [2]]
    assert [encoded.state.tolist() for encoded in results[:2]] == [[3, 1.75], [3, 3.5]]


async def test_the_patient_take_many_steps_however_few_one_of_them_has(held, monkeypatch):
    monkeypatch.setattr(encoder_module, "FEW_EVENTS", 1)
    coalescing = CoalescingEncoder(held, SOON_S, Batches(events=8))
    callers = calling(coalescing, steps(1), *(steps(*[item] * 5) for item in (2, 3)), patient=True)
    held.answering_allowed.set()
    results = await outcomes(callers)
    assert held.rows == [[[1], [2, 2], [3, 3]], [[2, 2, 2], [3, 3, 3]]]
    assert [encoded.state[0] for encoded in results] == [1, 5, 5]


async def test_the_patient_let_others_go_first(held, monkeypatch):
    monkeypatch.setattr(encoder_module, "FEW_EVENTS", 1)
    coalescing = CoalescingEncoder(held, SOON_S, Batches(users=2, events=8))
    callers = calling(coalescing, steps(1), steps(2, 2), patient=True)
    callers += calling(coalescing, steps(3, 3), steps(4))
    held.answering_allowed.set()
    await outcomes(callers)
    assert held.rows[0] == [[4], [3]]
    assert held.rows[1] == [[3], [1]]
    assert held.rows[2] == [[2, 2]]


async def test_who_is_patient_no_more_goes_first(held):
    coalescing = CoalescingEncoder(held, SOON_S, Batches(users=2))
    patient = True
    running = calling(coalescing, steps(1), patient=True)
    await held.call_begun.acquire()
    callers = calling(coalescing, steps(2), steps(4), patient=True)
    callers.append(asyncio.ensure_future(coalescing.encode(steps(3), SOON_S, lambda: patient)))
    await asyncio.sleep(0)
    patient = False
    held.answering_allowed.set()
    await outcomes([*running, *callers])
    assert held.rows == [[[1]], [[3], [2]], [[4]]]


async def test_many_with_few_events_go_out_together_however_patient(held):
    callers = calling(CoalescingEncoder(held, SOON_S, Batches()), *(steps(1 + n % 9) for n in range(250)), patient=True)
    held.answering_allowed.set()
    await outcomes(callers)
    assert [len(call) for call in held.calls] == [250]


async def test_long_histories_that_nobody_waits_for_take_more_steps_of_fewer_at_a_time(held):
    coalescing = CoalescingEncoder(held, SOON_S, Batches(events=256))
    callers = calling(coalescing, *(steps(*[1] * 64) for _ in range(8)), patient=True)
    await held.call_begun.acquire()
    assert [len(row) for row in held.rows[0]] == [64] * 4
    held.answering_allowed.set()
    await outcomes(callers)


async def test_a_history_that_nobody_waits_for_any_more_does_not_go_on(held):
    coalescing = CoalescingEncoder(held, SOON_S, Batches(steps=50))
    (impatient,) = calling(coalescing, steps(*[1] * 200))
    await held.call_begun.acquire()
    impatient.cancel()
    held.answering_allowed.set()
    assert (await coalescing.encode(steps(2), SOON_S)).state.tolist() == [1, 2]
    assert [len(row) for call in held.rows for row in call] == [50, 1]


async def test_several_calls_run_side_by_side_where_there_are_several_encoders(held):
    coalescing = CoalescingEncoder(held, SOON_S, Batches(calls=2))
    callers = [*calling(coalescing, steps(1)), *calling(coalescing, steps(2))]
    await held.call_begun.acquire()
    callers += calling(coalescing, steps(3))
    await held.call_begun.acquire()
    assert held.rows == [[[1], [2]], [[3]]]
    callers += calling(coalescing, steps(4), steps(5))
    await asyncio.sleep(0)
    held.answering_allowed.set()
    assert [encoded.state[1] for encoded in await outcomes(callers)] == [1, 2, 3, 4, 5]
    assert held.rows == [[[1], [2]], [[3]], [[4], [5]]]
    await coalescing.close()


async def test_many_callers_at_once_are_shared_between_several_encoders(held, monkeypatch):
    monkeypatch.setattr(encoder_module, "LEAST_SHARED", 1)
    coalescing = CoalescingEncoder(held, SOON_S, Batches(calls=2))
    callers = calling(coalescing, *(steps(item) for item in (1, 2, 3, 4)))
    for _ in range(2):
        await held.call_begun.acquire()
    assert held.rows == [[[1], [2]], [[3], [4]]]  # both under way
    held.answering_allowed.set()
    assert [encoded.state[1] for encoded in await outcomes(callers)] == [1, 2, 3, 4]


async def test_long_histories_go_on_in_several_encoders(held):
    coalescing = CoalescingEncoder(held, SOON_S, Batches(steps=40, calls=2))
    callers = calling(coalescing, *(steps(*[1] * 100) for _ in range(40)))
    for _ in range(2):
        await held.call_begun.acquire()
    assert [len(call) for call in held.calls] == [20, 20]
    held.answering_allowed.set()
    assert [encoded.state[0] for encoded in await outcomes(callers)] == [100] * 40


async def test_who_gave_up_is_not_encoded_later(world, held):
    running = calling(world.coalescing, steps(1))
    await held.call_begun.acquire()
    impatient = calling(world.coalescing, steps(2), timeout_s=0.01)
    patient = calling(world.coalescing, steps(3))
    assert isinstance((await outcomes(impatient))[0], DeadlineExceeded)
    held.answering_allowed.set()
    await outcomes([*running, *patient])
    assert held.rows == [[[1]], [[3]]]


async def test_who_was_cancelled_is_not_encoded_later(world, held):
    running = calling(world.coalescing, steps(1))
    await held.call_begun.acquire()
    gone, patient = calling(world.coalescing, steps(2), steps(3))
    await asyncio.sleep(0)
    gone.cancel()
    held.answering_allowed.set()
    await outcomes([*running, patient])
    assert held.rows == [[[1]], [[3]]]


async def test_who_gives_up_on_a_running_call_spoils_it_for_nobody(world, held):
    impatient, patient = asyncio.ensure_future(world.coalescing.encode(steps(1), 0.01)), None
    patient = asyncio.ensure_future(world.coalescing.encode(steps(2), 30.0))
    assert isinstance((await outcomes([impatient]))[0], DeadlineExceeded)
    held.answering_allowed.set()
    assert (await outcomes([patient]))[0].state.tolist() == [1, 2]


@pytest.mark.parametrize("failure", [EncoderUnavailable("down"), DeadlineExceeded("slow"), Overloaded("full")])
async def test_a_failed_call_fails_all_its_callers_and_no_others(world, held, failure):
    callers = calling(world.coalescing, steps(1), steps(2))
    await held.call_begun.acquire()
    held.failure = failure
    held.answering_allowed.set()
    assert await outcomes(callers) == [failure, failure]
    held.failure = None
    assert (await world.coalescing.encode(steps(3), SOON_S)).state.tolist() == [1, 3]


async def test_a_row_without_an_answer_fails_its_caller_and_no_others(world, held):
    held.unsound = (2,)
    held.answering_allowed.set()
    first, second, third = await outcomes(calling(world.coalescing, steps(1), steps(2), steps(3, 1)))
    assert (first.state.tolist(), third.state.tolist()) == ([1, 1], [2, 3 / 2 + 1])
    assert isinstance(second, EncoderUnavailable)
    assert str(second) == "the encoder answered nothing that is finite for this user"
    assert len(held.calls) == 1


async def test_an_unexpected_failure_leaves_no_caller_hanging(world, held):
    running = calling(world.coalescing, steps(1), steps(2))
    await held.call_begun.acquire()
    waiting = calling(world.coalescing, steps(3))
    await asyncio.sleep(0)
    held.failure = RuntimeError("nobody thought of this")
    held.answering_allowed.set()
    assert all(isinstance(failure, Exception) for failure in await outcomes([*running, *waiting]))


async def test_closing_tells_everyone_who_waits(world, held):
    running = calling(world.coalescing, steps(1))
    await held.call_begun.acquire()
    waiting = calling(world.coalescing, steps(2), steps(3))
    await asyncio.sleep(0)
    await world.coalescing.close()
    assert held.closed
    assert all(isinstance(failure, LongtideError) for failure in await outcomes([*running, *waiting]))


async def test_closing_an_idle_encoder_is_nothing_special(world):
    await world.coalescing.close()
    assert world.encoder.closed
