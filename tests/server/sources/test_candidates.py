"""What each source says, worked out by hand."""

import numpy as np
import pytest

from longtide_server.sources.candidates import (
    NOTHING,
    Scored,
    Source,
    Transitions,
    encoder_probability,
    first_allowed,
    gather,
    gather_allowed,
    nearest_allowed,
    neighbor_votes,
    tabulate,
    transition_votes,
)
from longtide_server.sources.neighbors import NO_NEIGHBORS, Neighbors, Positions

NONE = np.zeros(0, np.int64)


def votes(scored):
    return dict(zip(scored.items.tolist(), scored.probability.tolist(), strict=True))


def positions(next_items, weights=None):
    count = len(next_items)
    return Positions(
        user=np.arange(count, dtype=np.int32),
        next_item=np.array(next_items, np.int32),
        weight=np.array(weights or [1.0] * count, np.float32),
    )


def neighbors(*similarities):
    return Neighbors(np.arange(len(similarities)), np.array(similarities, np.float32))


def scored(**probability):
    """scored(i1=0.5) is item 1 with one half."""
    items = [int(name[1:]) for name in probability]
    return Scored(np.array(items, np.int64), np.array(list(probability.values())))


def test_votes_for_the_same_item_add_up():
    found = neighbor_votes(neighbors(0.9, 0.9, 0.9, 0.9), positions([7, 5, 7, 7]), temperature=0.1)
    assert votes(found) == pytest.approx({5: 0.25, 7: 0.75})


def test_a_vote_counts_by_similarity_over_temperature():
    nearer = 0.1 * np.log(3)  # at temperature 0.1 worth three votes
    found = neighbor_votes(neighbors(0.5 + nearer, 0.5), positions([5, 7]), temperature=0.1)
    assert votes(found) == pytest.approx({5: 0.75, 7: 0.25}, abs=1e-5)
    found = neighbor_votes(neighbors(0.5 + nearer, 0.5), positions([5, 7]), temperature=0.2)
    assert votes(found)[5] / votes(found)[7] == pytest.approx(np.sqrt(3), rel=1e-5)


def test_a_recent_moment_counts_more():
    found = neighbor_votes(neighbors(0.5, 0.5), positions([5, 7], weights=[0.25, 1.0]), temperature=0.1)
    assert votes(found) == pytest.approx({5: 0.2, 7: 0.8})


def test_a_vote_is_its_own_moments():
    """Neighbours are rows of the positions, in any order."""
    found = Neighbors(np.array([2, 0]), np.array([0.5, 0.5], np.float32))
    assert votes(neighbor_votes(found, positions([5, 6, 7]), 0.1)) == pytest.approx({5: 0.5, 7: 0.5})


def test_a_tiny_temperature_does_not_overflow():
    found = neighbor_votes(neighbors(1.0, -1.0), positions([5, 7]), temperature=1e-3)
    assert votes(found) == pytest.approx({5: 1.0, 7: 0.0})


def test_nobody_votes_for_nothing():
    assert neighbor_votes(NO_NEIGHBORS, positions([]), 0.1) is NOTHING


# 1 -> 2 always; 2 -> 1 or 3; 3 -> nothing
TRANSITIONS = Transitions(
    offsets=np.array([0, 0, 1, 3, 3]),
    items=np.array([2, 1, 3], np.int32),
    probability=np.array([1.0, 0.25, 0.75], np.float32),
)


def test_what_follows_the_last_item_is_likely():
    assert votes(transition_votes(TRANSITIONS, np.array([2]), decay=0.5)) == pytest.approx({1: 0.25, 3: 0.75})


def test_the_item_before_the_last_counts_less():
    # item 2 is the last: 1 gets .25, 3 gets .75; item 1 before it: 2 gets 1 x .5; together 1.5
    found = transition_votes(TRANSITIONS, np.array([1, 2]), decay=0.5)
    assert votes(found) == pytest.approx({1: 0.25 / 1.5, 2: 0.5 / 1.5, 3: 0.75 / 1.5})


def test_the_same_item_twice_adds_up():
    found = transition_votes(TRANSITIONS, np.array([1, 3, 1]), decay=0.5)
    assert votes(found) == pytest.approx({2: 1.0})


