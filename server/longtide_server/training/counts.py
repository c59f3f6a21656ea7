"""Counts, no learning: what is popular, and what follows what. Two sources of the server, and the two baselines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtide_server.candidates import Transitions, TransitionSettings
from longtide_server.training.dataset import Sequences

KEPT_PER_ITEM = 500


def count_popularity(sequences: Sequences) -> NDArray[np.float64]:
    """(I + 1,) each item's share of all events; 0 for padding."""
    counts = np.bincount(sequences.items, minlength=sequences.item_count + 1).astype(np.float64)
    return np.asarray(counts / max(1.0, counts.sum()))


def count_transitions(sequences: Sequences, settings: TransitionSettings) -> Transitions:
    """What followed each item 1 to `lags` events later, nearer ones counting more; each row's most frequent items.

    A row's probabilities are of all that followed, also of what was cut off.
    """
    width = sequences.item_count + 1
    owner = np.repeat(np.arange(sequences.user_count), sequences.lengths)
    keys: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    weights: list[NDArray[np.float64]] = [np.zeros(0)]
    for lag in range(1, settings.lags + 1):
        same = owner[lag:] == owner[:-lag]
        key = sequences.items[:-lag][same] * width + sequences.items[lag:][same]
        distinct, count = np.unique(key, return_counts=True)
        keys.append(distinct)
        weights.append(count.astype(np.float64) * settings.decay ** (lag - 1))
    pairs, where = np.unique(np.concatenate(keys), return_inverse=True)
    weight = np.bincount(where, weights=np.concatenate(weights), minlength=len(pairs))
    before, after = pairs // width, pairs % width
    total = np.bincount(before, weights=weight, minlength=width)
    order = np.lexsort((after, -weight, before))
    place = np.arange(len(order)) - np.searchsorted(before, before, side="left")
    kept = order[place < KEPT_PER_ITEM]
    row_sizes = np.bincount(before[kept], minlength=width)
    return Transitions(
        offsets=np.concatenate([[0], np.cumsum(row_sizes)]).astype(np.int64),
        items=after[kept].astype(np.int32),
        probability=(weight[kept] / total[before[kept]]).astype(np.float32),
    )
