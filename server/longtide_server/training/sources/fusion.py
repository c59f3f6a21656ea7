"""Fits how much each source counts, on validation targets that neither the encoder nor the counts have seen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from longtide_server.ranking import Fusion, log_features
from longtide_server.sources.candidates import Source
from longtide_server.training.metrics import NOT_RANKED, hr_at_k, ndcg_at_k
from longtide_server.training.sources.gathering import Told

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4)
EVERY_WEIGHTS = {
    "neighbors": WEIGHTS,
    "transitions": WEIGHTS,
    "content": (*WEIGHTS, 2.0),
    "relations": (0.0, 0.05, 0.1, 0.2, 0.4),
    "popularity": (0.0, 0.05, 0.1, 0.2),
}
"""What is tried of one source after the other, given the others; some say little beside them."""
FAINT = (0.001, 0.03, 0.1, 0.3)
"""Weights of the encoder that are tried where another source is better by itself: with the least of them, it decides
between items that are equal to that source, and no more."""
ROUNDS = 4
FLOORS = (0.03, 0.1, 0.3)
K = 10


@dataclass(frozen=True, slots=True, eq=False)
class LineUp:
    """Candidates of V users side by side, with the place of each user's target."""

    said: Mapping[Source, NDArray[np.float64]]
    """(N,) each: what the sources that say anything say of all users' candidates, one user after the other."""
    places: NDArray[np.int64]
    """(N,) of equal scores, the candidate with the smaller one is first."""
    starts: NDArray[np.int64]
    """(V,) the first row of each user."""
    target: NDArray[np.int64]
    """(V,) the row of each user's target; NOT_RANKED where it is no candidate."""
    item_count: int


