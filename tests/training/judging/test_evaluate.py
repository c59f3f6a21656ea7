from dataclasses import replace
from math import log2

import numpy as np
import pytest
import torch

from longtide_server.errors import InvalidInput
from longtide_server.ranking import Fusion, rank
from longtide_server.sources.behavior import BehaviorWeights, predicted_value, type_probability
from longtide_server.sources.candidates import Candidates, Source, TransitionSettings
from longtide_server.training.dataset import Holdout, Sequences
from longtide_server.training.judging import evaluate as module
from longtide_server.training.judging.baselines import best_unseen, transition_lists
from longtide_server.training.judging.evaluate import (
    BehaviorMetrics,
    _biases,
    behavior_metrics,
    compare,
    evaluate,
    hold_out,
    measure,
)
from longtide_server.training.learning.heads import BehaviorHead
from longtide_server.training.learning.model import ModelConfig
from longtide_server.training.metrics import rank_of_target
from longtide_server.training.settings import settings_for, with_overrides

pytestmark = pytest.mark.usefixtures("one_thread")


def sequences(*words: str) -> Sequences:
    """A user a word, an item a letter; letters are numbered by falling frequency, then by the alphabet.

    The first event of everyone is at 0 s, the second at 1 s.
    """
    text = "".join(words)
    letters = sorted(set(text), key=lambda letter: (-text.count(letter), letter))
    lengths = [len(word) for word in words]
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(words))),
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


def overall(holdout: Holdout) -> dict[str, dict[str, float]]:
    return evaluate(holdout, {}, quick(holdout.history), lambda _: None).overall


def spelled(holdout: Holdout) -> list[str]:
    """Every target's item."""
    return ["-" if not target else holdout.history.item_ids[target - 1] for target in holdout.targets]


def lists(*rows: list[int]) -> np.ndarray:
    """Lists of item numbers, filled up with empty places."""
    return np.array([row + [0] * (20 - len(row)) for row in rows], np.int64)


# Metrics of lists


def test_metrics_are_means_over_the_users_and_coverage_is_of_the_catalogue():
    first = [4, 1, 2]
    seventh = [1, 2, 3, 4, 5, 7, 6, 8]  # in the first ten, not in the first five
    found = measure(lists(first, seventh, [1, 2]), np.array([4, 6, 8]), item_count=8)
    assert (found["hr@5"], found["hr@10"], found["hr@20"]) == (0.3333, 0.6667, 0.6667)
    assert (found["ndcg@5"], found["ndcg@10"]) == (0.3333, round((1 + 1 / log2(8)) / 3, 4))
    assert (found["mrr@5"], found["mrr@10"]) == (0.3333, round((1 + 1 / 7) / 3, 4))
    assert found["coverage@10"] == 1.0


def test_places_that_hold_nothing_cover_nothing_and_hit_nothing():
    found = measure(lists([1]), np.array([4]), item_count=4)
    assert (found["coverage@10"], found["hr@20"]) == (0.25, 0.0)


def test_a_target_that_the_catalogue_does_not_hold_is_a_miss_also_against_empty_places():
    found = measure(lists([1], [2]), np.array([0, 2]), item_count=4)
    assert (found["hr@5"], found["hr@20"], found["mrr@20"]) == (0.5, 0.5, 0.5)


def test_only_the_first_ten_count_as_shown():
    assert measure(np.arange(1, 21)[None], np.array([20]), item_count=20)["coverage@10"] == 0.5


# The tie rule


def test_every_way_to_rank_puts_the_smaller_number_of_equals_first():
    score = np.array([0.0, 0.2, 0.4, 0.2, 0.4, 0.1, 0.4])  # of items 1 to 6, after the padding
    order = [2, 4, 6, 1, 3, 5]
    assert best_unseen(score, np.array([], np.int64), 6).tolist() == order

    probability = np.zeros((6, len(Source)))
    probability[:, Source.ENCODER - 1] = score[1:]
    fused = rank(Candidates(np.arange(1, 7), probability), Fusion(), list(Source), item_count=6, limit=6)
    assert fused.items.tolist() == order

    places = rank_of_target(np.repeat(score[None, 1:], 6, axis=0), np.array(order) - 1)
    assert places.tolist() == [0, 1, 2, 3, 4, 5]


