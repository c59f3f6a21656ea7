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


def weights(**cells):
    """All .01 but some: r0f1=.5 is of what was had just now, and twice or three times."""
    hazard = np.full((RECENCIES, FREQUENCIES), 0.01)
    for cell, value in cells.items():
        hazard[int(cell[1]), int(cell[3])] = value
    return RepeatWeights(hazard)


def test_what_was_had_is_classed_by_doublings():
    had = had_in(history(A, B, B, C, B, A, C))
    assert had.items.tolist() == [A, B, C]
    assert had.recency.tolist() == [1, 1, 0]  # 2, 3 and 1 events ago
    assert had.frequency.tolist() == [1, 1, 1]  # 2, 3 and 2 times


def test_the_last_classes_have_no_end():
    had = had_in(history(A, *[B] * (LOOKED_BACK - 1)))
    assert had.recency.tolist() == [10, 0]
    assert had.frequency.tolist() == [0, FREQUENCIES - 1]


def test_what_was_had_before_the_events_that_are_looked_at_is_forgotten():
    assert had_in(history(A, *[B] * LOOKED_BACK)).items.tolist() == [B]


def test_each_item_is_as_likely_as_its_class():
    votes = repeat_votes(weights(r0f1=0.5, r2f0=0.25), history(A, B, B, C, B))
    assert dict(zip(votes.items.tolist(), votes.probability.tolist(), strict=True)) == {A: 0.25, B: 0.5, C: 0.01}


def test_something_is_left_for_what_is_new():
    votes = repeat_votes(weights(r0f0=0.9, r1f0=0.9), history(A, B))
    assert votes.probability.tolist() == pytest.approx([MOST / 2, MOST / 2])


def test_nobody_turns_back_to_nothing():
    assert len(repeat_votes(weights(), history()).items) == 0
