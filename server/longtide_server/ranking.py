"""Fuses what the sources say into one order. Pure functions on plain data, used by the server and by evaluation alike.

The fusion is a weighted product of the sources' probabilities (a product of experts, Hinton 2002), its weights fitted
on validation data: log score = sum over sources of weight * log((1 - floor) * probability + floor / items).

Of an item that has no events, sources that count events cannot know anything: that they do not bring it says nothing
against it. They are silent of such an item, and another source has their say: what people with the same last items
went on to is most often like these, so content speaks for them where it is known, and else the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.candidates import Candidates, Scored, Source

TIE_WEIGHT = 1e-4
"""Popularity's least weight: it decides between items of which no weighted source knows anything."""
SILENT = (Source.NEIGHBORS, Source.TRANSITIONS)
"""Of items without events."""
SOURCE_NAMES = tuple(source.name.lower() for source in Source)


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
    relations: float = 0.0
    """0 or more."""
    content: float = 0.0
    """0 or more."""
    trending: float = 0.0
    """0 or more. A log that is over cannot say how much the present counts."""
    interests: float = 1.0
    """0 or more. Only asked for users of whom nothing else is known."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """(len(Source),) in the order of Source."""
        return np.array([getattr(self, name, 0.0) for name in SOURCE_NAMES])  # exploration and repeats are not fused

    def weighted(self, weights: Sequence[tuple[Source, float]]) -> Fusion:
        """The same with other weights for some sources."""
        return replace(self, **{source.name.lower(): weight for source, weight in weights}) if weights else self


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


def rank(
    candidates: Candidates,
    fusion: Fusion,
    asked: list[Source],
    item_count: int,
    limit: int,
    learned: int | None = None,
    speaker: Source | None = None,
) -> Ranked:
    """Order candidates by the fusion of the sources that could be asked, best first, at most `limit`.

    Items above the number `learned` have no events; without it, every item has some. Of such items the speaker has the
    say of the sources that are silent, whether it has one of its own or not. Ties go to the smaller item number, the
    more popular item. When the sources that answered all have weight 0, they count equally: a degraded order beats
    none.
    """
    weights = np.zeros(len(Source))
    columns = [source - 1 for source in asked]
    weights[columns] = fusion.weights[columns]
    if not weights.any():
        weights[columns] = 1.0
    weights[Source.POPULARITY - 1] += TIE_WEIGHT
    new = (
        np.zeros(len(candidates.items), np.bool_) if learned is None or speaker is None else candidates.items > learned
    )
    of_new = _spoken_for(weights, speaker) if speaker is not None and new.any() else weights
    say = np.flatnonzero(weights + of_new)  # logarithms are most of the work: none of what counts nothing
    features = np.zeros_like(candidates.probability)
    features[:, say] = log_features(candidates.probability[:, say], fusion.floor, item_count)
    if new.any():  # an item of which popularity knows nothing is as popular as the average one
        features[new, Source.POPULARITY - 1] = -np.log(item_count)
    fused = features[:, say] @ weights[say]  # (C,)
    fused[new] = features[new][:, say] @ of_new[say]
    order = _best(fused, limit)
    share = np.exp(fused - fused.max()) if len(fused) else fused
    contribution = np.zeros((len(order), len(Source)))
    above = features[order][:, say] - np.log(fusion.floor / max(item_count, 1))
    contribution[:, say] = above * np.where(new[order, None], of_new[say], weights[say])
    contribution[new[order], Source.POPULARITY - 1] = 0.0  # it is the average one's, not the item's
    return Ranked(
        items=candidates.items[order],
        score=share[order] / share.sum() if len(fused) else share,
        probability=candidates.probability[order],
        contribution=contribution,
        brought=_brought(candidates.probability, contribution, order, limit, np.maximum(weights, of_new) > TIE_WEIGHT),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Repeats:
    """What a user has had, beside what is new to them: of both, what may appear."""

    had: Scored
    """How likely each item that they had is next."""
    news: float
    """How likely it is something new."""


def with_repeats(ranked: Ranked, repeats: Repeats, limit: int) -> Ranked:
    """Join what is new to a user, which shares its probability, with what they have had, at most `limit` items.

    No item is in both.
    """
    column, had_items, probability = Source.REPEATS - 1, repeats.had.items, repeats.had.probability
    score = np.concatenate([ranked.score * repeats.news, probability])
    score /= max(repeats.news + float(probability.sum()), np.finfo(np.float64).tiny)
    order = _best(score, limit)
    had = np.zeros((len(had_items), len(Source)))
    had[:, column] = probability
    brought = np.zeros(had.shape, np.bool_)
    brought[:, column] = True
    return Ranked(
        items=np.concatenate([ranked.items, had_items])[order],
        score=score[order],
        probability=np.concatenate([ranked.probability, had])[order],
        contribution=np.concatenate([ranked.contribution, had])[order],
        brought=np.concatenate([ranked.brought, brought])[order],
    )


def _spoken_for(weights: NDArray[np.float64], speaker: Source) -> NDArray[np.float64]:
    """The weights (sources,) for an item of which some sources are silent: the speaker has theirs too."""
    silent = [source - 1 for source in SILENT]
    moved = weights.copy()
    moved[silent] = 0.0
    moved[speaker - 1] += weights[silent].sum()
    return moved


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
    columns = np.ascontiguousarray(probability.T[has_say])
    bar = np.full(len(has_say), np.inf)  # (sources,) the least of each source's own best `limit`
    bar[has_say] = np.partition(columns, place, axis=1)[:, place]
    brought: NDArray[np.bool_] = (probability[order] >= bar) & (probability[order] > 0)
    alone = np.flatnonzero(~brought.any(axis=1))
    brought[alone, contribution[alone].argmax(axis=1)] = True
    return brought