def test_ties_do_not_go_to_what_becomes_popular_later():
    # In the log c has three events, a and b two each; in the histories, everything has one.
    log = sequences("bxc", "ayc", "czb", "dda")
    holdout = hold_out(log, "leave-one-out")
    assert spelled(holdout) == ["c", "c", "b", "a"]
    assert holdout.history.item_ids == ("d", "a", "b", "c", "x", "y", "z")


# Slices


def held_out(history, targets, nexts=None, types=None, values=None):
    """Targets of the first users, in order, and what comes right after their histories: without `nexts`, the targets.

    types: what each did with the target, the first being the type of the event after the history; views without.
    """
    kinds = [[1]] * len(targets) if types is None else types
    outcomes = np.zeros((len(targets), 13), bool)
    for row, of_one in enumerate(kinds):
        outcomes[row, of_one] = True
    return Holdout(
        history=history,
        users=np.arange(len(targets)),
        targets=np.array(targets),
        outcomes=outcomes,
        times=np.zeros(len(targets)),
        next_items=np.array(targets if nexts is None else nexts),
        next_types=np.array([of_one[0] for of_one in kinds]),
        next_values=np.array([np.nan] * len(targets) if values is None else values, np.float32),
    )


def test_slices_divide_the_users_and_each_is_measured_alone():
    # Eva has a history of ten, bob of one, cho none. Items a to e have 7, 1, 1, 1 and 1 events.
    history = sequences("aaaaaabcde", "a", "")
    assert history.item_ids == ("a", "b", "c", "d", "e")
    holdout = held_out(history, [0, 3, 1], types=[[1], [1, 4], [4]])
    found = compare({"ours": lists([1], [2, 3], [4, 1]), "theirs": lists([1], [2], [1])}, holdout)

    def ndcg(slices):
        return {one.name: (one.users, *(one.metrics[way]["ndcg@10"] for way in ("ours", "theirs"))) for one in slices}

    assert found.users == 3
    assert [found.overall[way]["hr@10"] for way in ("ours", "theirs")] == [0.6667, 0.3333]
    second = 0.6309  # 1 / log2(3)
    assert ndcg(found.slices.history_length) == {
        "cold": (1, second, 1.0),
        "short": (1, second, 0.0),
        "medium": (1, 0.0, 0.0),
    }
    assert ndcg(found.slices.target_popularity) == {
        "head": (1, second, 1.0),
        "mid": (1, second, 0.0),
        "new": (1, 0.0, 0.0),
    }
    assert ndcg(found.slices.outcome) == {
        "view": (2, 0.3155, 0.0),
        "purchase": (2, second, 0.5),
    }
    assert [(one.span, one.users) for one in found.slices.history_length_doubling] == [
        ("0", 1),
        ("1", 1),
        ("8 to 15", 1),
    ]


# Whole evaluations


def test_transitions_are_counted_as_longtide_counts_them(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "transition_lists", lambda *args, **_: asked.append(args[2]) or transition_lists(*args))
    holdout = hold_out(sequences("abcd", "bcda", "cdab", "dabc"), "leave-one-out")
    settings = with_overrides(quick(holdout.history), {"transitions.lags": "3", "transitions.decay": "0.4"})
    evaluate(holdout, {}, settings, lambda _: None)
    assert asked == [TransitionSettings(3, 0.4)]


def test_baselines_are_what_a_hand_computes():
    log = sequences("abd", "ec", "ec", "bd")  # only the first user has three events: d is held back
    holdout = hold_out(log, "leave-one-out")
    assert holdout.history.item_ids == ("b", "c", "e", "a", "d")
    assert (holdout.users.tolist(), spelled(holdout)) == ([0], ["d"])

    found = overall(holdout)
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
    found = overall(holdout)
    assert found["transitions"]["hr@5"] == found["longtide"]["hr@5"] == 1.0  # one item is left for each
    assert set(found["longtide"]) == set(found["popularity"])


