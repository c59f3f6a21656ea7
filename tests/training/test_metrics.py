import csv
import json
import subprocess
import sys
from math import log2
from pathlib import Path

import numpy as np
import pytest

from longtide_server.training.metrics import (
    NOT_RANKED,
    coverage_at_k,
    hr_at_k,
    mrr_at_k,
    ndcg_at_k,
    rank_of_target,
)

SCORE = Path(__file__).parents[3] / "shared" / "eval" / "score.py"


def test_a_target_in_the_first_place_scores_one_everywhere():
    ranks = np.array([0])
    assert (hr_at_k(ranks, 10), ndcg_at_k(ranks, 10), mrr_at_k(ranks, 10)) == (1.0, 1.0, 1.0)


def test_a_lower_place_counts_less():
    ranks = np.array([2])
    assert hr_at_k(ranks, 10) == 1.0
    assert ndcg_at_k(ranks, 10) == 0.5  # 1 / log2(4)
    assert mrr_at_k(ranks, 10) == pytest.approx(1 / 3)


def test_rank_k_is_the_first_outside_the_list():
    assert hr_at_k(np.array([9]), 10) == 1.0
    assert hr_at_k(np.array([10]), 10) == ndcg_at_k(np.array([10]), 10) == mrr_at_k(np.array([10]), 10) == 0.0


@pytest.mark.parametrize("absent", [-1.0, float("inf")])
def test_a_target_that_is_not_listed_scores_nothing_but_counts(absent):
    ranks = np.array([0.0, absent])
    assert (hr_at_k(ranks, 10), ndcg_at_k(ranks, 10), mrr_at_k(ranks, 10)) == (0.5, 0.5, 0.5)


def test_the_mean_is_over_all_users():
    ranks = np.array([0, 1, 2, 50])
    assert hr_at_k(ranks, 10) == 0.75
    assert ndcg_at_k(ranks, 10) == pytest.approx((1 + 1 / log2(3) + 0.5) / 4)
    assert mrr_at_k(ranks, 10) == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)


@pytest.mark.parametrize("metric", [hr_at_k, ndcg_at_k, mrr_at_k])
def test_no_users_or_no_places_are_refused(metric):
    with pytest.raises(ValueError, match="no ranks"):
        metric(np.array([], dtype=np.int64), 10)
    with pytest.raises(ValueError, match="k is 0"):
        metric(np.array([0]), 0)


def test_the_rank_is_the_number_of_better_items():
    scores = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    assert rank_of_target(scores, np.array([1, 0])).tolist() == [0, 2]


def test_of_equal_scores_the_smaller_index_is_first():
    scores = np.ones((3, 3))
    assert rank_of_target(scores, np.array([0, 1, 2])).tolist() == [0, 1, 2]


def test_seen_items_stand_in_nobodys_way():
    scores = np.array([[0.9, 0.8, 0.7]])
    seen = np.array([[True, False, False]])
    assert rank_of_target(scores, np.array([2]), seen).tolist() == [1]


def test_a_seen_target_is_not_ranked():
    seen = np.array([[True, False]])
    assert rank_of_target(np.array([[0.9, 0.1]]), np.array([0]), seen).tolist() == [NOT_RANKED]


def test_a_rank_is_the_place_in_a_stable_descending_sort():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (50, 20)).astype(np.float32)  # many ties
    target = rng.integers(0, 20, 50)
    order = np.argsort(-scores, axis=1, kind="stable")
    assert rank_of_target(scores, target).tolist() == [
        row.tolist().index(t) for row, t in zip(order, target, strict=True)
    ]


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        rank_of_target(np.array([[0.5, np.nan]]), np.array([1]))


def test_coverage_counts_each_item_of_the_first_k_once():
    recommended = np.array([[0, 1, 9], [1, 2, 9], [-1, -1, -1]])
    assert coverage_at_k(recommended, 2, 10) == 0.3


@pytest.mark.skipif(not SCORE.is_file(), reason="the independent scorer is not beside the repository")
def test_the_independent_scorer_agrees(tmp_path):
    rng = np.random.default_rng(0)
    users, items, k = 40, 30, 10
    scores = rng.random((users, items))
    target = rng.integers(0, items, users)
    seen = rng.random((users, items)) < 0.2
    seen[np.arange(users), target] = False
    order = np.argsort(-np.where(seen, -1.0, scores), axis=1, kind="stable")[:, :k]
    _write_rows(tmp_path / "targets.csv", enumerate(target))
    _write_rows(tmp_path / "train.csv", np.argwhere(seen))
    lines = [json.dumps({"user_id": str(user), "items": row.tolist()}) for user, row in enumerate(order)]
    (tmp_path / "recs.jsonl").write_text("\n".join(lines))

    command = [sys.executable, SCORE, "score", "recs.jsonl", "--targets", "targets.csv", "--train", "train.csv"]
    answer = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)

    ranks = rank_of_target(scores, target, seen)
    assert answer["users"] == users
    assert answer["lists_with_seen_items"] == 0
    assert answer["hr@10"] == round(hr_at_k(ranks, k), 4)
    assert answer["ndcg@10"] == round(ndcg_at_k(ranks, k), 4)
    assert answer["mrr@10"] == round(mrr_at_k(ranks, k), 4)
    assert answer["items_covered"] == round(coverage_at_k(order, k, items) * items)


def _write_rows(path: Path, rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id"])
        writer.writerows(rows)
