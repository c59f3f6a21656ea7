"""What fine-tuning learns beside the next item: the type of the next behaviour, and the value that goes with it.

Multi-task learning, Caruana (1997); the rating by absolute error, so that the figure reported is the one trained.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtide_server.sources.behavior import BehaviorWeights
from longtide_server.training.dataset import TYPE_COUNT
from longtide_server.training.learning.model import Dropout, ModelConfig


class BehaviorHead(nn.Module):
    """Reads the type of the next event, and the value of an item to a user, from the user's query vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.value_mean, self.value_std = config.value_mean, config.value_std
        self.scale = math.sqrt(config.dim)
        self.types = nn.Linear(config.dim, TYPE_COUNT)
        self.inner = nn.Linear(3 * config.dim, config.dim)
        self.dropout = Dropout(config.dropout)
        self.outer = nn.Linear(config.dim, 1)

    def type_logits(self, query: Tensor) -> Tensor:
        """query (N, D), of length 1 -> (N, TYPE_COUNT) unnormalised log-probabilities of the next event's type."""
        logits: Tensor = self.types(query * self.scale)
        return logits

    def values(self, query: Tensor, item: Tensor) -> Tensor:
        """query (N, D), item embeddings (N, D), both of length 1 -> (N,) values, on the scale of the log."""
        query, item = query * self.scale, item * self.scale
        inner = torch.relu(self.inner(torch.cat([query, item, query * item], dim=1)))  # (N, D)
        deviation: Tensor = self.outer(self.dropout(inner)).squeeze(1)
        return self.value_mean + self.value_std * deviation

    def weights(self) -> BehaviorWeights:
        """The head as arrays, for a server that has no torch."""
        return BehaviorWeights(
            type_weight=_array(self.types.weight),
            type_bias=_array(self.types.bias),
            inner_weight=_array(self.inner.weight),
            inner_bias=_array(self.inner.bias),
            outer_weight=_array(self.outer.weight[0]),
            outer_bias=_array(self.outer.bias),
            value_scale=np.array([self.value_mean, self.value_std], np.float32),
        )


def _array(weight: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = weight.detach().cpu().numpy()
    return array
