"""The ways to recommend that learn nothing, which every evaluation shows beside Longtide: they are hard to beat.

Lists are (V, K) item numbers, the best first, 0 where there are fewer; items of the user's history are left out, unless
`include_seen` says otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.candidates import TransitionSettings, transition_votes
from longtide_server.training.dataset import Sequences
from longtide_server.training.sources.counts import count_popularity, count_transitions

NOTHING_SEEN = np.zeros(0, np.int64)


def popularity_lists(
    history: Sequences, users: NDArray[np.int64], k: int, *, include_seen: bool = False
) -> NDArray[np.int64]:
    """What most events of the history are on, the same for everyone but for what they had."""
    popularity = count_popularity(history)
    if include_seen:
        return np.tile(best_unseen(popularity, NOTHING_SEEN, k), (len(users), 1))
    return np.stack([best_unseen(popularity, history.items[history.of(user)], k) for user in users])


def transition_lists(
    history: Sequences, users: NDArray[np.int64], settings: TransitionSettings, k: int, *, include_seen: bool = False
) -> NDArray[np.int64]:
    """What most often followed the user's last items; who has no history gets what is popular."""
    transitions = count_transitions(history, settings)
    popularity = count_popularity(history)
    lists = []
    for user in users:
        seen = history.items[history.of(user)]
        votes = transition_votes(transitions, seen[-settings.lags :], settings.decay)
        score = popularity * 1e-6  # fills up, and decides between what transitions leave equal
        score[votes.items] += votes.probability
        lists.append(best_unseen(score, NOTHING_SEEN if include_seen else seen, k))
    return np.stack(lists)


def had_lists(history: Sequences, users: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """What the user has had most often, of equally often the last one first."""
    lists = np.zeros((len(users), k), np.int64)
    for row, user in enumerate(users):
        items, ago, count = np.unique(history.items[history.of(user)][::-1], return_index=True, return_counts=True)
        best = items[np.lexsort((ago, -count))][:k]
        lists[row, : len(best)] = best
    return lists


def best_unseen(score: NDArray[np.float64], seen: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """(k,) the best items by a score (I + 1,) that are not among `seen`, of equal scores the smaller number first.

    0 where there are fewer, and item 0, the padding, is never one.
    """
    left = score.copy()
    left[seen] = -np.inf
    left[0] = -np.inf
    bar = np.partition(left, -k)[-k] if k < len(left) else -np.inf
    near = np.flatnonzero(left >= bar)  # to sort them all takes several times as long
    order = near[np.argsort(-left[near], kind="stable")][:k]
    best = np.where(np.isfinite(left[order]), order, 0)
    return np.pad(best, (0, k - len(best)))
