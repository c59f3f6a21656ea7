"""What is remembered of a user: always what the log says, at the price of one step a new event."""

import asyncio
import gc
import math
import threading

import numpy as np
import pytest

from longtide_server.encoder import AnswerSizes
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Unavailable
from longtide_server.snapshot import ENCODER
from longtide_server.users import encodings, user_state, user_states
from longtide_server.users.user_state import UserState, steps_between
from longtide_server.users.user_states import UserStates

SOON_S = 5.0


async def encoded(world, user_id="ann", session=(), patient=False):
    user = await world.states.get(f"user:{user_id}")
    return await world.states.encoded(user, session, 3, SOON_S, patient=patient)


async def state(world, user_id="ann"):
    """[events, trace], as the fake encoder keeps it: each item counts half as much as the one after it."""
    return (await encoded(world, user_id)).state.tolist()


def fresh(world):
    """The same log, and nothing remembered."""
    return UserStates(world.snapshot, world.store, world.coalescing, 10)


async def test_a_user_is_read_from_the_log_once(world):
    await world.did("ann", "abc")
    first = await world.states.get("user:ann")
    assert first.items.tolist() == [1, 2, 3]
    assert first.seen.tolist() == [1, 2, 3]
    assert await world.states.get("user:ann") is first
    assert world.store.reads == ["ann"]


async def test_callers_at_the_same_time_share_one_reading(world):
    await world.did("ann", "a")
    one, other = await asyncio.gather(world.states.get("user:ann"), world.states.get("user:ann"))
    assert one is other
    assert world.store.reads == ["ann"]


async def test_a_user_without_events_has_nothing_to_encode(world):
    assert await encoded(world, "nobody") is None
    assert world.encoder.calls == []


async def test_the_first_encoding_is_of_the_whole_history(world):
    await world.did("ann", "abc")
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]
    assert world.encoder.rows == [[[1, 2, 3]]]


async def test_without_new_events_nothing_is_encoded_again(world):
    await world.did("ann", "abc")
    assert await encoded(world) is await encoded(world)
    assert world.encoder.events == 3


async def test_an_event_in_order_is_one_step(world):
    await world.did("ann", "abc")
    await encoded(world)
    await world.did("ann", "e")
    assert await state(world) == [4, 1 / 8 + 2 / 4 + 3 / 2 + 5]
    assert world.encoder.rows == [[[1, 2, 3]], [[5]]]


async def test_the_first_events_may_come_in_any_order(world, event):
    await world.states.get("user:ann")  # in memory, without events
    await world.write(event("e1", "c", 3.0), event("e2", "a", 1.0), event("e3", "b", 1.0))
    user = await world.states.get("user:ann")
    assert ([*user.items], [*user.times], [*user.seen]) == ([1, 2, 3], [1.0, 1.0, 3.0], [1, 2, 3])
    assert world.store.reads == ["ann"]


async def test_events_on_unknown_items_are_left_out_wherever_they_come(world, event):
    await world.write(event("e1", "?", 1.0), event("e2", "a", 2.0), event("e3", "?", 3.0))
    await world.states.get("user:ann")
    await world.write(event("e4", "?", 4.0), event("e5", "b", 3.5), event("e6", "c", 5.0))
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2, 3]


async def test_an_event_of_the_same_time_as_the_last_is_in_order(world, event):
    await world.write(event("e1", "a", 1.0), event("e2", "b", 2.0))
    await encoded(world)
    await world.write(event("e3", "c", 2.0))
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2, 3]
    await encoded(world)
    assert world.encoder.rows == [[[1, 2]], [[3]]]


async def test_a_late_event_is_as_if_it_had_come_in_time(world, event):
    await world.write(event("e1", "a", 1.0), event("e3", "c", 3.0))
    await encoded(world)
    await world.write(event("e2", "b", 2.0))
    user, again = await world.states.get("user:ann"), await fresh(world).get("user:ann")
    assert user.items.tolist() == again.items.tolist() == [1, 2, 3]
    assert user.times.tolist() == again.times.tolist() == [1.0, 2.0, 3.0]
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]
    assert world.encoder.rows == [[[1, 3]], [[1, 2, 3]]]


