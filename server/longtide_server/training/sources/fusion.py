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
"""Of the encoder, where another source is better by itself; the first one decides between equals."""
ROUNDS = 4
FLOORS = (0.03, 0.1, 0.3)
K = 10


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
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


def judge(told: Sequence[Told], targets: NDArray[np.int64], places: NDArray[np.int64]) -> Judged:
    """Line up the candidates of users with their targets (V,).

    places (I + 1,): of items with equal scores, the one with the smaller place is first.
    """
    if not told:
        nothing = np.zeros(0, np.int64)
        return Judged({}, nothing, nothing, nothing, len(places) - 1)
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
    return Judged(said, places[items], starts, target, len(places) - 1)


def ranks(judged: Judged, fused: NDArray[np.float64]) -> NDArray[np.int64]:
    """(V,) rank of every target by the fused scores (N,)."""
    if not len(fused):
        return np.full(len(judged.target), NOT_RANKED, np.int64)
    found = judged.target != NOT_RANKED
    owner, row = _owner(judged), np.where(found, judged.target, 0)
    bar = np.where(found, fused[row], np.inf)[owner]
    ahead = (fused > bar) | ((fused == bar) & (judged.places < judged.places[row][owner]))
    counted = np.bincount(owner[ahead], minlength=len(judged.starts))
    return np.where(found, counted, NOT_RANKED)


def fit_fusion(judged: Judged) -> Fusion:
    """The weights with the best NDCG@10, the encoder's being 1, or less where another source is better by itself.

    A grid of those that are there in every log, small enough to look at whole; then one source after the other, given
    all others, until nothing is gained. No source alone is better than what that leads to: one that would be is where
    it is begun once more, with an encoder that says little (not nothing: it speaks for items that have no events).
    Without targets there is nothing to fit on, and the defaults stand.
    """
    if not len(judged.target):
        return Fusion()
    best, best_score, best_sureness = Fusion(), -1.0, -np.inf
    silent = np.zeros(len(judged.places))
    for floor in FLOORS:
        columns = {
            source: log_features(judged.said.get(source, silent), floor, judged.item_count)
            for source in (Source.ENCODER, Source.NEIGHBORS, Source.TRANSITIONS)
        }
        for neighbors, transitions in itertools.product(WEIGHTS, WEIGHTS):
            fused = (
                columns[Source.ENCODER]
                + neighbors * columns[Source.NEIGHBORS]
                + transitions * columns[Source.TRANSITIONS]
            )
            score = ndcg_at_k(ranks(judged, fused), K)
            if score < best_score:
                continue
            sureness = _sureness(judged, fused)  # decides between equals, of which a small log has many
            if (score, sureness) > (best_score, best_sureness):
                best, best_score, best_sureness = Fusion(1.0, neighbors, transitions, 0.0, floor), score, sureness
    best, best_score = _refined(judged, best, best_score)
    for source in judged.said:
        if (name := source.name.lower()) in EVERY_WEIGHTS:
            begun = [replace(Fusion(faint, 0.0, 0.0, 0.0, best.floor), **{name: 1.0}) for faint in FAINT]
            scores = [ndcg_at_k(ranks(judged, fused_scores(judged, fusion)), K) for fusion in begun]
            if max(scores) > best_score:
                best, best_score = _refined(judged, begun[int(np.argmax(scores))], max(scores))
    return best


def _sureness(judged: Judged, fused: NDArray[np.float64]) -> float:
    """The mean log-probability of the targets that are candidates, by fused log scores (N,); 0 where none is."""
    there = np.flatnonzero(judged.target != NOT_RANKED)
    if not len(there):
        return 0.0
    above = fused - fused.max()
    total = np.bincount(_owner(judged), np.exp(above), len(judged.starts))  # (V,)
    return float(np.mean(above[judged.target[there]] - np.log(total[there])))


def _owner(judged: Judged) -> NDArray[np.int64]:
    """(N,) whose candidate each row is."""
    return np.repeat(np.arange(len(judged.starts)), np.diff(judged.starts, append=len(judged.places)))


def _refined(judged: Judged, fusion: Fusion, score: float) -> tuple[Fusion, float]:
    """Other weights for one source after the other, while the score rises; and what it is then."""
    features = {
        name: log_features(judged.said[source], fusion.floor, judged.item_count)
        for name in EVERY_WEIGHTS
        if (source := Source[name.upper()]) in judged.said
    }
    fused = fused_scores(judged, fusion)
    for _ in range(ROUNDS):
        before = score
        for name, feature in features.items():
            rest = fused - getattr(fusion, name) * feature
            scores = {weight: ndcg_at_k(ranks(judged, rest + weight * feature), K) for weight in EVERY_WEIGHTS[name]}
            weight = max(scores, key=lambda one: scores[one])
            if scores[weight] > score:
                score, fusion, fused = scores[weight], replace(fusion, **{name: weight}), rest + weight * feature
        if score == before:
            break
    return fusion, score


def fused_scores(judged: Judged, fusion: Fusion) -> NDArray[np.float64]:
    """(N,) the fused log scores of all candidates."""
    fused = np.zeros(len(judged.places))
    for source, column in judged.said.items():
        if weight := fusion.weights[source - 1]:
            fused += weight * log_features(column, fusion.floor, judged.item_count)
    return fused


def source_metrics(judged: Judged, fusion: Fusion) -> dict[str, dict[str, float]]:
    """HR@10 and NDCG@10 on the validation targets: the fusion, and every source that says something alone."""
    if not len(judged.target):
        return {}
    orders = {"fusion": fused_scores(judged, fusion)}
    orders |= {source.name.lower(): column for source, column in judged.said.items()}
    found = {name: ranks(judged, fused) for name, fused in orders.items()}
    return {
        name: {"hr@10": round(hr_at_k(rank, K), 4), "ndcg@10": round(ndcg_at_k(rank, K), 4)}
        for name, rank in found.items()
    }
