import numpy as np
import pytest

from longtide_server.events import EventType, user_of
from longtide_server.training.dataset import (
    Sequences,
    batches,
    chunks,
    ends_of_steps,
    hold_out_after,
    hold_out_last,
    select,
    to_sequences,
    without_hindsight,
)
from longtide_server.training.files.log import Log

NAN = float("nan")


def log(*rows: tuple[str, str, float], types: list[int] | None = None, values: list[float] | None = None) -> Log:
    """A log of (user, item, time) rows; every event a view without a value, unless said otherwise."""
    users = tuple(dict.fromkeys(user for user, _, _ in rows))
    items = tuple(dict.fromkeys(item for _, item, _ in rows))
    return Log(
        owners=tuple(f"user:{user}" for user in users),
        item_ids=items,
        user=np.array([users.index(user) for user, _, _ in rows], np.int32),
        item=np.array([items.index(item) for _, item, _ in rows], np.int32),
        time_s=np.array([time for _, _, time in rows], np.float64),
        event_type=np.array(types or [EventType.VIEW] * len(rows), np.uint8),
        value=np.array(values or [NAN] * len(rows), np.float32),
        repeated_rows=0,
    )


def spelled(**users: str) -> Sequences:
    """Users by name, their items a letter each: bob="abc" did a, b and c at 0, 10 and 20 s."""
    return to_sequences(log(*((user, item, 10.0 * n) for user, word in users.items() for n, item in enumerate(word))))


def words(sequences: Sequences) -> dict[str, str]:
    """The other way round."""
    items = ["", *sequences.item_ids]
    return {
        user_of(owner): "".join(items[item] for item in sequences.items[sequences.of(user)])
        for user, owner in enumerate(sequences.owners)
    }


# From a log to sequences


def test_each_users_events_are_in_time_order_and_users_in_the_order_of_the_log():
    found = to_sequences(log(("eva", "c", 30), ("bob", "x", 5), ("eva", "a", 10), ("eva", "b", 20)))
    assert found.owners == ("user:eva", "user:bob")
    assert words(found) == {"eva": "abc", "bob": "x"}
    assert found.times.tolist() == [10, 20, 30, 5]
    assert found.lengths.tolist() == [3, 1]


def test_equal_times_keep_the_order_of_the_log():
    rows = [("eva", "z", 7), ("bob", "y", 7), ("eva", "a", 7), ("eva", "m", 7), ("bob", "b", 7)]
    assert words(to_sequences(log(*rows))) == {"eva": "zam", "bob": "yb"}


def test_items_are_numbered_by_falling_frequency_then_by_id():
    found = spelled(u="cab", v="cb", w="d")
    assert found.item_ids == ("b", "c", "a", "d")  # b and c twice, a and d once
    assert found.items.tolist() == [2, 3, 1, 2, 1, 4]


def test_a_gap_is_the_time_since_the_same_users_event_before():
    found = to_sequences(log(("eva", "a", 100), ("bob", "a", 900), ("eva", "b", 250), ("bob", "b", 901.5)))
    assert found.gaps.tolist() == [0, 150, 0, 1.5]


def test_types_and_values_stay_with_their_events():
    found = to_sequences(log(("u", "b", 2), ("u", "a", 1), types=[EventType.RATE, EventType.VIEW], values=[4.5, NAN]))
    assert found.types.tolist() == [EventType.VIEW, EventType.RATE]
    np.testing.assert_array_equal(found.values, np.array([NAN, 4.5], np.float32))


# Holding targets back


def test_the_last_event_of_everyone_with_enough_events_is_held_back():
    whole = spelled(eva="abc", bob="ab", cho="dcba")
    found = hold_out_last(whole, min_events=3)
    assert [whole.owners[user] for user in found.users] == ["user:eva", "user:cho"]
    assert [whole.item_ids[item - 1] for item in found.targets] == ["c", "a"]
    assert found.times.tolist() == [20.0, 30.0]
    assert words(found.history) == {"eva": "ab", "bob": "ab", "cho": "dcb"}
    assert found.history.item_ids == whole.item_ids