async def test_a_late_event_among_those_not_yet_encoded_costs_nothing_more(world, event):
    await world.write(event("e1", "a", 1.0))
    await encoded(world)
    await world.write(event("e3", "c", 3.0))
    await world.write(event("e2", "b", 2.0))
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]
    assert world.encoder.rows == [[[1]], [[2, 3]]]


async def grown(world, event, count):
    """The history e0, e1, ... of so many events, felt one by one."""
    for n in range(count):
        await world.write(event(f"e{n}", "abcde"[n % 5], float(n)))
        await encoded(world)
    world.encoder.calls.clear()


@pytest.mark.parametrize("late_by", range(1, 20))
async def test_after_an_event_that_comes_a_little_late_only_the_last_steps_are_taken_again(world, event, late_by):
    await grown(world, event, 300)
    await world.write(event("late", "e", 299.5 - late_by))
    again = await encoded(world)
    assert late_by < world.encoder.events <= late_by + 2 * user_state.KEPT_NEAR_EVENTS
    whole = await fresh(world).encoded(await fresh(world).get("user:ann"), (), 3, SOON_S)
    assert again.state.tolist() == whole.state.tolist()


async def test_nobody_gets_an_entry_that_is_being_brought_up_to_date(world, event):
    await grown(world, event, 3)
    late = [event(f"late{n}", "e", n / 100) for n in range(user_state.MANY_LATE_EVENTS + 1)]
    await world.write(*late)
    world.store.reading_allowed.clear()
    first = asyncio.ensure_future(world.states.get("user:ann"))
    await asyncio.sleep(0.01)
    second = asyncio.ensure_future(world.states.get("user:ann"))
    await asyncio.sleep(0.01)
    world.store.reading_allowed.set()
    assert [len((await one).items) for one in (first, second)] == [3 + len(late)] * 2


async def test_a_history_that_is_deleted_while_it_is_built_is_not_kept(world, event, monkeypatch):
    monkeypatch.setattr(user_states, "MANY_EVENTS", 2)
    await world.did("ann", "abc")
    built, extend = threading.Event(), world.states._extend
    monkeypatch.setattr(world.states, "_extend", lambda *args: (extend(*args), built.wait(SOON_S)))
    reading = asyncio.ensure_future(world.states.get("user:ann"))
    await asyncio.sleep(0.05)  # in its thread
    world.store.histories.clear()
    world.states.forget(["user:ann"])
    asking = asyncio.ensure_future(world.states.get("user:ann"))
    await asyncio.sleep(0)
    built.set()
    assert (await reading).items.tolist() == (await asking).items.tolist() == []


async def test_a_name_that_stands_alone_again_by_another_servers_doing_is_noticed(world, event):
    world.store.shared = True
    world.store.names["session:q"] = "user:eve"
    await world.store.write([event("e1", "a", 1.0, "eve")])
    assert (await world.states.get("session:q")).items.tolist() == [1]
    world.store.names.clear()
    for turn, item in enumerate("bcd"):
        await world.write(event(f"q{turn}", item, 2.0 + turn, "", session_id="q"))
        async with asyncio.timeout(SOON_S):
            assert (await world.states.get("session:q")).items.tolist() == [2, 3, 4][: turn + 1]
        await world.store.write([event(f"elsewhere{turn}", "e", 9.0 + turn, "eve")])
    assert len(world.store.reads) < 12


@pytest.mark.parametrize("shared", [False, True])
async def test_many_late_events_are_put_in_place_aside(world, event, shared, monkeypatch):
    monkeypatch.setattr(user_states, "MANY_EVENTS", 10)
    world.store.shared = shared
    await grown(world, event, 20)
    late = [event(f"late{n}", "e", n / 100) for n in range(user_state.MANY_LATE_EVENTS + 1)]
    if shared:
        await world.store.write(late)
    else:
        await world.write(*late)
    user = await world.states.get("user:ann")
    assert user.times.tolist() == sorted(user.times)
    assert len(user.items) == 20 + len(late)
    again = await fresh(world).get("user:ann")
    assert (user.items, user.times) == (again.items, again.times)


