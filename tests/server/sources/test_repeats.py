"""What people turn to once more, by how long ago and how often they had it: cases worked out by hand."""

import numpy as np
import pytest

from longtide_server.sources.repeats import (
    FREQUENCIES,
    LOOKED_BACK,
    MOST,
    RECENCIES,
    RepeatWeights,
    had_in,
    repeat_votes,
)

A, B, C = 1, 2, 3


def history(*items):
    return np.array(items, np.int64)


def wanted(count):
    return np.ones(count, np.bool_)


def weights(**cells):
    """All .01 but some: r0f1=.5 is of what was had just now, and twice or three times."""
    hazard = np.full((RECENCIES, FREQUENCIES), 0.01)
    for cell, value in cells.items():
        hazard[int(cell[1]), int(cell[3])] = value
    return RepeatWeights(hazard)


def test_what_was_had_is_classed_by_doublings():
    had = had_in(history(A, B, B, C, B, A, C), wanted(7))
    assert had.items.tolist() == [A, B, C]
    assert had.recency.tolist() == [1, 1, 0]  # 2, 3 and 1 events ago
    assert had.frequency.tolist() == [1, 1, 1]  # 2, 3 and 2 times


def test_the_last_classes_have_no_end():
    had = had_in(history(A, *[B] * (LOOKED_BACK - 1)), wanted(LOOKED_BACK))
    assert had.recency.tolist() == [10, 0]
    assert had.frequency.tolist() == [0, FREQUENCIES - 1]


def test_what_was_had_before_the_events_that_are_looked_at_is_forgotten():
    assert had_in(history(A, *[B] * LOOKED_BACK), wanted(LOOKED_BACK + 1)).items.tolist() == [B]


def test_each_item_is_as_likely_as_its_class():
    votes = repeat_votes(weights(r0f1=0.5, r2f0=0.25), history(A, B, B, C, B), wanted(5))
    assert dict(zip(votes.items.tolist(), votes.probability.tolist(), strict=True)) == {A: 0.25, B: 0.5, C: 0.01}


def test_something_is_left_for_what_is_new():
    votes = repeat_votes(weights(r0f0=0.9, r1f0=0.9), history(A, B), wanted(2))
    assert votes.probability.tolist() == pytest.approx([MOST / 2, MOST / 2])


def test_nobody_turns_back_to_nothing():
    assert len(repeat_votes(weights(), history(), wanted(0)).items) == 0


def test_nobody_turns_back_to_what_they_disliked_last():
    chosen = np.array([True, False, False, True])  # a is wanted, then disliked; b the other way round
    assert had_in(history(A, B, A, B), chosen).items.tolist() == [B]


def test_weights_of_other_classes_are_read_as_far_as_they_go():
    votes = repeat_votes(RepeatWeights(np.array([[0.1, 0.2], [0.3, 0.4]])), history(A, A, A, A, B, C, C, C), wanted(8))
    assert votes.probability.tolist() == [0.4, 0.3, 0.2]
