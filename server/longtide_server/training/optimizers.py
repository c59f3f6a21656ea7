"""What turns gradients into steps: AdamW, and SparseAdam for the items' embeddings where a step touches few of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from longtide_server.training.objective import Objective

MAX_GRADIENT_NORM = 1.0
LEAST_LEARNING_RATE = 0.05
"""Where the schedule ends, as a share of its peak."""


class Optimizers:
    """AdamW, Loshchilov & Hutter (2019), under one schedule; embeddings, biases and norms do not decay.

    Embeddings with sparse gradients get lazy steps (SparseAdam): what a step does not touch stays as it is, so a step
    costs what it touches and not what the catalogue holds.
    """

    def __init__(
        self, objective: Objective, learning_rate: float, head_rate: float, weight_decay: float, steps: int
    ) -> None:
        """head_rate: how many times as fast the head learns; steps: of the whole phase, about."""
        groups, sparse = _groups(objective, learning_rate, head_rate, weight_decay)
        self._optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups)]
        if sparse:
            self._optimizers.append(torch.optim.SparseAdam(sparse, lr=learning_rate))
        self._schedules = [_schedule(optimizer, steps) for optimizer in self._optimizers]
        self._parameters = list(objective.parameters())

    def step(self, loss: Tensor) -> None:
        """Go down the gradient of a loss, whose length is bounded."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        _clip(self._parameters)
        for optimizer in self._optimizers:
            optimizer.step()
        for schedule in self._schedules:
            schedule.step()

    def state(self) -> dict[str, Any]:
        """What `restore` needs: tensors and plain numbers."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "schedules": [schedule.last_epoch for schedule in self._schedules],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` said."""
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for schedule, step in zip(self._schedules, state["schedules"], strict=True):
            schedule.last_epoch = step


def _groups(
    objective: Objective, learning_rate: float, head_rate: float, weight_decay: float
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """What AdamW trains, in groups, and what has sparse gradients."""
    sparse = [objective.encoder.items.ids.weight] if objective.sparse else []
    groups: list[dict[str, Any]] = []
    for part, rate in ((objective.encoder, 1.0), (objective.head, head_rate)):
        trained = [(name, weight) for name, weight in part.named_parameters() if weight.requires_grad] if part else []
        for decays in (True, False):
            weights = [
                weight
                for name, weight in trained
                if _decays(name, weight) is decays and not any(weight is one for one in sparse)
            ]
            decay = weight_decay if decays else 0.0
            groups.append({"params": weights, "weight_decay": decay, "lr": rate * learning_rate})
    return [group for group in groups if group["params"]], sparse


def _decays(name: str, weight: Tensor) -> bool:
    return weight.dim() > 1 and "embedding" not in name and not name.startswith("items.ids.")


def _clip(parameters: Iterable[nn.Parameter]) -> None:
    """Bound the length of all gradients together. (PyTorch's own does not take sparse ones.)"""
    found = [weight.grad for weight in parameters if weight.grad is not None]
    gradients = [gradient._values() if gradient.is_sparse else gradient for gradient in found]
    length = nn.utils.get_total_norm(gradients)
    scale = (MAX_GRADIENT_NORM / (length + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A short warm-up, then half a cosine (SGDR, Loshchilov & Hutter 2017)."""
    warm_up = max(1, min(100, steps // 20))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        past = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return LEAST_LEARNING_RATE + (1.0 - LEAST_LEARNING_RATE) * 0.5 * (1.0 + math.cos(math.pi * past))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