async def test_a_history_that_the_store_has_lost_the_end_of_is_read_anew(world, event):
    world.store.shared = True
    await world.did("ann", "abc")
    await encoded(world)
    del world.store.histories["user:ann"][1:]
    assert (await world.states.get("user:ann")).items.tolist() == [1]
    assert len(world.store.reads) < 10


async def test_a_very_late_event_costs_the_whole_history(world, event):
    await grown(world, event, 300)
    await world.write(event("late", "e", 0.5))
    assert (await encoded(world)).state[0] == 301
    assert world.encoder.events == 301


async def test_a_state_near_the_end_is_kept_of_a_long_history_that_is_read_at_once(world, event):
    await world.store.write([event(f"e{n}", "abcde"[n % 5], float(n)) for n in range(1_000)])
    await encoded(world)
    assert [len(row) for batch in world.encoder.rows for row in batch] == [256, 256, 256, 216, 16]
    world.encoder.calls.clear()
    await world.write(event("late", "e", 990.5))
    assert (await encoded(world)).state[0] == 1_001
    assert world.encoder.events == 17


async def test_a_long_history_that_nobody_waits_for_takes_as_few_calls_as_it_can(world, event):
    await world.store.write([event(f"e{n}", "abcde"[n % 5], float(n)) for n in range(1_000)])
    await encoded(world, patient=True)
    assert [len(row) for batch in world.encoder.rows for row in batch] == [256, 256, 256, 232]


async def test_who_waits_for_a_user_of_a_batch_does_not_wait_behind_the_batch(world, event):
    await world.store.write(
        [event(f"{user}{n}", "a", float(n), user_id=user) for user in ("ann", "bob") for n in range(3)]
    )
    asked = {}
    encode = world.coalescing.encode

    async def noting(steps, timeout_s, patient=lambda: False):
        asked[len(asked)] = patient
        return await encode(steps, timeout_s, patient)

    world.coalescing.encode = noting
    world.encoder.answering_allowed.clear()
    batch = [asyncio.ensure_future(encoded(world, user, patient=True)) for user in ("ann", "bob")]
    await world.encoder.call_begun.acquire()
    await asyncio.sleep(0.01)
    assert [patient() for patient in asked.values()] == [True, True]
    waiting = asyncio.ensure_future(encoded(world, "bob"))
    await asyncio.sleep(0.01)
    assert [patient() for patient in asked.values()] == [True, False]
    world.encoder.answering_allowed.set()
    await asyncio.gather(waiting, *batch)


async def test_a_long_history_goes_on_where_it_was_when_the_encoder_is_back(world, event):
    await world.store.write([event(f"e{n}", "abcde"[n % 5], float(n)) for n in range(1_000)])
    world.encoder.answering_allowed.clear()
    asked = asyncio.ensure_future(encoded(world))
    for _ in range(2):  # two calls are answered, the third one fails
        await world.encoder.call_begun.acquire()
        world.encoder.answering_allowed.set()
        await asyncio.sleep(0)
        world.encoder.answering_allowed.clear()
    await world.encoder.call_begun.acquire()
    world.encoder.failure = EncoderUnavailable("down")
    world.encoder.answering_allowed.set()
    with pytest.raises(EncoderUnavailable):
        await asked
    world.encoder.failure = None
    world.encoder.calls.clear()
    assert (await encoded(world)).state[0] == 1_000
    assert world.encoder.events == 1_000 - 2 * 256


async def test_only_so_many_states_are_kept(world, event):
    await grown(world, event, 400)
    kept = [count for count, _ in (await world.states.get("user:ann")).kept]
    assert len(kept) == user_state.KEPT_STATES
    assert user_state.KEPT_NEAR_EVENTS < 400 - kept[1] <= 2 * user_state.KEPT_NEAR_EVENTS + 1
    assert 0 < kept[0] < kept[1] < kept[2]