def test_the_temporal_split_holds_back_what_came_after_nine_tenths():
    # 20 events at 0 to 3 s. The quantile .9 of the times is 3 s: what happened at 3 s is held back.
    log = sequences("abcd", "bcda", "cdab", "dabc", "abcb")
    holdout = hold_out(log, "temporal")
    assert holdout.history.lengths.tolist() == [3, 3, 3, 3, 3]
    assert holdout.users.tolist() == [0, 1, 2, 3]  # the last user did nothing new then
    found = overall(holdout)
    assert found["longtide"]["hr@5"] == found["transitions"]["hr@5"] == 1.0


def test_the_temporal_split_counts_users_who_came_after_it_and_they_get_what_is_popular():
    # Eight histories of three, in which a, b, c and d have six events each. Two users come later: the first wants b,
    # the second in the order of the alphabet, and the other one z, which is not there yet.
    log = sequences(*["abcd", "bcda", "cdab", "dabc"] * 2, "b", "z")
    log = replace(log, times=np.where(np.arange(34) < 32, log.times, 9.0))
    holdout = hold_out(log, "temporal")
    assert holdout.history.item_ids == ("a", "b", "c", "d")
    assert spelled(holdout) == [*"dabcdabc", "b", "-"]

    found = evaluate(holdout, {}, quick(holdout.history), lambda _: None)
    assert found.users == 10
    for way in ("longtide", "transitions", "popularity"):
        assert found.overall[way]["hr@10"] == 0.9
        assert found.overall[way]["ndcg@10"] == 0.8631  # (8 + 1 / log2(3)) / 10: one item is left for the eight
        cold, short = (one.metrics[way]["ndcg@10"] for one in found.slices.history_length)
        assert (cold, short) == (0.3155, 1.0)
    assert [(one.name, one.users) for one in found.slices.history_length] == [("cold", 2), ("short", 8)]
    assert [(one.name, one.users) for one in found.slices.target_popularity] == [
        ("head", 2), ("mid", 3), ("tail", 4), ("new", 1),
    ]  # fmt: skip
    assert found.popularity_bias["longtide"].users == 8
    assert found.popularity_bias["longtide"].ratio == 1.0


def test_where_what_was_seen_is_included_repeats_are_hit():
    # Everyone goes round in a ring of three: what was had three steps ago is next.
    log = sequences(*["abcabcabca", "bcdbcdbcdb", "cdacdacdac", "dabdabdabd"] * 10)
    holdout = hold_out(log, "leave-one-out", include_seen=True)
    assert spelled(holdout) == [*"abcd"] * 10
    found = evaluate(holdout, {}, quick(holdout.history), lambda _: None, include_seen=True).overall
    assert list(found) == ["longtide", "unseen", "transitions", "popularity", "had"]
    assert found["had"]["mrr@5"] == 0.3333  # all were had equally often, the next one the longest ago
    assert found["longtide"]["mrr@5"] >= 0.5
    assert found["unseen"]["hr@20"] == 0.0


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
def test_a_log_without_targets_is_refused(split):
    with pytest.raises(InvalidInput, match=f"the {split} split of this log leaves no user"):
        hold_out(sequences("aa", "aa"), split)


def test_no_moment_divides_a_log_without_times():
    with pytest.raises(InvalidInput, match="no moment divides it"):
        hold_out(sequences("abc", "bca"), "temporal", times_are_real=False)
    assert len(hold_out(sequences("abc", "bca"), "leave-one-out", times_are_real=False).users) == 2


def test_a_moment_that_most_of_the_log_shares_divides_nothing():
    """As where an import gave all that it had no time of the same one."""
    log = sequences(*["abc"] * 10)
    log = replace(log, times=np.where(np.arange(30) < 28, 5.0, np.arange(30)))
    with pytest.raises(InvalidInput, match=r"93% of the events of this log share its first moment.*leave-one-out"):
        hold_out(log, "temporal")


def test_a_moment_before_which_nobody_did_two_things_leaves_nothing_to_learn_from():
    log = replace(sequences(*"abcdefgh", "ab"), times=np.array([*range(9), 9.0]))
    with pytest.raises(InvalidInput, match="the temporal split of this log leaves nobody with two events to learn"):
        hold_out(log, "temporal")


# The next behaviour


