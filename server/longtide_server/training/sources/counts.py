"""Counts, no learning: what is popular, and what follows what. Two sources of the server, and the two baselines."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.candidates import Transitions, TransitionSettings
from longtide_server.training.dataset import Sequences

KEPT_PER_ITEM = 500
PAIRS_AT_ONCE = 4_000_000
"""Of an item and a follower: each takes about 100 bytes while they are counted."""


def count_popularity(sequences: Sequences) -> NDArray[np.float64]:
    """(I + 1,) each item's share of all events but dislikes; 0 for padding."""
    counts = np.bincount(sequences.items[sequences.chosen], minlength=sequences.item_count + 1).astype(np.float64)
    return np.asarray(counts / max(1.0, counts.sum()))


def count_transitions(sequences: Sequences, settings: TransitionSettings) -> Transitions:
    """What was chosen 1 to `lags` events after each item, nearer ones counting more; each row's most frequent items.

    A row's probabilities are of all that followed, also of what was cut off. Counted for some items at a time: all
    pairs of a log of millions of events would not fit into memory.
    """
    by_item = np.argsort(sequences.items, kind="stable")  # (N,) events
    begins = np.searchsorted(sequences.items[by_item], np.arange(sequences.item_count + 2))  # (I + 2,) of these
    cuts = np.flatnonzero(np.diff(begins * settings.lags // PAIRS_AT_ONCE, prepend=-1)).tolist()
    owner, chosen = sequences.owner, sequences.chosen
    sizes, items, probabilities = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for first, end in pairwise([*cuts, sequences.item_count + 1]):
        events = by_item[begins[first] : begins[end]]
        before, after, weight = _followers(events, sequences.items, owner, chosen, settings)
        before -= first
        total = np.bincount(before, weights=weight)
        order = np.lexsort((after, -weight, before))
        place = np.arange(len(order)) - np.searchsorted(before, before, side="left")
        kept = order[place < KEPT_PER_ITEM]
        sizes.append(np.bincount(before[kept], minlength=end - first))
        items.append(after[kept].astype(np.int32))
        probabilities.append((weight[kept] / total[before[kept]]).astype(np.float32))
    offsets = np.cumsum(np.concatenate(sizes), dtype=np.int64)
    return Transitions(offsets, np.concatenate(items), np.concatenate(probabilities))


def _followers(
    events: NDArray[np.int64],
    items: NDArray[np.int64],
    owner: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    settings: TransitionSettings,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The items of some events, what was chosen after them, and how often, ascending, no pair twice: (P,) each."""
    width = int(items.max(initial=0)) + 1
    keys: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    weights: list[NDArray[np.float64]] = [np.zeros(0)]
    for lag in range(1, settings.lags + 1):
        if not (counts := settings.decay ** (lag - 1)):
            break  # what nothing but this follows would have no probabilities
        before = events[events + lag < len(items)]
        before = before[(owner[before + lag] == owner[before]) & chosen[before + lag]]
        distinct, count = np.unique(items[before] * width + items[before + lag], return_counts=True)
        keys.append(distinct)
        weights.append(count.astype(np.float64) * counts)
    pairs, where = np.unique(np.concatenate(keys), return_inverse=True)
    weight = np.bincount(where, weights=np.concatenate(weights), minlength=len(pairs))
    return pairs // width, pairs % width, weight.astype(np.float64)