async def test_items_that_the_snapshot_does_not_know_are_left_out(world, event):
    await world.write(event("e1", "a", 1.0), event("e2", "never published", 2.0))
    user = await world.states.get("user:ann")
    await encoded(world)
    await world.write(event("e3", "neither", 0.5))
    assert ([*user.items], [*user.times], [*user.seen]) == ([1], [1.0], [1])
    assert await state(world) == [1, 1]
    assert world.encoder.events == 1


async def test_of_a_batch_with_duplicates_only_what_is_new_is_felt(world, event):
    await world.write(event("e1", "a", 1.0))
    await encoded(world)
    await world.write(event("e1", "b", 2.0), event("e2", "c", 3.0))
    assert (await world.states.get("user:ann")).items.tolist() == [1, 3]
    assert await state(world) == [2, 1 / 2 + 3]
    assert world.store.reads == ["ann"]


async def test_an_event_written_while_the_log_is_read_is_not_lost(world):
    await world.did("ann", "a")
    world.store.reading_allowed.clear()
    reading = asyncio.ensure_future(world.states.get("user:ann"))
    await world.store.read_begun.acquire()
    await world.did("ann", "b")
    world.store.reading_allowed.set()
    assert (await reading).items.tolist() == [1, 2]


async def test_what_another_server_writes_is_felt_at_once(world, event):
    """A shared log: this server is not told, and asks."""
    world.store.shared = True
    await world.did("ann", "ab")
    await encoded(world)
    await world.store.write([event("elsewhere", "c", 50.0)])
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2, 3]
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]
    assert world.encoder.rows == [[[1, 2]], [[3]]]


async def test_a_shared_log_is_asked_once_as_long_as_its_stamp_says_that_nothing_has_changed(world, event):
    world.store.shared = world.store.stamped = True
    await world.did("ann", "ab")
    for _ in range(3):
        user = world.states.at_hand("user:ann") or await world.states.get("user:ann")
        assert user.items.tolist() == [1, 2]
    assert world.store.reads == ["ann"]
    await world.store.write([event("elsewhere", "c", 50.0)])
    assert world.states.at_hand("user:ann") is None
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2, 3]
    assert world.states.at_hand("user:ann").items.tolist() == [1, 2, 3]
    assert world.store.reads == ["ann", "ann"]


async def test_what_was_read_before_the_log_changed_does_not_pass_for_news(world, event):
    world.store.shared = world.store.stamped = True
    await world.did("ann", "a")
    world.store.reading_allowed.clear()
    reading = asyncio.ensure_future(world.states.get("user:ann"))
    await world.store.read_begun.acquire()
    await world.store.write([event("elsewhere", "b", 50.0)])
    world.store.reading_allowed.set()
    await reading
    assert world.states.at_hand("user:ann") is None
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2]


async def test_an_old_reading_that_comes_late_does_not_pass_for_a_newer_one(make_world, event):
    """Of somebody who was forgotten meanwhile, for want of room."""
    world = make_world(capacity=1)
    world.store.shared = world.store.stamped = True
    await world.did("ann", "a")
    held = world.store.reading_allowed = asyncio.Event()
    old = asyncio.ensure_future(world.states.get("user:ann"))
    await world.store.read_begun.acquire()
    world.store.reading_allowed = asyncio.Event()  # the old reading goes on waiting, later ones do not
    world.store.reading_allowed.set()
    await world.store.write([event("elsewhere", "b", 50.0), event("other", user_id="bob")])
    for user, items in (("ann", [1, 2]), ("bob", [1])):
        assert (await world.states.get(f"user:{user}")).items.tolist() == items
    held.set()
    await old
    found = world.states.at_hand("user:ann") or await world.states.get("user:ann")
    assert found.items.tolist() == [1, 2]


async def test_a_name_that_stands_alone_again_is_asked_for_by_itself(world):
    world.store.shared = world.store.stamped = True
    await world.did("ann", "a")
    await world.did("guest", "b")
    world.store.names["user:guest"] = "user:ann"
    assert (await world.states.get("user:guest")).owner == "user:ann"
    del world.store.names["user:guest"]  # as the deletion of the user's data does
    world.store.rewrites["user:ann"] = 1
    assert (await world.states.get("user:ann")).items.tolist() == [1]
    assert world.states.at_hand("user:guest") is None
    assert (await world.states.get("user:guest")).items.tolist() == [2]


