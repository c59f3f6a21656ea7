"""Fuses what the sources say into one order. Pure functions on plain data, used by the server and by evaluation alike.

The fusion is a weighted product of the sources' probabilities (a product of experts, Hinton 2002), its weights fitted
on validation data: log score = sum over sources of weight * log((1 - floor) * probability + floor / items).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.candidates import Candidates, Source

TIE_WEIGHT = 1e-4
"""Popularity's least weight: it decides between items of which no weighted source knows anything."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """Weights of a fusion; a source of weight 0 has no say."""

    encoder: float = 1.0
    """0 or more."""
    neighbors: float = 0.5
    """0 or more."""
    transitions: float = 0.3
    """0 or more."""
    popularity: float = 0.0
    """0 or more."""
    floor: float = 0.1
    """Share of every source's probability that is spread over the whole catalogue, above 0 and below 1: what a source
    does not bring, it does not rule out."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """(len(Source),) in the order of Source."""
        return np.array([self.encoder, self.neighbors, self.transitions, self.popularity])


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Candidates in order, best first."""

    items: NDArray[np.int64]
    """(R,)"""
    score: NDArray[np.float64]
    """(R,) share of the fused probability over all candidates; above 0, summing to at most 1."""
    probability: NDArray[np.float64]
    """(R, len(Source)) what every source says."""
    contribution: NDArray[np.float64]
    """(R, len(Source)) how much every source adds to the log score above its floor, 0 or more."""
    brought: NDArray[np.bool_]
    """(R, len(Source)) whether the source alone would have listed the item; where none would, the strongest one."""


def log_features(probability: NDArray[np.float64], floor: float, item_count: int) -> NDArray[np.float64]:
    """Probabilities (C, sources) to floored log-probabilities of the same shape."""
    return np.log((1.0 - floor) * probability + floor / max(item_count, 1))


def rank(candidates: Candidates, fusion: Fusion, asked: list[Source], item_count: int, limit: int) -> Ranked:
    """Order candidates by the fusion of the sources that could be asked, best first, at most `limit`.

    Ties go to the smaller item number, the more popular item. When the sources that answered all have weight 0, they
    count equally: a degraded order beats none.
    """
    weights = np.zeros(len(Source))
    columns = [source - 1 for source in asked]
    weights[columns] = fusion.weights[columns]
    if not weights.any():
        weights[columns] = 1.0
    weights[Source.POPULARITY - 1] += TIE_WEIGHT
    features = log_features(candidates.probability, fusion.floor, item_count)
    fused = features @ weights  # (C,)
    order = _best(fused, limit)
    share = np.exp(fused - fused.max()) if len(fused) else fused
    contribution = (features[order] - np.log(fusion.floor / max(item_count, 1))) * weights
    return Ranked(
        items=candidates.items[order],
        score=share[order] / share.sum() if len(fused) else share,
        probability=candidates.probability[order],
        contribution=contribution,
        brought=_brought(candidates.probability, contribution, order, limit, weights > TIE_WEIGHT),
    )


def _best(fused: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """The places of the greatest values, at most `limit`, greatest first, of equal ones the first."""
    if len(fused) <= limit:
        return np.argsort(-fused, kind="stable")
    bar = np.partition(fused, len(fused) - limit)[len(fused) - limit]
    near = np.flatnonzero(fused >= bar)  # few, so that sorting them is nothing
    return near[np.argsort(-fused[near], kind="stable")][:limit]


def _brought(
    probability: NDArray[np.float64],
    contribution: NDArray[np.float64],
    order: NDArray[np.int64],
    limit: int,
    has_say: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """(R, sources) for the candidates in `order`, whose contributions are given: see Ranked.brought."""
    if not len(order):
        return np.zeros((0, probability.shape[1]), bool)
    place = max(0, len(probability) - limit)
    columns = np.ascontiguousarray(probability.T)
    bar = np.partition(columns, place, axis=1)[:, place]  # (sources,) the least of each source's own best `limit`
    brought: NDArray[np.bool_] = (probability[order] >= bar) & (probability[order] > 0) & has_say
    alone = np.flatnonzero(~brought.any(axis=1))
    brought[alone, contribution[alone].argmax(axis=1)] = True
    return brought
