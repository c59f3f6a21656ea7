"""The content source: items that are like somebody's last items by what they are.

A mixture over the last items, the last one counting most, each of which brings what is like it by a softmax over the
cosines of content vectors. The sum under a softmax is nearly the same for most items, so the mean one stands for all:
then a few items can be asked about without the others. Pure functions on plain data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.candidates import Scored

SAMPLED = 256
"""Items, at most, of which the mean sum under the softmax is taken."""


class ContentSource:
    """The content vectors of a catalogue."""

    def __init__(self, vectors: NDArray[np.float32], temperature: float) -> None:
        """vectors (I + 1, D) of length 1 by item number, zeros for items of which nothing is known."""
        self.vectors = vectors
        self.temperature = temperature
        known = np.flatnonzero(vectors.any(axis=1))
        sample = known[np.linspace(0, len(known) - 1, min(SAMPLED, len(known))).astype(np.int64)]
        odds = np.exp((vectors[sample] @ vectors[known].T - 1.0) / temperature)  # (sample, known)
        self.mean_sum = float(np.exp(np.log(odds.sum(axis=1)).mean())) if len(known) else 1.0
        """Of exp((cosine - 1) / temperature) over all items, the geometric mean of what it is for an item."""

    def profile(self, vectors: NDArray[np.float32], decay: float) -> Profile | None:
        """Of the last items' content vectors (R, D), in time order; a weight is `decay` times the next one's.

        Zeros are of an item of which nothing is known; none where that is all.
        """
        weight = decay ** np.arange(len(vectors) - 1, -1, -1, dtype=np.float32)
        known = vectors.any(axis=1)
        if not known.any():
            return None
        return Profile(self, vectors[known], weight[known] / weight[known].sum())


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What somebody turned to last, by content; R items, 1 or more."""

    source: ContentSource
    vectors: NDArray[np.float32]
    """(R, D) of length 1."""
    weight: NDArray[np.float32]
    """(R,) above 0, with a sum of 1."""

    @property
    def mean(self) -> NDArray[np.float32]:
        """(D,) the weighted mean."""
        return self.weight @ self.vectors

    def of(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """The probability (C,) of items of any content vectors (C, D), of length 1; of zeros it is 0."""
        odds = np.exp((vectors @ self.vectors.T - 1.0) / self.source.temperature)  # (C, R)
        probability = (odds @ self.weight).astype(np.float64) / self.source.mean_sum
        return np.where(vectors.any(axis=1), np.minimum(probability, 1.0), 0.0)

    def of_items(self, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probability (C,) of items (C,) of the catalogue."""
        return self.of(self.source.vectors[items])

    def nearest(self, count: int) -> Scored:
        """The items of the catalogue, at most `count`, that are nearest to the mean of the last ones."""
        cosine = self.source.vectors @ self.mean  # (I + 1,)
        best = np.argpartition(-cosine, min(count, len(cosine) - 1))[:count]
        probability = self.of_items(best)
        there = probability > 0.0
        return Scored(best[there].astype(np.int64), probability[there])
