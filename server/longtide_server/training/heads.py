"""What fine-tuning learns beside the next item: the type of the next behaviour, and the value that goes with it.

Multi-task learning, Caruana (1997); the rating by absolute error, so that the figure reported is the one trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longtide_server.training.model import TYPE_COUNT, Dropout, ModelConfig


class BehaviorHead(nn.Module):
    """Reads the type of the next event, and the value of an item to a user, from the user's query vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.value_mean, self.value_std = config.value_mean, config.value_std
        self.scale = math.sqrt(config.dim)
        self.types = nn.Linear(config.dim, TYPE_COUNT)
        self.value = nn.Sequential(
            nn.Linear(3 * config.dim, config.dim), nn.GELU(), Dropout(config.dropout), nn.Linear(config.dim, 1)
        )

    def type_logits(self, query: Tensor) -> Tensor:
        """query (N, D), of length 1 -> (N, TYPE_COUNT) unnormalised log-probabilities of the next event's type."""
        logits: Tensor = self.types(query * self.scale)
        return logits

    def values(self, query: Tensor, item: Tensor) -> Tensor:
        """query (N, D), item embeddings (N, D), both of length 1 -> (N,) values, on the scale of the log."""
        query, item = query * self.scale, item * self.scale
        deviation: Tensor = self.value(torch.cat([query, item, query * item], dim=1)).squeeze(1)
        return self.value_mean + self.value_std * deviation
