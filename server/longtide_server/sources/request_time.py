"""What the time of a request changes: people want other things after a minute than after a month. Pure functions.

The encoder's query vector says what a user wants next, whenever that may be. When the time of the request is known, so
is the wait since the user's last event, and the vector moves by what training found such a wait to mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class RequestTimeWeights:
    """The weights of a trained `training.learning.request_time.RequestTime`: D wide, R its rank, W waits."""

    shift: NDArray[np.float32]
    """(W, D)"""
    scale: NDArray[np.float32]
    """(W, R)"""
    into: NDArray[np.float32]
    """(R, D)"""
    out: NDArray[np.float32]
    """(D, R)"""


def wait_class(weights: RequestTimeWeights, wait_s: float) -> int:
    """Which of the W waits one of `wait_s` seconds, 0 or more, is: they double from one to the next."""
    return min(int(math.log2(wait_s + 1.0)), len(weights.shift) - 1)


def query_after(weights: RequestTimeWeights, query: NDArray[np.float32], wait_s: float) -> NDArray[np.float32]:
    """The query vector (D,) of a user who asks `wait_s` seconds, 0 or more, after their last event; of length 1."""
    wait = wait_class(weights, wait_s)
    scaled = query * np.float32(math.sqrt(len(query)))
    moved = scaled + weights.shift[wait] + weights.out @ (weights.scale[wait] * (weights.into @ scaled))
    return np.asarray(moved / np.linalg.norm(moved), np.float32)