async def test_of_a_shared_log_everybody_gets_what_was_written_before_they_asked(world, event):
    world.store.shared = True
    await world.did("ann", "a")
    world.store.reading_allowed.clear()
    early = asyncio.ensure_future(world.states.get("user:ann"))
    await world.store.read_begun.acquire()
    await world.store.write([event("elsewhere", "b", 50.0)])
    late = asyncio.ensure_future(world.states.get("user:ann"))
    await world.store.read_begun.acquire()
    world.store.reading_allowed.set()
    await early
    assert (await late).items.tolist() == [1, 2]


async def test_what_was_written_here_and_elsewhere_is_felt_once(world, event):
    world.store.shared = True
    await world.did("ann", "a")
    await encoded(world)
    await world.store.write([event("elsewhere", "b", 50.0)])
    await world.write(event("here", "c", 60.0))
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2, 3]
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]


async def test_a_rewritten_history_is_read_anew(world):
    world.store.shared = True
    await world.did("ann", "abc")
    await encoded(world)
    del world.store.histories["user:ann"][1]
    world.store.rewrites["user:ann"] = 1
    assert (await world.states.get("user:ann")).items.tolist() == [1, 3]
    assert await state(world) == [2, 1 / 2 + 3]


async def test_a_forgotten_history_is_read_anew_also_while_it_is_being_read(world):
    await world.did("ann", "ab")
    world.store.reading_allowed.clear()
    reading = asyncio.ensure_future(world.states.get("user:ann"))
    await world.store.read_begun.acquire()
    world.store.histories.clear()
    world.states.forget(["user:ann"])
    world.store.reading_allowed.set()
    assert (await reading).items.tolist() == []
    assert (await world.states.get("user:ann")).items.tolist() == []
    assert world.store.reads == ["ann", "ann"]


async def test_another_name_of_an_owner_shows_the_owners_history(world, event):
    await world.did("ann", "a")
    await world.states.get("session:s")
    world.store.names["session:s"] = "user:ann"
    world.states.forget(["session:s"])
    user = await world.states.get("session:s")
    assert user is await world.states.get("user:ann")
    await world.did("ann", "b")
    assert (await world.states.get("session:s")).items.tolist() == [1, 2]


async def test_a_long_history_is_read_whole(world, event):
    many = user_states.MANY_EVENTS + 1
    await world.store.write([event(f"e{n}", "abcde"[n % 5], float(n)) for n in range(many)])
    user = await world.states.get("user:ann")
    assert user.items.tolist() == [n % 5 + 1 for n in range(many)]
    await world.write(event("last", "e", float(many)))
    assert user.items[-1] == 5
    assert len(user.items) == many + 1


async def test_callers_who_wait_for_one_step_while_another_event_arrives_are_all_answered(world):
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    waiting = [asyncio.ensure_future(state(world)) for _ in range(3)]
    await world.encoder.call_begun.acquire()
    await world.did("ann", "b")
    world.encoder.answering_allowed.set()
    assert await asyncio.gather(*waiting) == [[2, 1 / 2 + 2]] * 3


async def test_an_event_that_arrives_during_an_encoding_is_the_next_step(world):
    await world.did("ann", "ab")
    world.encoder.answering_allowed.clear()
    encoding = asyncio.ensure_future(state(world))
    await world.encoder.call_begun.acquire()
    await world.did("ann", "c")
    world.encoder.answering_allowed.set()
    await encoding
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]
    assert world.encoder.rows == [[[1, 2]], [[3]]]


async def test_a_late_event_that_arrives_during_an_encoding_leaves_nobody_without(world, event):
    await world.write(event("e1", "a", 1.0), event("e3", "c", 3.0))
    world.encoder.answering_allowed.clear()
    encoding = asyncio.ensure_future(encoded(world))
    await world.encoder.call_begun.acquire()
    await world.write(event("e2", "b", 2.0))
    world.encoder.answering_allowed.set()
    assert await encoding is not None
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]


