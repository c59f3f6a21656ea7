"""How the calls of many callers become few."""

import asyncio

import pytest
from tests.server.encoder.rows import steps

from longtide_server.encoder import Batches
from longtide_server.encoder import coalescing as coalescing_module
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, LongtideError, Overloaded

SOON_S = 5.0  # for what happens at once, unless it never happens


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
    monkeypatch.setattr(coalescing_module, "MAX_WAITING", 2)
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
    monkeypatch.setattr(coalescing_module, "FEW_EVENTS", 1)
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
    monkeypatch.setattr(coalescing_module, "FEW_EVENTS", 1)
    coalescing = CoalescingEncoder(held, SOON_S, Batches(users=3, events=8))
    callers = calling(coalescing, *(steps(*[item] * 3) for item in (1, 2)), *map(steps, (4, 5, 3)))
    held.answering_allowed.set()
    results = await outcomes(callers)
    assert held.rows[0] == [[4], [5], [1]]  # of a history one event, beside as many of the others as there is room for
    assert held.rows[1] == [[3], [1], [2]]
    assert [encoded.state.tolist() for encoded in results[:2]] == [[3, 1.75], [3, 3.5]]


async def test_the_patient_take_many_steps_however_few_one_of_them_has(held, monkeypatch):
    monkeypatch.setattr(coalescing_module, "FEW_EVENTS", 1)
    coalescing = CoalescingEncoder(held, SOON_S, Batches(events=8))
    callers = calling(coalescing, steps(1), *(steps(*[item] * 5) for item in (2, 3)), patient=True)
    held.answering_allowed.set()
    results = await outcomes(callers)
    assert held.rows == [[[1], [2, 2], [3, 3]], [[2, 2, 2], [3, 3, 3]]]
    assert [encoded.state[0] for encoded in results] == [1, 5, 5]


async def test_the_patient_let_others_go_first(held, monkeypatch):
    monkeypatch.setattr(coalescing_module, "FEW_EVENTS", 1)
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
    monkeypatch.setattr(coalescing_module, "LEAST_SHARED", 1)
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
