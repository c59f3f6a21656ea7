import numpy as np

from longtide_server.training.dataset import Sequences
from longtide_server.training.judging.bias import PopularityBias, popularity_bias

A, B, C = 1, 2, 3


def history(*words: str) -> Sequences:
    """A user a word; the items are a, b and c, numbered so."""
    text = "".join(words)
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(words))),
        item_ids=("a", "b", "c"),
        offsets=np.cumsum([0, *map(len, words)]),
        items=np.array(["abc".index(letter) + 1 for letter in text], np.int64),
        types=np.ones(len(text), np.int64),
        times=np.arange(len(text), dtype=np.float64),
        gaps=np.zeros(len(text), np.float32),
        values=np.full(len(text), np.nan, np.float32),
    )


def bias(lists, words, k=10):
    return popularity_bias(np.array(lists), np.arange(len(lists)), history(*words), k)


def test_bias_is_the_popularity_of_what_is_shown_over_that_of_what_was_had():
    # a has three events, b two, c one. The first had a and b (2.5 on average), the second a and c (2).
    # The first is shown c (1), the second b (2): 1.5 against 2.25.
    assert bias([[C, 0], [B, 0]], ["abb", "aac"]) == PopularityBias(2, 1.5, 2.25, 0.6667)


def test_an_item_that_was_had_twice_counts_once_as_in_a_list():
    # a has three events, b two, c one: 2.5 for the first user, whose a counts once, and 2 for the second.
    assert bias([[C], [C]], ["aab", "abc"]).consumed == 2.25


def test_only_the_first_k_are_shown():
    # a has two events, b and c one each.
    assert bias([[B, C, A]], ["aabc"], k=2).recommended == 1.0
    assert bias([[B, C, A]], ["aabc"], k=3).recommended == 1.3333


def test_users_without_a_history_or_without_a_list_are_not_compared():
    assert bias([[B], [A], [0]], ["a", "", "ab"]) == PopularityBias(1, 1.0, 2.0, 0.5)


def test_nobody_to_compare_is_no_bias():
    assert bias([[A], [B]], ["", ""]) is None