def line_up(told: Sequence[Told], targets: NDArray[np.int64], places: NDArray[np.int64]) -> LineUp:
    """Line up the candidates of users with their targets (V,).

    places (I + 1,): of items with equal scores, the one with the smaller place is first.
    """
    if not told:
        nothing = np.zeros(0, np.int64)
        return LineUp({}, nothing, nothing, nothing, len(places) - 1)
    sizes = np.array([len(found.items) for found in told], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    target = np.full(len(targets), NOT_RANKED, np.int64)
    for user, (found, item) in enumerate(zip(told, targets.tolist(), strict=True)):
        place = int(np.searchsorted(found.items, item))
        if place < len(found.items) and found.items[place] == item:
            target[user] = starts[user] + place
    said = {
        source: np.concatenate([found.said.get(source, np.zeros(len(found.items))) for found in told])
        for source in Source
        if any(source in found.said for found in told)
    }
    items = np.concatenate([found.items for found in told])
    return LineUp(said, places[items], starts, target, len(places) - 1)


def ranks(lined_up: LineUp, fused: NDArray[np.float64]) -> NDArray[np.int64]:
    """(V,) rank of every target by the fused scores (N,)."""
    if not len(fused):
        return np.full(len(lined_up.target), NOT_RANKED, np.int64)
    found = lined_up.target != NOT_RANKED
    owner, row = _owner(lined_up), np.where(found, lined_up.target, 0)
    bar = np.where(found, fused[row], np.inf)[owner]
    ahead = (fused > bar) | ((fused == bar) & (lined_up.places < lined_up.places[row][owner]))
    counted = np.bincount(owner[ahead], minlength=len(lined_up.starts))
    return np.where(found, counted, NOT_RANKED)


def fit_fusion(lined_up: LineUp) -> Fusion:
    """The weights with the best NDCG@10, the encoder's being 1, or less where another source is better by itself.

    A grid of those that are there in every log, small enough to look at whole; then one source after the other, given
    all others, until nothing is gained. No source alone is better than what that leads to: one that would be is where
    it is begun once more, with an encoder that says little (not nothing: it speaks for items that have no events).
    Without targets there is nothing to fit on, and the defaults stand.
    """
    if not len(lined_up.target):
        return Fusion()
    best, best_score, best_sureness = Fusion(), -1.0, -np.inf
    silent = np.zeros(len(lined_up.places))
    for floor in FLOORS:
        columns = {
            source: log_features(lined_up.said.get(source, silent), floor, lined_up.item_count)
            for source in (Source.ENCODER, Source.NEIGHBORS, Source.TRANSITIONS)
        }
        for neighbors, transitions in itertools.product(WEIGHTS, WEIGHTS):
            fused = (
                columns[Source.ENCODER]
                + neighbors * columns[Source.NEIGHBORS]
                + transitions * columns[Source.TRANSITIONS]
            )
            score = ndcg_at_k(ranks(lined_up, fused), K)
            if score < best_score:
                continue
            sureness = _sureness(lined_up, fused)  # decides between equals, of which a small log has many
            if (score, sureness) > (best_score, best_sureness):
                best, best_score, best_sureness = Fusion(1.0, neighbors, transitions, 0.0, floor), score, sureness
    best, best_score = _refined(lined_up, best, best_score)
    for source in lined_up.said:
        if (name := source.name.lower()) in EVERY_WEIGHTS:
            begun = [replace(Fusion(faint, 0.0, 0.0, 0.0, best.floor), **{name: 1.0}) for faint in FAINT]
            scores = [ndcg_at_k(ranks(lined_up, fused_scores(lined_up, fusion)), K) for fusion in begun]
            if max(scores) > best_score:
                best, best_score = _refined(lined_up, begun[int(np.argmax(scores))], max(scores))
    return best


def _sureness(lined_up: LineUp, fused: NDArray[np.float64]) -> float:
    """The mean log-probability of the targets that are candidates, by fused log scores (N,); 0 where none is."""
    there = np.flatnonzero(lined_up.target != NOT_RANKED)
    if not len(there):
        return 0.0
    above = fused - fused.max()
    total = np.bincount(_owner(lined_up), np.exp(above), len(lined_up.starts))  # (V,)
    return float(np.mean(above[lined_up.target[there]] - np.log(total[there])))


def _owner(lined_up: LineUp) -> NDArray[np.int64]:
    """(N,) whose candidate each row is."""
    return np.repeat(np.arange(len(lined_up.starts)), np.diff(lined_up.starts, append=len(lined_up.places)))


def _refined(lined_up: LineUp, fusion: Fusion, score: float) -> tuple[Fusion, float]:
    """Other weights for one source after the other, while the score rises; and what it is then."""
    features = {
        name: log_features(lined_up.said[source], fusion.floor, lined_up.item_count)
        for name in EVERY_WEIGHTS
        if (source := Source[name.upper()]) in lined_up.said
    }
    fused = fused_scores(lined_up, fusion)
    for _ in range(ROUNDS):
        before = score
        for name, feature in features.items():
            rest = fused - getattr(fusion, name) * feature
            scores = {weight: ndcg_at_k(ranks(lined_up, rest + weight * feature), K) for weight in EVERY_WEIGHTS[name]}
            weight = max(scores, key=lambda one: scores[one])
            if scores[weight] > score:
                score, fusion, fused = scores[weight], replace(fusion, **{name: weight}), rest + weight * feature
        if score == before:
            break
    return fusion, score


def fused_scores(lined_up: LineUp, fusion: Fusion) -> NDArray[np.float64]:
    """(N,) the fused log scores of all candidates."""
    fused = np.zeros(len(lined_up.places))
    for source, column in lined_up.said.items():
        if weight := fusion.weights[source - 1]:
            fused += weight * log_features(column, fusion.floor, lined_up.item_count)
    return fused


def source_metrics(lined_up: LineUp, fusion: Fusion) -> dict[str, dict[str, float]]:
    """HR@10 and NDCG@10 on the validation targets: the fusion, and every source that says something alone."""
    if not len(lined_up.target):
        return {}
    orders = {"fusion": fused_scores(lined_up, fusion)}
    orders |= {source.name.lower(): column for source, column in lined_up.said.items()}
    found = {name: ranks(lined_up, fused) for name, fused in orders.items()}
    return {
        name: {"hr@10": round(hr_at_k(rank, K), 4), "ndcg@10": round(ndcg_at_k(rank, K), 4)}
        for name, rank in found.items()
    }