def test_what_was_new_last_is_the_target_and_what_came_after_it_is_held_back_too():
    whole = spelled(eva="abcab", bob="abbb", cho="aabbccc")
    found = hold_out_last(whole, min_events=3)
    # What one has had is not recommended again: as a target it could not be reached. Bob has but an a before his b.
    assert [whole.owners[user] for user in found.users] == ["user:eva", "user:cho"]
    assert [whole.item_ids[item - 1] for item in found.targets] == ["c", "c"]
    assert words(found.history) == {"eva": "ab", "bob": "abbb", "cho": "aabb"}


def test_where_what_was_seen_is_included_the_last_event_is_the_target():
    whole = spelled(eva="abcab", bob="abbb")
    found = hold_out_last(whole, min_events=3, include_seen=True)
    assert [whole.item_ids[item - 1] for item in found.targets] == ["b", "b"]
    assert words(found.history) == {"eva": "abca", "bob": "abb"}
    later = hold_out_after(whole, 25.0, include_seen=True)
    assert [whole.item_ids[item - 1] for item in later.targets] == ["a", "b"]


def test_a_dislike_is_no_target():
    types = [EventType.VIEW, EventType.VIEW, EventType.LIKE, EventType.DISLIKE]
    whole = to_sequences(log(*(("eva", item, n) for n, item in enumerate("abcd")), types=types))
    found = hold_out_last(whole)
    assert [whole.item_ids[item - 1] for item in found.targets] == ["c"]
    assert words(found.history) == {"eva": "ab"}
    assert hold_out_after(whole, 3.0).users.tolist() == []
    assert [whole.item_ids[item - 1] for item in hold_out_after(whole, 1.5).targets] == ["c"]


VIEW, CART, BUY = EventType.VIEW, EventType.ADD_TO_CART, EventType.PURCHASE


def shop() -> Sequences:
    """Eva views a, b and c, puts b and c into her cart, buys b, and views it; bob views and buys a, views b twice."""
    eva = [("a", VIEW), ("b", VIEW), ("c", VIEW), ("b", CART), ("c", CART), ("b", BUY), ("b", VIEW)]
    bob = [("a", VIEW), ("a", BUY), ("b", VIEW), ("b", VIEW)]
    rows = [("eva", item, 10.0 * n) for n, (item, _) in enumerate(eva)]
    rows += [("bob", item, 10.0 * n) for n, (item, _) in enumerate(bob)]
    return to_sequences(log(*rows, types=[kind for _, kind in (*eva, *bob)]))


def test_what_an_event_leads_to_is_what_comes_of_it():
    whole = shop()
    assert np.flatnonzero(whole.leads_to(BUY)).tolist() == [1, 3, 5, 7, 8]
    assert np.flatnonzero(whole.leads_to(CART)).tolist() == [1, 2, 3, 4]
    assert not whole.leads_to(EventType.LIKE).any()


def test_a_target_knows_what_came_of_it_and_what_came_right_after_the_history():
    whole = shop()
    last = hold_out_last(whole)  # eva's c, and bob's b
    assert [np.flatnonzero(row).tolist() for row in last.outcomes] == [[VIEW, CART], [VIEW]]
    assert (last.next_items == last.targets).all()
    assert last.next_types.tolist() == [VIEW, VIEW]

    # From 30 s on eva does nothing new. From 20 s on c is new to her, and b to bob; from 10 s on b, which she buys.
    assert hold_out_after(whole, 30.0).users.tolist() == []
    assert [np.flatnonzero(row).tolist() for row in hold_out_after(whole, 20.0).outcomes] == [[VIEW, CART], [VIEW]]
    after = hold_out_after(whole, 10.0)
    assert [np.flatnonzero(row).tolist() for row in after.outcomes] == [[VIEW, CART, BUY], [VIEW]]
    assert [whole.item_ids[item - 1] for item in after.next_items] == ["b", "a"]  # bob first buys what he has viewed
    assert after.next_types.tolist() == [VIEW, BUY]
    some = after.of_users(np.array([1]))
    assert (some.next_types.tolist(), np.flatnonzero(some.outcomes).tolist()) == ([BUY], [VIEW])
    without = without_hindsight(hold_out_after(whole, 5.0))  # an item that the history does not hold is 0
    assert without.next_items.tolist() == [0, 1]


