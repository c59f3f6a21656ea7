"""What the time of a request changes: moves query vectors by the wait since the user's last event.

The time of the request as an input follows HSTU (Zhai et al. 2024). Here it is the last step and needs the query vector
alone, so that a kept state answers at any time without being encoded again. In training, half of the waits are
hidden, so that one encoder serves requests of both kinds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from longtide_server.sources.request_time import RequestTimeWeights

WAITS = 32
"""Waits are told apart by the power of two of their seconds."""
RANK_SHARE = 4
HIDDEN_SHARE = 0.5


class RequestTime(nn.Module):
    """A shift, and a low-rank map scaled dimension by dimension, for each wait. Begins as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        rank = max(1, dim // RANK_SHARE)
        self.length = math.sqrt(dim)
        self.shift_embedding = nn.Embedding(WAITS, dim)
        self.scale_embedding = nn.Embedding(WAITS, rank)
        self.into = nn.Linear(dim, rank, bias=False)
        self.out = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.shift_embedding.weight)
        nn.init.zeros_(self.scale_embedding.weight)

    def forward(self, query: Tensor, wait_s: Tensor) -> Tensor:
        """query (N, D) of length 1, wait_s (N,) seconds since the last event -> (N, D) of length 1."""
        wait = torch.log2(wait_s.clamp(min=0.0).double() + 1.0).long().clamp(max=WAITS - 1)
        scaled = query * self.length
        turned = self.out(self.scale_embedding(wait) * self.into(scaled))
        return normalize(scaled + self.shift_embedding(wait) + turned, dim=1)

    def of_known(self, query: Tensor, wait_s: Tensor) -> Tensor:
        """As `forward`, but a query (N, D) whose wait is NaN, or which chance hides, stays as it is. For training."""
        hidden = torch.rand(len(query), device=query.device) < HIDDEN_SHARE
        known = torch.nonzero(~(hidden | torch.isnan(wait_s))).squeeze(1)
        return query.index_copy(0, known, self(query[known], wait_s[known]))

    def weights(self) -> RequestTimeWeights:
        """The same as arrays, for a server that has no torch."""
        parts = (self.shift_embedding, self.scale_embedding, self.into, self.out)
        return RequestTimeWeights(*(part.weight.detach().float().cpu().numpy() for part in parts))
