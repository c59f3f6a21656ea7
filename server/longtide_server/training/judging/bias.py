"""Popularity bias: are people shown more popular items than they choose by themselves?

The measure is that of Abdollahpouri and others ("The Unfairness of Popularity Bias in Recommendation", 2019), with
an item's popularity in events of the history instead of users:

    recommended = mean over users of (mean popularity of the first k items of the user's list)
    consumed    = mean over the same users of (mean popularity of the distinct items of the user's history)
    ratio       = recommended / consumed

A ratio of 1 repeats what people like by themselves; above 1, popular items are pushed. Users without a history, or
without a list, have no own taste, or nothing, to compare, and are left out of both means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.training.dataset import Sequences


@dataclass(frozen=True, slots=True)
class PopularityBias:
    """How popular what is recommended is, next to what was consumed."""

    users: int
    """How many were compared."""
    recommended: float
    """Events of the history on an item that is recommended, on average."""
    consumed: float
    """Events of the history on an item that the same users consumed, on average."""
    ratio: float
    """recommended / consumed."""


def popularity_bias(
    lists: NDArray[np.int64], users: NDArray[np.int64], history: Sequences, k: int
) -> PopularityBias | None:
    """The bias of the first k of lists (V, K), 0 where there is no item, of users (V,); None if nobody has both."""
    popularity = np.bincount(history.items, minlength=history.item_count + 1).astype(np.float64)  # (I + 1,)
    recommended, consumed = [], []
    for items, user in zip(lists[:, :k], users.tolist(), strict=True):
        listed, had = items[items > 0], np.unique(history.items[history.of(user)])
        if len(listed) and len(had):
            recommended.append(popularity[listed].mean())
            consumed.append(popularity[had].mean())
    if not recommended:
        return None
    shown, chosen = float(np.mean(recommended)), float(np.mean(consumed))
    return PopularityBias(len(recommended), round(shown, 4), round(chosen, 4), round(shown / chosen, 4))
