"""What people turn to once more: how likely what they had is next, by how long ago and how often they had it.

These two are what repeat consumption follows most (Anderson, Kumar, Tomkins & Vassilvitskii 2014, "The dynamics of
repeat consumption"). Pure functions on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.candidates import NOTHING, Scored

RECENCIES = 11
FREQUENCIES = 10
LOOKED_BACK = 2_000
"""Of the last events of a history; what was had before them alone is as good as forgotten."""
MOST = 0.95
"""Of an answer's probability that what was had may take."""


@dataclass(frozen=True, slots=True, eq=False)
class RepeatWeights:
    """How often it was something had that came next."""

    hazard: NDArray[np.float64]
    """(RECENCIES, FREQUENCIES) of the moments at which something had been had last so many events ago (1, 2 to 3, 4 to
    7 ...), and so often (1, 2 to 3, 4 to 7 ...), the share at which it was next."""


@dataclass(frozen=True, slots=True, eq=False)
class Had:
    """Items that a history holds, each once, and the row and the column of the weights that they fall into."""

    items: NDArray[np.int64]
    """(H,) ascending."""
    recency: NDArray[np.int64]
    """(H,)"""
    frequency: NDArray[np.int64]
    """(H,)"""


def had_in(history: NDArray[np.int64], chosen: NDArray[np.bool_]) -> Had:
    """What the last events of a history (N,), in time order, are about, and were not the last word against it."""
    backwards, wanted = history[-LOOKED_BACK:][::-1], chosen[-LOOKED_BACK:][::-1]
    items, ago, count = np.unique(backwards, return_index=True, return_counts=True)
    kept = wanted[ago]
    return Had(items[kept], _class(ago[kept] + 1, RECENCIES), _class(count[kept], FREQUENCIES))


def _class(numbers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """By doubling: 1, 2 to 3, 4 to 7 ...; the last one has no end."""
    return np.minimum(np.log2(numbers).astype(np.int64), classes - 1)


def repeat_votes(weights: RepeatWeights, history: NDArray[np.int64], chosen: NDArray[np.bool_]) -> Scored:
    """What was had in a history (N,), with how likely each item is next: together less than 1, for there is news.

    chosen (N,): which events wanted their item; what was disliked last is nothing to come back to.
    """
    if not len(history):
        return NOTHING
    had = had_in(history, chosen)
    rows, columns = weights.hazard.shape
    probability = weights.hazard[np.minimum(had.recency, rows - 1), np.minimum(had.frequency, columns - 1)]
    return Scored(had.items, probability * min(1.0, MOST / max(float(probability.sum()), MOST)))
