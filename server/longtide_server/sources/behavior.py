"""What a user will do next, and how they will value an item, read from the query vector. Pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class BehaviorWeights:
    """The weights of a trained head; D is the encoder's width."""

    type_weight: NDArray[np.float32]
    """(event types, D)"""
    type_bias: NDArray[np.float32]
    """(event types,)"""
    inner_weight: NDArray[np.float32]
    """(D, 3 D)"""
    inner_bias: NDArray[np.float32]
    """(D,)"""
    outer_weight: NDArray[np.float32]
    """(D,)"""
    outer_bias: NDArray[np.float32]
    """(1,)"""
    value_scale: NDArray[np.float32]
    """(2,) mean and standard deviation of the values of the log."""


def type_probability(weights: BehaviorWeights, query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Query vectors (N, D) -> (N, event types) the probability of each type, by its number, to be the next event's."""
    logits = (_scaled(query) @ weights.type_weight.T + weights.type_bias).astype(np.float64)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def predicted_value(
    weights: BehaviorWeights, query: NDArray[np.float32], item: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The value (N,), on the scale of the log, that users with query vectors (N, D) will give items (N, D)."""
    query, item = _scaled(query), _scaled(item)
    inner = np.concatenate([query, item, query * item], axis=1) @ weights.inner_weight.T + weights.inner_bias
    deviation = np.maximum(inner, 0.0) @ weights.outer_weight + weights.outer_bias
    mean, std = weights.value_scale.astype(np.float64)
    return np.asarray(mean + std * deviation)


def _scaled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (N, D) of length 1 to entries of about 1."""
    return np.asarray(vectors * np.sqrt(np.float32(vectors.shape[1])), np.float32)
