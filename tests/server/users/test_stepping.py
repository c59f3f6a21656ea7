"""States that follow what is written before anybody asks."""

import asyncio

import pytest

from longtide_server.errors import EncoderUnavailable, Unavailable
from longtide_server.users import encodings, stepping
from longtide_server.users.stepping import Stepper

SOON_S = 5.0


@pytest.fixture
async def stepper(world):
    made = Stepper(world.states)
    world.writer.add(made)
    yield made
    await made.close()


async def asked(world, user_id):
    return await world.states.encoded(await world.states.get(f"user:{user_id}"), (), 3, SOON_S)


async def caught_up(world, *user_ids):
    async with asyncio.timeout(SOON_S):
        while True:
            await asyncio.sleep(0.001)
            if not any(world.states.steps_due(f"user:{user_id}") for user_id in user_ids):
                return


async def test_a_new_event_is_stepped_before_anybody_asks(world, stepper):
    await world.did("ann", "abc")
    await asked(world, "ann")
    await world.did("ann", "e")
    await caught_up(world, "ann")
    assert world.encoder.rows == [[[1, 2, 3]], [[5]]]
    assert (await asked(world, "ann")).state.tolist() == [4, 1 / 8 + 2 / 4 + 3 / 2 + 5]
    assert len(world.encoder.calls) == 2


async def test_whoever_has_not_asked_costs_nothing(world, stepper):
    await world.did("ann", "abc")
    await world.states.get("user:ann")  # in memory, and not encoded
    await world.did("ann", "e")
    await asyncio.sleep(0.01)
    assert world.encoder.calls == []


async def test_many_events_at_once_wait_until_somebody_asks(world, stepper):
    await world.did("ann", "a")
    await asked(world, "ann")
    await world.did("ann", "ab" * 17)
    await asyncio.sleep(0.01)
    assert world.encoder.rows == [[[1]]]


async def test_users_written_about_while_a_batch_is_under_way_are_the_next_batch(world, stepper):
    for user in ("ann", "bea", "cid"):
        await world.did(user, "a")
        await asked(world, user)
    world.encoder.answering_allowed.clear()
    del world.encoder.calls[:]
    await world.did("ann", "b")
    await world.encoder.call_begun.acquire()
    await world.did("bea", "c")
    await world.did("cid", "d")
    await world.did("cid", "e")
    world.encoder.answering_allowed.set()
    await caught_up(world, "ann", "bea", "cid")
    assert world.encoder.rows == [[[2]], [[3], [4, 5]]]


async def test_who_asks_during_the_step_waits_for_it_and_makes_no_other(world, stepper):
    await world.did("ann", "a")
    await asked(world, "ann")
    world.encoder.answering_allowed.clear()
    await world.did("ann", "b")
    asking = asyncio.create_task(asked(world, "ann"))
    await asyncio.sleep(0.01)
    world.encoder.answering_allowed.set()
    assert (await asking).state.tolist() == [2, 1 / 2 + 2]
    assert world.encoder.rows == [[[1]], [[2]]]


async def test_an_encoder_that_fails_is_left_alone_for_a_while(world, stepper, monkeypatch):
    await world.did("ann", "a")
    await asked(world, "ann")
    world.encoder.failure = EncoderUnavailable("it is down")
    await world.did("ann", "b")
    await asyncio.sleep(0.01)
    assert len(world.encoder.calls) == 2
    await world.did("ann", "b")
    await asyncio.sleep(0.01)
    assert len(world.encoder.calls) == 2
    monkeypatch.setattr(stepper, "_paused_until_s", 0.0)  # a while later
    world.encoder.failure = None
    await world.did("ann", "c")
    await caught_up(world, "ann")
    assert world.encoder.rows[-1] == [[2, 2, 3]]


async def test_a_user_who_cannot_be_encoded_holds_up_nobody(world, stepper):
    for user in ("ann", "bea", "cid"):
        await world.did(user, "a")
        await asked(world, user)
    world.encoder.answering_allowed.clear()
    world.encoder.unsound = (5,)
    await world.did("cid", "b")
    await world.encoder.call_begun.acquire()
    await world.did("ann", "e")
    await world.did("bea", "b")
    world.encoder.answering_allowed.set()
    await caught_up(world, "bea")
    assert world.encoder.rows[-1] == [[5], [2]]
    await world.did("bea", "c")
    await caught_up(world, "bea")
    assert world.states.steps_due("user:ann")