def test_an_item_that_nothing_follows_says_nothing():
    assert votes(transition_votes(TRANSITIONS, np.array([3]), decay=0.5)) == {}


def test_without_a_last_item_transitions_say_nothing():
    assert transition_votes(TRANSITIONS, np.array([], np.int64), decay=0.5) is NOTHING


def test_the_encoders_probability_is_a_softmax_over_cosines():
    embeddings = np.array([[0, 0], [1, 0], [0, 1], [-1, 0]], np.float32)  # cosines with [1, 0]: 1, 0, -1
    log_z = float(np.log(np.exp(2.0) + np.exp(0.0) + np.exp(-2.0)))
    found = encoder_probability(np.array([1, 2, 3]), np.array([1, 0], np.float32), embeddings, 0.5, log_z)
    assert found.sum() == pytest.approx(1.0)
    assert found[0] / found[1] == pytest.approx(np.exp(2.0))
    assert found[1] / found[2] == pytest.approx(np.exp(2.0))


def test_every_source_has_its_column():
    found = gather({Source.ENCODER: scored(i9=0.6, i2=0.4), Source.TRANSITIONS: scored(i2=0.5, i4=0.5)}, NONE, 9)
    assert found.items.tolist() == [2, 4, 9]
    assert found.probability[:, :4].tolist() == [
        [0.4, 0, 0.5, 0],  # encoder, neighbours, transitions, popularity
        [0, 0, 0.5, 0],
        [0.6, 0, 0, 0],
    ]


def test_a_blocked_item_is_gone_whoever_brings_it():
    brought = {Source.ENCODER: scored(i9=0.6, i2=0.4), Source.POPULARITY: scored(i2=0.5, i4=0.5)}
    assert gather(brought, np.array([2, 7]), 9).items.tolist() == [4, 9]


def marks(*items, count):
    """A mask of some of so many items."""
    mask = np.zeros(count + 1, np.bool_)
    mask[list(items)] = True
    return mask


def test_only_allowed_items_are_gathered():
    brought = {Source.ENCODER: scored(i9=0.6, i2=0.4), Source.POPULARITY: scored(i2=0.5, i4=0.5)}
    found = gather_allowed(brought, marks(2, 3, 9, count=9))
    assert found.items.tolist() == [2, 9]  # 3 is allowed, and nobody brings it
    assert found.probability[:, :4].tolist() == [[0.4, 0, 0, 0.5], [0.6, 0, 0, 0]]


def test_the_first_allowed_items_of_an_order():
    order = np.arange(100, 0, -1)
    assert first_allowed(order, marks(1, 2, 50, 99, count=100), 2).tolist() == [99, 50]  # 50 is not near the beginning
    assert first_allowed(order, marks(1, 2, count=100), 3).tolist() == [2, 1]
    assert first_allowed(order, marks(count=100), 3).tolist() == []


@pytest.mark.parametrize("allowed", [(1, 4), (1, 2, 4), (2, 3, 4, 5)])
def test_the_nearest_allowed_items_whether_they_are_few_or_many(allowed):
    """Items 1 to 9 turn away from the query, 10 degrees each."""
    angles = np.radians(10.0 * np.arange(10))
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = nearest_allowed(marks(*allowed, count=9), np.array([1, 0], np.float32), embeddings, 2)
    assert sorted(found.tolist()) == sorted(allowed)[:2]


def test_without_sources_there_are_no_candidates():
    assert len(gather({}, np.array([1]), 9).items) == 0
    assert len(gather({Source.ENCODER: NOTHING}, np.array([1]), 9).items) == 0


def test_given_items_are_all_there_known_to_a_source_or_not():
    found = tabulate(np.array([1, 4, 99]), {Source.NEIGHBORS: scored(i9=0.9, i4=0.1), Source.ENCODER: NOTHING}, 99)
    assert found.items.tolist() == [1, 4, 99]
    assert found.probability[:, :4].tolist() == [[0, 0, 0, 0], [0, 0.1, 0, 0], [0, 0, 0, 0]]