def test_without_anyone_with_enough_events_nothing_is_held_back():
    found = hold_out_last(spelled(eva="ab", bob="ba"), min_events=3)
    assert len(found.users) == len(found.targets) == 0
    assert words(found.history) == {"eva": "ab", "bob": "ba"}


def test_after_a_moment_the_first_new_item_is_the_target():
    whole = spelled(eva="abac", bob="abab", cho="abcd")  # at 0, 10, 20 and 30 s
    found = hold_out_after(whole, 20.0)
    assert words(found.history) == {"eva": "ab", "bob": "ab", "cho": "ab"}
    # Of what eva did from then on, a was not new to her; bob did nothing new and is not measured.
    assert [whole.owners[user] for user in found.users] == ["user:eva", "user:cho"]
    assert [whole.item_ids[item - 1] for item in found.targets] == ["c", "c"]


def test_someone_who_came_after_the_moment_has_a_target_and_no_history():
    found = hold_out_after(to_sequences(log(("eva", "a", 1), ("bob", "b", 9))), 5.0)
    assert words(found.history) == {"eva": "a", "bob": ""}
    assert [found.history.owners[user] for user in found.users] == ["user:bob"]


def test_no_event_of_that_moment_itself_is_history():
    assert words(hold_out_after(spelled(eva="abc"), 10.0).history) == {"eva": "a"}


def test_without_hindsight_items_are_those_of_the_history_and_numbered_by_it():
    whole = spelled(eva="bbcc", bob="acac", cho="caxc")
    assert whole.item_ids == ("c", "a", "b", "x")  # c is the most frequent, but mostly later
    found = without_hindsight(hold_out_after(whole, 20.0))
    assert found.history.item_ids == ("a", "b", "c")  # twice each; x was not there yet
    assert words(found.history) == {"eva": "bb", "bob": "ac", "cho": "ca"}
    assert [whole.owners[user] for user in found.users] == ["user:eva", "user:cho"]
    assert found.targets.tolist() == [3, 0]  # c, and x, which nobody could have recommended


def test_without_hindsight_an_empty_history_knows_no_item():
    found = without_hindsight(hold_out_after(spelled(eva="ab"), 0.0))
    assert found.history.item_ids == ()
    assert found.targets.tolist() == [0]


def test_what_is_left_out_widens_the_gap_over_it():
    whole = spelled(eva="abcd", bob="xy", cho="z")
    found = select(whole, np.array([True, False, False, True, False, True, False]))
    assert words(found) == {"eva": "ad", "bob": "y", "cho": ""}
    assert found.gaps.tolist() == [0, 30, 0]
    assert found.lengths.tolist() == [2, 1, 0]
    assert (found.owners, found.item_ids) == (whole.owners, whole.item_ids)


def test_only_so_many_users_are_held_back_from_the_seed_says_whose():
    whole = spelled(**{f"u{n}": "abcdef" for n in range(20)})
    found = hold_out_last(whole, most_users=5, seed=1)
    assert len(found.users) == len(found.targets) == 5
    assert np.bincount(found.history.lengths).tolist() == [0, 0, 0, 0, 0, 5, 15]  # the others keep all six events
    assert found.users.tolist() == hold_out_last(whole, most_users=5, seed=1).users.tolist()
    assert found.users.tolist() != hold_out_last(whole, most_users=5, seed=2).users.tolist()
    assert len(hold_out_last(whole, most_users=50, seed=1).users) == 20


# Packing


@pytest.mark.parametrize("rng", [None, np.random.default_rng(3)], ids=["in order", "shuffled"])
def test_batches_hold_every_user_once(rng):
    whole = spelled(**{f"u{n}": "abcdefghij"[: n % 10 + 1] for n in range(57)})
    users = np.flatnonzero(whole.lengths >= 2)
    found = list(batches(whole, users, batch_events=30, chunk=4, rng=rng))
    assert len(found) > 5
    assert sorted(np.concatenate(found).tolist()) == users.tolist()