def test_the_next_type_and_value_are_measured_next_to_what_knows_nothing():
    """Bob viewed and gave 2 and 4, cho did nothing yet; the held-back events are a purchase of 5 and a view of 3."""
    history = replace(sequences("ab", ""), types=np.array([1, 1]), values=np.array([2, 4], np.float32))
    holdout = held_out(history, [2, 1], nexts=[1, 2], types=[[4], [1]], values=[5, 3])
    # A head that always says `purchase` and 4: only its biases are not 0.
    bias = np.zeros(13, np.float32)
    bias[4] = 1.0
    weights = BehaviorWeights(
        np.zeros((13, 2), np.float32), bias, np.zeros((2, 6), np.float32), np.zeros(2, np.float32),
        np.zeros(2, np.float32), np.array([0.5], np.float32), np.array([3.0, 2.0], np.float32),
    )  # fmt: skip
    found = behavior_metrics(weights, np.eye(2, dtype=np.float32), np.zeros((3, 2), np.float32), holdout)
    assert found == BehaviorMetrics(
        type_accuracy=0.5,  # bob's purchase
        type_accuracy_most_frequent=0.5,  # cho's view
        valued_events=2,
        value_mae=1.0,  # 4 instead of 5 and of 3
        value_mae_user_median=1.0,  # 3 instead of 5, and of 3
        value_mae_biases=1.0385,  # 3 - 1 / 26 instead of 5, and 3 + 1 / 26 of 3
    )


def test_biases_are_what_a_hand_computes():
    """Bob gave a 2 and b 4, ann gave a 5; of cho nothing is known. The mean is 11 / 3."""
    history = replace(sequences("ab", "a", ""), values=np.array([2, 4, 5], np.float32))
    item_a, item_b = (2 + 5 - 22 / 3) / 27, (4 - 11 / 3) / 26
    bob, ann = (2 + 4 - 22 / 3 - item_a - item_b) / 12, (5 - 11 / 3 - item_a) / 11
    holdout = held_out(history, [1, 2, 1])  # a, b, a
    expected = [11 / 3 + item_a + bob, 11 / 3 + item_b + ann, 11 / 3 + item_a]
    assert _biases(holdout, np.arange(3)).tolist() == pytest.approx(expected)


def test_events_without_a_value_or_outside_the_catalogue_do_not_count():
    history = replace(sequences("ab", "b"), values=np.array([2, 4, 1], np.float32))
    holdout = held_out(history, [0, 1], values=[5, np.nan])
    head = BehaviorHead(ModelConfig(2, dim=2)).eval()
    found = behavior_metrics(head.weights(), np.eye(2, dtype=np.float32), np.zeros((3, 2), np.float32), holdout)
    assert (found.valued_events, found.value_mae, found.value_mae_user_median, found.value_mae_biases) == (
        *(0, None, None, None),
    )


def test_where_nobody_had_a_value_before_there_is_no_median():
    holdout = held_out(sequences("ab"), [1], values=[5])
    head = BehaviorHead(ModelConfig(2, dim=2)).eval()
    found = behavior_metrics(head.weights(), np.eye(2, dtype=np.float32), np.zeros((3, 2), np.float32), holdout)
    assert found.value_mae is not None
    assert (found.value_mae_user_median, found.value_mae_biases) == (None, None)


def test_the_median_of_values_however_large_is_a_number():
    history = replace(sequences("ab", ""), values=np.array([3e38, 3e38], np.float32))
    holdout = held_out(history, [1, 2], values=[3e38, -3e38])
    head = BehaviorHead(ModelConfig(2, dim=2)).eval()
    found = behavior_metrics(head.weights(), np.eye(2, dtype=np.float32), np.zeros((3, 2), np.float32), holdout)
    assert found.value_mae_user_median == pytest.approx(3e38)  # right once, and 6e38 off


def test_the_arrays_of_a_head_say_what_the_head_says():
    torch.manual_seed(0)
    head = BehaviorHead(ModelConfig(3, dim=4, value_mean=3.0, value_std=2.0)).eval()
    query, item = torch.nn.functional.normalize(torch.randn(2, 5, 4), dim=2)
    with torch.inference_mode():
        types, values = torch.softmax(head.type_logits(query), dim=1).numpy(), head.values(query, item).numpy()
    np.testing.assert_allclose(type_probability(head.weights(), query.numpy()), types, rtol=1e-4)
    np.testing.assert_allclose(predicted_value(head.weights(), query.numpy(), item.numpy()), values, rtol=1e-4)