async def test_only_the_users_seen_last_are_remembered(make_world):
    world = make_world(capacity=2)
    for user_id in ("ann", "bob", "ann", "cara", "ann", "bob"):
        await world.states.get(f"user:{user_id}")
    assert world.store.reads == ["ann", "bob", "cara", "bob"]


async def test_a_users_events_do_not_touch_another(world):
    await world.did("ann", "a")
    await world.did("bob", "b")
    assert await state(world, "ann") == [1, 1]
    await world.did("bob", "c")
    assert (await world.states.get("user:ann")).items.tolist() == [1]
    assert (await world.states.get("user:bob")).items.tolist() == [2, 3]


async def test_a_session_is_felt_and_not_kept(world):
    await world.did("ann", "ab")
    with_session = await encoded(world, session=[3, 5])
    assert with_session.state.tolist() == [4, 1 / 8 + 2 / 4 + 3 / 2 + 5]
    assert await state(world) == [2, 1 / 2 + 2]
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2]
    assert world.encoder.rows == [[[1, 2]], [[3, 5]]]


async def test_a_session_alone_can_be_encoded(world):
    assert (await encoded(world, "nobody", session=[4])).state.tolist() == [1, 4]
    assert await encoded(world, "nobody") is None


async def test_a_failed_encoding_changes_nothing(world):
    await world.did("ann", "ab")
    before = await encoded(world)
    await world.did("ann", "c")
    world.encoder.failure = EncoderUnavailable("down")
    with pytest.raises(EncoderUnavailable):
        await encoded(world)
    assert (await world.states.get("user:ann")).encoded is before
    world.encoder.failure = None
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]


async def test_an_entry_that_could_not_be_brought_up_to_date_is_not_taken_for_what_the_log_says(world, event):
    await world.did("ann", "a")
    await world.states.get("user:ann")
    await world.store.write([event("unfelt", "b", 2.0)])
    await world.write(event("felt", "c", 3.0))  # it does not follow what is known
    world.store.failure = Unavailable("locked")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await world.states.get("user:ann")
    world.store.failure = None
    assert (await world.states.get("user:ann")).items.tolist() == [1, 2, 3]


async def test_a_log_that_could_not_be_read_is_read_again(world):
    await world.did("ann", "a")
    world.store.failure = Unavailable("locked")
    with pytest.raises(Unavailable):
        await world.states.get("user:ann")
    world.store.failure = None
    assert (await world.states.get("user:ann")).items.tolist() == [1]


def a_user(event):
    user = UserState()
    user.add(event("e1", "a", 100.0, type=4, value=9.5), 1)
    user.add(event("e2", "b", 110.0), 2)
    user.add(event("e3", "c", 125.0), 3)
    return user


def looked_through(user: UserState) -> int:
    """How many references the garbage collector follows from a user."""
    return sum(len(gc.get_referents(part)) for part in gc.get_referents(user))


def test_the_garbage_collector_has_no_more_to_do_for_a_long_history(event):
    long, short = UserState(), UserState()
    long.append([event(f"e{n}", "a", float(n)) for n in range(500)], [1 + n % 300 for n in range(500)])
    short.append([event("e0", "a", 0.0)], [1])
    assert (len(long.times), len(long.seen)) == (500, 300)
    assert looked_through(long) == looked_through(short)


async def test_nobody_holds_on_to_an_encoding_that_is_over(world):
    await world.did("ann", "abc")
    await encoded(world)
    await asyncio.sleep(0)
    assert (await world.states.get("user:ann")).advancing is None


async def test_steps_that_nobody_waits_for_any_more_are_kept(world):
    await world.did("ann", "abc")
    user = await world.states.get("user:ann")
    world.encoder.answering_allowed.clear()
    with pytest.raises(DeadlineExceeded):
        await world.states.encoded(user, (), 5, 0.01)
    world.encoder.answering_allowed.set()
    assert await state(world) == [3, 1 / 4 + 2 / 2 + 3]
    assert world.encoder.events == 3  # the second caller found what the first had begun