async def test_what_is_due_is_bounded(world, stepper, monkeypatch):
    monkeypatch.setattr(stepping, "MAX_DUE", 1)
    for user in ("ann", "bea", "cid"):
        await world.did(user, "a")
        await asked(world, user)
    world.encoder.answering_allowed.clear()
    del world.encoder.calls[:]
    await world.did("ann", "b")
    await world.encoder.call_begun.acquire()
    await world.did("bea", "b")
    await world.did("cid", "b")
    world.encoder.answering_allowed.set()
    await caught_up(world, "ann", "bea")
    assert world.states.steps_due("user:cid")
    assert (await asked(world, "cid")).state.tolist() == [2, 1 / 2 + 2]


async def test_a_deleted_history_is_not_followed(world, stepper):
    for user in ("ann", "bea"):
        await world.did(user, "a")
        await asked(world, user)
    world.encoder.answering_allowed.clear()
    del world.encoder.calls[:]
    await world.did("ann", "b")
    await world.encoder.call_begun.acquire()
    await world.did("bea", "b")
    world.writer.forget(("user:bea",))
    world.encoder.answering_allowed.set()
    await caught_up(world, "ann")
    await asyncio.sleep(0.01)
    assert world.encoder.rows == [[[2]]]


async def test_closing_stops_it(world, stepper):
    await world.did("ann", "a")
    await asked(world, "ann")
    world.encoder.answering_allowed.clear()
    await world.did("ann", "b")
    await world.encoder.call_begun.acquire()
    async with asyncio.timeout(SOON_S):
        await stepper.close()


@pytest.fixture
async def foresight(world, stepper, monkeypatch):
    """A stepper that is told what is being written, while writing takes until `durable` is set."""
    world.writer.tell(stepper)
    durable, write = asyncio.Event(), world.store.write

    async def slow(events):
        await durable.wait()
        return await write(events)

    monkeypatch.setattr(world.store, "write", slow)
    durable.set()
    yield durable
    durable.set()


async def begun(world, calls):
    """So many calls to the encoder."""
    async with asyncio.timeout(SOON_S):
        while True:
            if len(world.encoder.calls) >= calls:
                return
            await asyncio.sleep(0.001)


async def test_the_step_is_taken_while_the_event_is_made_durable_and_felt_only_then(world, foresight):
    await world.did("ann", "abc")
    before = await asked(world, "ann")
    foresight.clear()
    writing = asyncio.create_task(world.did("ann", "e"))
    await begun(world, 2)
    await asyncio.sleep(0.01)
    assert await asked(world, "ann") is before
    foresight.set()
    await writing
    assert (await asked(world, "ann")).state.tolist() == [4, 1 / 8 + 2 / 4 + 3 / 2 + 5]
    assert world.encoder.rows == [[[1, 2, 3]], [[5]]]


async def test_the_first_event_of_somebody_who_has_asked_is_expected(world, foresight):
    await world.states.get("user:ann")
    await world.did("ann", "b")
    assert (await asked(world, "ann")).state.tolist() == [1, 2]
    assert world.encoder.rows == [[[2]]]


async def test_what_was_not_written_is_not_felt(world, foresight):
    await world.did("ann", "ab")
    before = await asked(world, "ann")
    world.store.failure = Unavailable("the disk is full")
    with pytest.raises(Unavailable):
        await world.did("ann", "e")
    await begun(world, 2)
    world.store.failure = None
    assert (await world.states.get("user:ann")).expected is None  # it takes as much memory as the user
    assert await asked(world, "ann") is before
    await world.did("ann", "c")
    assert (await asked(world, "ann")).state.tolist() == [3, 1 / 4 + 2 / 2 + 3]


async def test_an_event_that_was_known_already_is_not_felt_twice(world, foresight, event):
    await world.write(event("e1", "a"), event("e2", "b"))
    before = await asked(world, "ann")
    await world.write(event("e2", "b"))
    await begun(world, 2)
    await asyncio.sleep(0.01)
    assert (await asked(world, "ann")).state.tolist() == before.state.tolist() == [2, 2.5]


