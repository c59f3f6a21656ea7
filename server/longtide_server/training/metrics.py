"""Ranking metrics: how high each user's target stands, and how much of the catalogue is shown.

A rank counts from 0 (the best). A negative or infinite one means that the target was not in the list: it scores 0 but
counts as a user. The means of HR, NDCG and MRR are over all ranks given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]
NOT_RANKED = -1


def rank_of_target(
    scores: NDArray[np.floating[Any]], target: NDArray[np.integer[Any]], seen: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """(B,) rank of `target` (B,) among the items by `scores` (B, I), those `seen` (B, I) left out.

    Ties: of equal scores the smaller item index is first, as in a stable descending sort. A target that was itself
    seen is no candidate and is NOT_RANKED. NaN scores are a ValueError: they compare with nothing.
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no rank")
    users = np.arange(len(target))
    own = scores[users, target][:, None]  # (B, 1)
    earlier = np.arange(scores.shape[1]) < target[:, None]  # (B, I)
    ahead = (scores > own) | ((scores == own) & earlier)
    ranks: NDArray[np.int64] = np.count_nonzero(ahead if seen is None else ahead & ~seen, axis=1)
    return ranks if seen is None else np.where(seen[users, target], NOT_RANKED, ranks)


def hr_at_k(ranks: Ranks, k: int) -> float:
    """Share of targets among the first k."""
    return float(_hits(ranks, k).mean())


def ndcg_at_k(ranks: Ranks, k: int) -> float:
    """The mean of `gains_at_k`: with one target a user, the ideal list's gain is 1."""
    return float(gains_at_k(ranks, k).mean())


def gains_at_k(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """(V,) each target's 1 / log2(rank + 2) within the first k, else 0."""
    hits = _hits(ranks, k)
    gains = np.zeros(len(ranks))
    gains[hits] = 1.0 / np.log2(ranks[hits] + 2.0)
    return gains


def mrr_at_k(ranks: Ranks, k: int) -> float:
    """Mean of 1 / (rank + 1) within the first k."""
    hits = _hits(ranks, k)
    return float((1.0 / (ranks[hits] + 1.0)).sum() / len(ranks))


def coverage_at_k(recommended: NDArray[np.integer[Any]], k: int, item_count: int) -> float:
    """Share of the catalogue that the first k of any list show; `recommended` (B, K) item indices, negative = none."""
    _require_positive("k", k)
    _require_positive("item_count", item_count)
    top = recommended[:, :k]
    return len(np.unique(top[top >= 0])) / item_count


def _hits(ranks: Ranks, k: int) -> NDArray[np.bool_]:
    _require_positive("k", k)
    if len(ranks) == 0:
        raise ValueError("no ranks: a mean over no users is undefined")
    return (ranks >= 0) & (ranks < k)


def _require_positive(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{name} is {number}; it must be at least 1")
