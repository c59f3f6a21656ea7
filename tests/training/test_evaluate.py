from math import log2

import numpy as np
import pytest
import torch

from longtide_server.errors import InvalidInput
from longtide_server.training.dataset import Holdout, Sequences
from longtide_server.training.evaluate import evaluate, hold_out, measure
from longtide_server.training.settings import settings_for, with_overrides


@pytest.fixture(autouse=True)
def one_thread():
    """Steps are too small to share: with more threads, a busy machine makes them a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sequences(*words: str) -> Sequences:
    """A user a word, an item a letter; letters are numbered by falling frequency, then by the alphabet.

    The first event of everyone is at 0 s, the second at 1 s.
    """
    text = "".join(words)
    letters = sorted(set(text), key=lambda letter: (-text.count(letter), letter))
    lengths = [len(word) for word in words]
    return Sequences(
        user_ids=tuple(f"u{n}" for n in range(len(words))),
        item_ids=tuple(letters),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([letters.index(letter) + 1 for letter in text], np.int64),
        types=np.ones(len(text), np.int64),
        times=np.array([float(n) for word in words for n in range(len(word))]),
        gaps=np.zeros(len(text), np.float32),
        values=np.full(len(text), np.nan, np.float32),
    )


def quick(log: Sequences):
    settings = settings_for(log, times_are_real=False, seed=0)
    return with_overrides(
        settings, {"model.dim": "8", "model.hidden": "8", "train.epochs": "2", "train.bfloat16": "false"}
    )


def results(holdout: Holdout) -> dict[str, dict[str, float]]:
    return {one.name: one.metrics for one in evaluate(holdout, {}, quick(holdout.history), lambda _: None)}


def test_metrics_are_means_over_the_users_and_coverage_is_of_the_catalogue():
    history = sequences("abcdefgh")
    holdout = Holdout(history, np.array([0, 1, 2]), np.array([4, 6, 8]))
    lists = np.zeros((3, 20), np.int64)
    lists[0, :3] = [4, 1, 2]  # first
    lists[1, :8] = [1, 2, 3, 4, 5, 7, 6, 8]  # seventh: in the first ten, not in the first five
    lists[2, :2] = [1, 2]  # not at all
    found = measure(lists, holdout)
    assert (found["hr@5"], found["hr@10"], found["hr@20"]) == (0.3333, 0.6667, 0.6667)
    assert (found["ndcg@5"], found["ndcg@10"]) == (0.3333, round((1 + 1 / log2(8)) / 3, 4))
    assert (found["mrr@5"], found["mrr@10"]) == (0.3333, round((1 + 1 / 7) / 3, 4))
    assert found["coverage@10"] == 1.0


def test_places_that_hold_nothing_cover_nothing_and_hit_nothing():
    holdout = Holdout(sequences("abcd"), np.array([0]), np.array([4]))
    lists = np.zeros((1, 20), np.int64)
    lists[0, 0] = 1
    assert measure(lists, holdout)["coverage@10"] == 0.25
    assert measure(lists, holdout)["hr@20"] == 0.0


def test_only_the_first_ten_count_as_shown():
    holdout = Holdout(sequences("abcdefghijklmnopqrst"), np.array([0]), np.array([20]))
    assert measure(np.arange(1, 21)[None], holdout)["coverage@10"] == 0.5


def test_baselines_are_what_a_hand_computes():
    log = sequences("abd", "ec", "ec", "bd")  # only the first user has three events: d is held back
    assert log.item_ids == ("b", "c", "d", "e", "a")
    holdout = hold_out(log, "leave-one-out")
    assert (holdout.users.tolist(), holdout.targets.tolist()) == ([0], [3])

    found = results(holdout)
    # After b came d, once: the target is first, then what is popular: c and e, twice each.
    assert (found["transitions"]["mrr@5"], found["transitions"]["ndcg@10"]) == (1.0, 1.0)
    # Popularity puts c and e before d; a and b were had.
    assert (found["popularity"]["mrr@5"], found["popularity"]["ndcg@10"]) == (0.3333, 0.5)
    assert found["transitions"]["coverage@10"] == found["popularity"]["coverage@10"] == 0.6
    assert list(found) == ["longtide", "transitions", "popularity"]
    assert found["longtide"]["hr@20"] == 1.0  # three items are left, and all are listed


def test_leave_one_out_measures_everyone_with_three_events():
    log = sequences("abcde", "bcdea", "cdeab", "deabc", "ab")
    holdout = hold_out(log, "leave-one-out")
    assert holdout.users.tolist() == [0, 1, 2, 3]
    found = results(holdout)
    assert found["transitions"]["hr@5"] == found["longtide"]["hr@5"] == 1.0  # one item is left for each
    assert set(found["longtide"]) == set(found["popularity"])


def test_the_temporal_split_holds_back_what_came_after_nine_tenths():
    # 21 events at 0 to 3 s. The quantile .9 of the times is 3 s: what happened at 3 s is held back.
    log = sequences("abcd", "bcda", "cdab", "dabc", "abcb")
    holdout = hold_out(log, "temporal")
    assert holdout.history.lengths.tolist() == [3, 3, 3, 3, 3]
    assert holdout.users.tolist() == [0, 1, 2, 3]  # the last user did nothing new then
    found = results(holdout)
    assert found["longtide"]["hr@5"] == found["transitions"]["hr@5"] == 1.0


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
def test_a_log_without_targets_is_refused(split):
    with pytest.raises(InvalidInput, match=f"the {split} split of this log leaves no user"):
        hold_out(sequences("aa", "aa"), split)