async def test_callers_at_the_same_time_share_the_steps(world):
    await world.did("ann", "abc")
    user = await world.states.get("user:ann")
    await asyncio.gather(*(world.states.encoded(user, (), 5, 5.0) for _ in range(3)))
    assert world.encoder.rows == [[[1, 2, 3]]]


async def test_a_long_history_goes_in_pieces(world, monkeypatch):
    monkeypatch.setattr(encodings, "MAX_STEP_EVENTS", 2)
    await world.did("ann", "abcde")
    await encoded(world)
    assert world.encoder.rows == [[[1, 2]], [[3, 4]], [[5]]]


def test_the_steps_of_a_whole_history(event):
    steps = steps_between(a_user(event), 0, 3, (), np.zeros(2, np.float32), top_n=5)
    assert steps.items.tolist() == [1, 2, 3]
    assert steps.types.tolist() == [4, 1, 1]
    assert steps.gaps.tolist() == [0, 10, 15]
    assert steps.values[0] == 9.5
    assert np.isnan(steps.values[1:]).all()
    assert steps.top_n == 5


def test_a_stored_value_that_32_bits_do_not_hold_is_absent(event):
    user = UserState()
    user.append([event("e1", "a", value=1e300), event("e2", "b", 1.0, value=2.5)], [1, 2])
    steps = steps_between(user, 0, 2, (), np.zeros(2, np.float32), top_n=5)
    np.testing.assert_array_equal(steps.values, np.array([math.nan, 2.5], np.float32))


def test_the_steps_after_a_kept_state_know_the_gap_before_them(event):
    steps = steps_between(a_user(event), 2, 3, (), np.zeros(2, np.float32), top_n=5)
    assert (steps.items.tolist(), steps.gaps.tolist()) == ([3], [15])


def test_a_sessions_items_are_views_without_a_gap(event):
    steps = steps_between(a_user(event), 3, 3, [9, 8], np.zeros(2, np.float32), top_n=5)
    assert (steps.items.tolist(), steps.types.tolist(), steps.gaps.tolist()) == ([9, 8], [1, 1], [0, 0])
    assert all(math.isnan(value) for value in steps.values)


def test_the_last_items_are_in_time_order_and_the_session_after_them(event):
    user = a_user(event)
    assert user.recent(2, []).tolist() == [2, 3]
    assert user.recent(2, [9]).tolist() == [3, 9]
    assert user.recent(2, [7, 8, 9]).tolist() == [8, 9]
    assert user.recent(10, [9]).tolist() == [1, 2, 3, 9]
    assert UserState().recent(2, []).tolist() == []


@pytest.mark.parametrize("length", [10, 300, 2_000])
async def test_event_by_event_is_the_same_as_all_at_once(tiny_snapshot, make_world, event, length):
    """The real encoder: however long the history, a kept state is what a fresh reading of the log gives."""
    world = make_world(snapshot=tiny_snapshot)
    rng = np.random.default_rng(length)
    times = np.cumsum(rng.exponential(3_600.0, length)).tolist()
    items = [f"item-{n}" for n in rng.integers(12, size=length).tolist()]
    history = [
        event(f"e{n}", item, time_s, value=float(n % 5) if n % 3 else None, type=1 + 3 * (n % 2))
        for n, (item, time_s) in enumerate(zip(items, times, strict=True))
    ]
    local = CoalescingEncoder(
        LocalEncoder(tiny_snapshot.path / ENCODER, AnswerSizes.of(tiny_snapshot.embeddings)), 60.0
    )
    states = UserStates(tiny_snapshot, world.store, local, 10)
    for one in history:
        states.apply(await world.store.write([one]))
        stepped = await states.encoded(await states.get("user:ann"), (), 12, 60.0)

    again = UserStates(tiny_snapshot, world.store, local, 10)
    whole = await again.encoded(await again.get("user:ann"), (), 12, 60.0)
    np.testing.assert_allclose(stepped.query, whole.query, atol=1e-4)
    np.testing.assert_allclose(stepped.state, whole.state, atol=1e-4)
    assert stepped.log_z == pytest.approx(whole.log_z, abs=1e-4)
    assert world.store.reads == ["ann", "ann"]
    await local.close()
