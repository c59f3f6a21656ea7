"""Measures a log: hold targets back, train on the rest, and compare with popularity and item transitions."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtide_server.candidates import TransitionSettings, transition_votes
from longtide_server.catalog import ItemInfo
from longtide_server.errors import InvalidInput
from longtide_server.recommender import Answer
from longtide_server.snapshot import load_snapshot
from longtide_server.training.counts import count_popularity, count_transitions
from longtide_server.training.dataset import Holdout, Sequences, hold_out_after, hold_out_last
from longtide_server.training.metrics import NOT_RANKED, coverage_at_k, hr_at_k, mrr_at_k, ndcg_at_k
from longtide_server.training.offline import OfflineRecommender, recommended_items
from longtide_server.training.pipeline import MIN_EVENTS, Report, train_and_publish
from longtide_server.training.settings import Settings

Split = Literal["leave-one-out", "temporal"]
CUTS = (5, 10, 20)
TEMPORAL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of one way to recommend, by name, for example `ndcg@10`."""

    name: str
    metrics: dict[str, float]


def hold_out(sequences: Sequences, split: Split) -> Holdout:
    """Targets of a split: everyone's last event, or the first new item after the time at which 90 % had happened."""
    if split == "leave-one-out":
        holdout = hold_out_last(sequences, MIN_EVENTS)
    else:
        holdout = hold_out_after(sequences, float(np.quantile(sequences.times, TEMPORAL_SHARE)))
    if not len(holdout.users):
        raise InvalidInput(f"the {split} split of this log leaves no user with a target to be measured by")
    return holdout


def evaluate(
    holdout: Holdout, infos: Mapping[str, ItemInfo], settings: Settings, report: Report
) -> tuple[Evaluation, ...]:
    """Longtide, transitions and popularity on the same targets, full ranking, items of the history removed."""
    with tempfile.TemporaryDirectory(prefix="longtide-evaluate-") as scratch:
        train_and_publish(holdout.history, infos, settings, Path(scratch), report)
        longtide = asyncio.run(_recommend(Path(scratch), holdout))
    lists = {
        "longtide": longtide,
        "transitions": _transition_lists(holdout, settings.transitions),
        "popularity": _popularity_lists(holdout),
    }
    return tuple(Evaluation(name, measure(items, holdout)) for name, items in lists.items())


def measure(items: NDArray[np.int64], holdout: Holdout) -> dict[str, float]:
    """HR, NDCG and MRR at 5, 10 and 20, and the share of the catalogue that the first 10 show, of lists (V, 20)."""
    hit = items == holdout.targets[:, None]
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1), NOT_RANKED)
    metrics: dict[str, float] = {}
    for k in CUTS:
        metrics |= {f"hr@{k}": hr_at_k(ranks, k), f"ndcg@{k}": ndcg_at_k(ranks, k), f"mrr@{k}": mrr_at_k(ranks, k)}
    shown = np.where(items > 0, items, -1)
    metrics["coverage@10"] = coverage_at_k(shown, 10, holdout.history.item_count)
    return {name: round(value, 4) for name, value in metrics.items()}


async def _recommend(directory: Path, holdout: Holdout) -> NDArray[np.int64]:
    snapshot = load_snapshot(directory)
    offline = OfflineRecommender(snapshot, holdout.history)
    try:
        ids = [holdout.history.user_ids[user] for user in holdout.users]
        answers: Sequence[Answer] = [answer async for answer in offline.answers(ids, max(CUTS))]
    finally:
        await offline.close()
    return recommended_items(answers, snapshot, max(CUTS))


def _transition_lists(holdout: Holdout, settings: TransitionSettings) -> NDArray[np.int64]:
    transitions = count_transitions(holdout.history, settings)
    popularity = count_popularity(holdout.history)
    lists = []
    for user in holdout.users:
        seen = holdout.history.items[holdout.history.of(user)]
        votes = transition_votes(transitions, seen[-settings.lags :], settings.decay)
        score = popularity * 1e-6  # fills up, and decides between what transitions leave equal
        score[votes.items] += votes.probability
        lists.append(_best(score, seen))
    return np.stack(lists)


def _popularity_lists(holdout: Holdout) -> NDArray[np.int64]:
    popularity = count_popularity(holdout.history)
    return np.stack([_best(popularity.copy(), holdout.history.items[holdout.history.of(u)]) for u in holdout.users])


def _best(score: NDArray[np.float64], seen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best 20 unseen items of a score (I + 1,), 0 where there are fewer; ties go to the smaller item."""
    score[seen] = -np.inf
    score[0] = -np.inf
    order = np.argsort(-score, kind="stable")[: max(CUTS)]
    best = np.where(np.isfinite(score[order]), order, 0)
    return np.pad(best, (0, max(CUTS) - len(best)))
