"""Counts how often people turned to something that they had before, by how long ago and how often they had it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.repeats import FREQUENCIES, LOOKED_BACK, RECENCIES, RepeatWeights, had_in
from longtide_server.training.dataset import Sequences, drawn

MOMENTS = 50_000
"""Looked at, at most: drawn from all, so that every user counts by what they did."""
PRIOR = 50.0
"""Moments that a class is believed to have had like the classes next to it, before any is counted."""


def count_repeats(sequences: Sequences) -> RepeatWeights | None:
    """What the log says of turning to something once more; None where nobody did."""
    if sequences.firsts().all():
        return None
    starts, chosen = sequences.offsets[sequences.owner], sequences.chosen
    moments = np.flatnonzero(chosen & (np.arange(len(starts)) > starts))
    moments = moments[drawn(len(moments), MOMENTS, 0)]
    shape = (RECENCIES, FREQUENCIES)
    there, next_ = np.zeros(shape), np.zeros(shape)
    for moment in moments.tolist():
        before = slice(max(int(starts[moment]), moment - LOOKED_BACK), moment)
        had = had_in(sequences.items[before], chosen[before])
        np.add.at(there, (had.recency, had.frequency), 1.0)
        place = int(np.searchsorted(had.items, sequences.items[moment]))
        if place < len(had.items) and had.items[place] == sequences.items[moment]:
            next_[had.recency[place], had.frequency[place]] += 1.0
    return RepeatWeights(_smoothed(there, next_)) if next_.any() else None


def _smoothed(there: NDArray[np.float64], next_: NDArray[np.float64]) -> NDArray[np.float64]:
    """next_ / there, of the same shape: where little is known, like what was nearer, and less often."""
    share = np.full(there.shape, next_.sum() / there.sum())
    for row, column in np.ndindex(*there.shape):
        beside = [share[row - 1, column]] * (row > 0) + [share[row, column - 1]] * (column > 0)
        prior = float(np.mean(beside)) if beside else share[0, 0]
        share[row, column] = (next_[row, column] + PRIOR * prior) / (there[row, column] + PRIOR)
    return share