async def test_of_two_writes_at_once_the_second_follows_the_first(world, foresight, event):
    await world.write(event("e1", "a", 1.0))
    await asked(world, "ann")
    foresight.clear()
    writing = [asyncio.create_task(world.write(event(f"e{n}", "abc"[n - 1], float(n)))) for n in (2, 3)]
    await begun(world, 2)
    foresight.set()
    await asyncio.gather(*writing)
    await caught_up(world, "ann")
    assert (await asked(world, "ann")).state.tolist() == [3, 1 / 4 + 2 / 2 + 3]


async def test_of_what_was_expected_a_part_that_was_known_already_is_not_felt_twice(world, foresight, event):
    await world.write(event("e1", "a", 1.0))
    await asked(world, "ann")
    foresight.clear()
    writing = asyncio.create_task(world.write(event("e1", "a", 1.0), event("e2", "b", 2.0)))
    await asyncio.sleep(0.02)
    foresight.set()
    await writing
    assert (await asked(world, "ann")).state.tolist() == [2, 1 / 2 + 2]


async def test_what_was_expected_makes_room_for_what_comes(world, foresight, event, monkeypatch):
    monkeypatch.setattr(encodings, "MAX_EXPECTED", 1)
    await world.did("ann", "a")
    await asked(world, "ann")
    for n in range(3):
        foresight.clear()
        writing = asyncio.create_task(world.write(event(f"next-{n}", "b", 100.0 + n)))
        await asyncio.sleep(0.02)
        assert (await world.states.get("user:ann")).expected is not None
        foresight.set()
        await writing
        await asked(world, "ann")


@pytest.mark.parametrize(("most_users", "most_events"), [(3, 8), (32, 0)])
async def test_only_so_much_is_expected(world, foresight, event, monkeypatch, most_users, most_events):
    monkeypatch.setattr(encodings, "MAX_EXPECTED", most_users)
    monkeypatch.setattr(stepping, "MAX_EXPECTED_EVENTS", most_events)
    users = [f"user-{n}" for n in range(6)]
    for user in users:
        await world.write(event(f"{user}-1", "a", 1.0, user))
        await asked(world, user)
    foresight.clear()
    writing = [asyncio.create_task(world.write(event(f"{user}-2", "b", 2.0, user))) for user in users]
    await asyncio.sleep(0.02)
    expected = [(await world.states.get(f"user:{user}")).expected for user in users]
    assert sum(one is not None for one in expected) == (most_users if most_events else 0)
    foresight.set()
    await asyncio.gather(*writing)
    for user in users:
        assert (await asked(world, user)).state.tolist() == [2, 2.5]


@pytest.mark.parametrize(
    ("item_id", "time_s"), [("b", -5.0), ("unheard of", 9.0)], ids=["a late one", "an unknown item"]
)
async def test_what_does_not_simply_follow_is_not_expected(world, foresight, event, item_id, time_s):
    await world.write(event("e1", "a", 1.0))
    await asked(world, "ann")
    foresight.clear()
    writing = asyncio.create_task(world.write(event("e2", item_id, time_s)))
    await asyncio.sleep(0.01)
    assert len(world.encoder.calls) == 1
    foresight.set()
    await writing


async def test_an_encoder_that_fails_meanwhile_is_asked_again(world, foresight):
    await world.did("ann", "a")
    await asked(world, "ann")
    world.encoder.failure = EncoderUnavailable("it is down")
    await world.did("ann", "b")
    await asyncio.sleep(0.01)
    world.encoder.failure = None
    assert (await asked(world, "ann")).state.tolist() == [2, 2.5]


async def test_gaps_and_values_of_what_is_expected_are_those_of_what_was_written(world, foresight, event):
    first, second = event("e1", "a", 10.0), event("e2", "b", 17.0, value=4.5)
    await world.write(first)
    await asked(world, "ann")
    await world.write(second)
    await asked(world, "ann")
    [[steps]] = world.encoder.calls[1:]
    assert (steps.gaps.tolist(), steps.values.tolist(), steps.types.tolist()) == ([7.0], [4.5], [second.type])
