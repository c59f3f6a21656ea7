from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from longtide_server.events import EventType
from longtide_server.sources.candidates import TransitionSettings
from longtide_server.training.dataset import Sequences
from longtide_server.training.sources import counts
from longtide_server.training.sources.counts import count_popularity, count_transitions

A, B, C, D = 1, 2, 3, 4


def sequences(*users: list[int], item_count: int = 4) -> Sequences:
    """The users' items, in time order."""
    items = np.array([item for user in users for item in user], np.int64)
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(users))),
        item_ids=tuple("abcdefgh"[:item_count]),
        offsets=np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64),
        items=items,
        types=np.ones(len(items), np.int64),
        times=np.arange(len(items), dtype=np.float64),
        gaps=np.zeros(len(items), np.float32),
        values=np.full(len(items), np.nan, np.float32),
    )


def rows(transitions) -> dict[int, list[tuple[int, float]]]:
    """What follows each item, as (item, probability), without the items that nothing follows."""
    bounds = transitions.offsets.tolist()
    return {
        item: [
            (following, pytest.approx(probability))
            for following, probability in zip(
                transitions.items[start:end].tolist(), transitions.probability[start:end].tolist(), strict=True
            )
        ]
        for item, (start, end) in enumerate(pairwise(bounds))
        if end > start
    }


def test_popularity_is_the_share_of_all_events():
    assert count_popularity(sequences([A, A, B], [A, C])).tolist() == [0.0, 0.6, 0.2, 0.2, 0.0]


def test_of_no_events_nothing_is_popular():
    assert count_popularity(sequences([])).tolist() == [0.0] * 5


def test_what_follows_later_counts_less():
    found = count_transitions(sequences([A, B, C]), TransitionSettings(lags=2, decay=0.5))
    assert rows(found) == {A: [(B, 1 / 1.5), (C, 0.5 / 1.5)], B: [(C, 1.0)]}
    assert found.offsets.tolist() == [0, 0, 2, 3, 3, 3]


def test_nothing_follows_beyond_the_lags():
    assert rows(count_transitions(sequences([A, B, C]), TransitionSettings(lags=1))) == {A: [(B, 1.0)], B: [(C, 1.0)]}


def test_the_next_users_first_item_follows_nothing():
    assert rows(count_transitions(sequences([A], [B], [C, D]), TransitionSettings(lags=3))) == {C: [(D, 1.0)]}


def test_the_most_frequent_follower_is_first_and_of_equals_the_smaller_item():
    found = count_transitions(sequences([A, D], [A, C], [A, B], [A, D]), TransitionSettings(lags=1))
    assert rows(found) == {A: [(D, 0.5), (B, 0.25), (C, 0.25)]}


def test_a_row_that_is_cut_keeps_the_probabilities_among_all(monkeypatch):
    monkeypatch.setattr(counts, "KEPT_PER_ITEM", 1)
    found = count_transitions(sequences([A, D], [A, C], [A, B], [A, D], [B, C]), TransitionSettings(lags=1))
    assert rows(found) == {A: [(D, 0.5)], B: [(C, 1.0)]}


def test_a_log_shorter_than_the_lags_is_counted_all_the_same():
    assert rows(count_transitions(sequences([A, B]), TransitionSettings(lags=5))) == {A: [(B, 1.0)]}
    assert rows(count_transitions(sequences([A]), TransitionSettings(lags=5))) == {}


def test_what_counts_nothing_follows_nothing():
    log = sequences([A, B, C])
    disliked = replace(log, types=np.where(log.items == B, EventType.DISLIKE, EventType.VIEW))
    assert rows(count_transitions(disliked, TransitionSettings(lags=5, decay=0.0))) == {B: [(C, 1.0)]}
    assert rows(count_transitions(log, TransitionSettings(lags=5, decay=0.0))) == {A: [(B, 1.0)], B: [(C, 1.0)]}


def test_an_item_may_follow_itself():
    assert rows(count_transitions(sequences([A, A, A]), TransitionSettings(lags=2))) == {A: [(A, 1.0)]}


def test_counted_for_some_items_at_a_time_the_same_is_found(monkeypatch):
    rng = np.random.default_rng(0)
    log = sequences(*([int(item) for item in rng.integers(1, 9, size)] for size in range(30)), item_count=8)
    settings = TransitionSettings(lags=3)
    whole = count_transitions(log, settings)
    monkeypatch.setattr(counts, "PAIRS_AT_ONCE", 100)
    found = count_transitions(log, settings)
    assert rows(found) == rows(whole) != {}
    assert len(found.offsets) == len(whole.offsets)


def test_nobody_is_led_to_what_was_disliked():
    log = sequences([A, B, C], [A, B, D])
    disliked = replace(log, types=np.where(log.items == B, EventType.DISLIKE, EventType.VIEW))
    assert count_popularity(disliked).tolist() == [0.0, 0.5, 0.0, 0.25, 0.25]
    found = rows(count_transitions(disliked, TransitionSettings(lags=2, decay=0.5)))
    assert found == {A: [(C, 0.5), (D, 0.5)], B: [(C, 0.5), (D, 0.5)]}
