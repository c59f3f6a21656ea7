import numpy as np

from longtide_server.sources.candidates import TransitionSettings
from longtide_server.training.dataset import Sequences
from longtide_server.training.judging.baselines import best_unseen, had_lists, popularity_lists, transition_lists

NOTHING = np.zeros(0, np.int64)


def history(*words: str) -> Sequences:
    """A user a word, an item a letter; letters are numbered by falling frequency, then by the alphabet."""
    text = "".join(words)
    letters = sorted(set(text), key=lambda letter: (-text.count(letter), letter))
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(words))),
        item_ids=tuple(letters),
        offsets=np.cumsum([0, *map(len, words)]),
        items=np.array([letters.index(letter) + 1 for letter in text], np.int64),
        types=np.ones(len(text), np.int64),
        times=np.arange(len(text), dtype=np.float64),
        gaps=np.zeros(len(text), np.float32),
        values=np.full(len(text), np.nan, np.float32),
    )


def spelled(log: Sequences, lists) -> list[str]:
    return ["".join(log.item_ids[item - 1] if item else "-" for item in row) for row in lists]


# The best of a score


def test_of_equal_scores_the_smaller_number_is_first():
    assert best_unseen(np.array([9.0, 0.5, 0.9, 0.5, 0.9]), NOTHING, 4).tolist() == [2, 4, 1, 3]


def test_what_is_seen_and_the_padding_leave_empty_places():
    score = np.array([9.0, 0.5, 0.9, 0.5, 0.9])
    assert best_unseen(score, np.array([2, 3]), 4).tolist() == [4, 1, 0, 0]
    assert score.tolist() == [9.0, 0.5, 0.9, 0.5, 0.9]  # the caller's own


def test_of_many_the_best_are_those_that_a_sort_of_all_finds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        score, seen = rng.integers(0, 4, 30) / 4, rng.integers(1, 30, 5)
        order = sorted(set(range(1, 30)) - set(seen.tolist()), key=lambda item: (-score[item], item))
        assert best_unseen(score, seen, 6).tolist() == order[:6]


def test_an_item_that_scores_0_is_still_an_item():
    assert best_unseen(np.zeros(4), NOTHING, 5).tolist() == [1, 2, 3, 0, 0]


# Popularity


def test_popularity_lists_what_most_events_are_on_and_equals_by_id():
    log = history("ccc", "cb", "a", "")
    assert log.item_ids == ("c", "a", "b")
    assert spelled(log, popularity_lists(log, np.arange(4), 3)) == ["ab-", "a--", "cb-", "cab"]


# Transitions


def test_transitions_list_what_followed_then_what_is_popular():
    log = history("xa", "xa", "xb", "dd", "d", "x")
    # After x: a twice, b once; d has more events than either and never followed.
    assert spelled(log, transition_lists(log, np.array([5]), TransitionSettings(), 4)) == ["abd-"]


def test_what_followed_equally_often_goes_by_events_then_by_id():
    log = history("xb", "xc", "xa", "c", "x")
    # Each followed x once; c has two events, a and b one.
    assert spelled(log, transition_lists(log, np.array([4]), TransitionSettings(), 3)) == ["cab"]


def test_who_has_no_history_gets_what_is_popular():
    log = history("xa", "xb", "xb", "")
    (listed,) = transition_lists(log, np.array([3]), TransitionSettings(), 4)
    assert listed.tolist() == popularity_lists(log, np.array([3]), 4)[0].tolist()
    assert spelled(log, [listed]) == ["xba-"]


# What users had


def test_what_a_user_had_most_often_comes_first_and_the_last_of_equals():
    log = history("abbca", "c")
    assert spelled(log, had_lists(log, np.array([0, 1]), 4)) == ["abc-", "c---"]


def test_what_was_seen_may_be_left_in():
    log = history("aab", "b")
    users = np.array([0, 1])
    assert spelled(log, popularity_lists(log, users, 2, include_seen=True)) == ["ab", "ab"]
    settings = TransitionSettings(1, 1.0)
    # After b came nothing, so that what is popular is left; after a came a, and b, once each.
    assert spelled(log, transition_lists(log, users, settings, 2, include_seen=True)) == ["ab", "ab"]