def test_a_batch_holds_about_so_many_events_of_one_chunk():
    whole = spelled(**{f"u{n}": "abcdef" for n in range(10)})
    assert [len(batch) for batch in batches(whole, np.arange(10), batch_events=12, chunk=3, rng=None)] == [4, 4, 2]


def test_one_short_history_does_not_make_a_batch_of_long_ones_wide():
    whole = spelled(a="ab", **{f"u{n}": "abcdef" for n in range(4)})
    found = [batch.tolist() for batch in batches(whole, np.arange(5), batch_events=12, chunk=100, rng=None)]
    assert found == [[0, 1], [2, 3], [4]]


def test_a_step_waits_until_it_has_events_enough():
    lengths = [np.array([7, 3]), np.array([2]), np.array([4, 4])]
    # The pieces of at most 3 hold 6, 3 and 1 events, 2 events, 6 and 2 events; a step needs 5.
    assert ends_of_steps(lengths, chunk=3, least=5) == [[True, False, False], [True], [True, True]]
    assert ends_of_steps(lengths, chunk=3, least=2) == [[True, True, False], [True], [True, True]]
    assert ends_of_steps([], chunk=3, least=5) == []


def test_even_one_user_who_is_too_long_for_a_batch_gets_one():
    assert [b.tolist() for b in batches(spelled(u="abcdef"), np.arange(1), 2, chunk=100, rng=None)] == [[0]]


def test_shuffled_batches_follow_the_seed():
    whole = spelled(**{f"u{n}": "abcdefgh"[: n % 8 + 1] for n in range(40)})

    def order(seed):
        return [b.tolist() for b in batches(whole, np.arange(40), 16, 8, np.random.default_rng(seed))]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_chunks_go_through_the_sequences_and_keep_the_rows_that_go_on():
    whole = spelled(eva="abcde", nil="a", bob="abc")
    first, second, third = chunks(whole, np.arange(3), chunk=2)

    assert (first.first, second.first, third.first) == (0, 2, 4)
    assert first.users.tolist() == [0, 1, 2]
    assert first.keep.tolist() == [0, 1, 2]  # rows of the batch
    assert second.users.tolist() == [0, 2]
    assert second.keep.tolist() == [0, 2]  # rows of the first piece: nil has ended
    assert third.users.tolist() == [0]
    assert third.keep.tolist() == [0]  # rows of the second piece
    assert [piece.lengths.tolist() for piece in (first, second, third)] == [[2, 1, 2], [2, 1], [1]]


def test_the_target_of_a_chunks_last_event_is_the_first_of_the_next_chunk():
    whole = spelled(eva="abcde", bob="abc")
    first, second, third = chunks(whole, np.arange(2), chunk=2)
    a, b, c, d, e = 1, 2, 3, 4, 5
    assert whole.item_ids == ("a", "b", "c", "d", "e")
    assert first.items.tolist() == [[a, b], [a, b]]
    assert first.targets.tolist() == [[b, c], [b, c]]
    assert first.next_gaps.tolist() == [[10, 10], [10, 10]]
    assert second.items.tolist() == [[c, d], [c, 0]]
    assert second.targets.tolist() == [[d, e], [0, 0]]
    assert third.items.tolist() == [[e]]
    assert third.targets.tolist() == [[0]]
    assert np.isnan(third.next_gaps).all()


def test_a_batchs_first_chunk_skips_users_without_events():
    whole = select(spelled(eva="ab", bob="ab"), np.array([False, False, True, True]))
    (piece,) = chunks(whole, np.array([0, 1]), chunk=5)
    assert piece.users.tolist() == [1]
    assert piece.keep.tolist() == [1]


def test_users_without_any_events_make_no_chunk():
    whole = select(spelled(eva="ab"), np.zeros(2, bool))
    assert list(chunks(whole, np.array([0]), chunk=5)) == []
