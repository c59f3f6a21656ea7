"""What turns gradients into steps: AdamW, and SparseAdam for the items' embeddings where a step touches few of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longtide_server.training.learning.objective import Objective
from longtide_server.training.learning.workers import ALONE, Workers

IDS = "items.ids.weight"
MAX_GRADIENT_NORM = 1.0
LEAST_LEARNING_RATE = 0.05
"""Where the schedule ends, as a share of its peak."""
LAZY_RATE = 3.0
"""How many times as fast embeddings with lazy steps learn: AdamW goes on moving what a step does not touch."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a phase learns."""

    encoder: float
    """The peak of the schedule."""
    items: float
    """How many times as fast as that the embeddings of the items' numbers learn."""
    head: float
    """How many times as fast as that the head learns."""
    weight_decay: float
    """AdamW's, on everything but embeddings, biases and norms."""


class Optimizers:
    """AdamW, Loshchilov & Hutter (2019), under one schedule; embeddings, biases and norms do not decay.

    Embeddings with sparse gradients get lazy steps (SparseAdam): what a step does not touch stays as it is, so a step
    costs what it touches and not what the catalogue holds.
    """

    def __init__(self, objective: Objective, rates: Rates, steps: int, workers: Workers = ALONE) -> None:
        """steps: of the whole phase, about; workers: those that take each of them together."""
        self._optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(_groups(objective, rates), fused=True)]
        if objective.sparse:
            lazy = LAZY_RATE * rates.items * rates.encoder
            self._optimizers.append(torch.optim.SparseAdam([objective.encoder.items.ids.weight], lr=lazy))
        self._schedules = [_schedule(optimizer, steps) for optimizer in self._optimizers]
        trained = [weight for weight in objective.parameters() if weight.requires_grad]
        self._sparse = [objective.encoder.items.ids.weight] if objective.sparse else []
        self._dense = [weight for weight in trained if all(weight is not one for one in self._sparse)]
        self._workers = workers

    def add(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the next step."""
        torch.autograd.backward(loss)

    def step(self, count: float) -> None:
        """Go down the gradients that every worker added since the last step, divided by `count`; their length is
        bounded."""
        self._workers.add_gradients(self._dense, self._sparse)
        _divide((*self._dense, *self._sparse), count)
        _clip((*self._dense, *self._sparse))
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
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


def _groups(objective: Objective, rates: Rates) -> list[dict[str, Any]]:
    """What AdamW trains: all parameters by how fast they learn and whether they decay, but for those of lazy steps."""
    groups: list[dict[str, Any]] = []
    for part, rate in ((objective.encoder, 1.0), (objective.head, rates.head)):
        trained = [(name, weight) for name, weight in part.named_parameters() if weight.requires_grad] if part else []
        ids = [weight for name, weight in trained if name == IDS and not objective.sparse]
        kept = [weight for name, weight in trained if name != IDS and not _decays(name, weight)]
        decaying = [weight for name, weight in trained if name != IDS and _decays(name, weight)]
        for weights, times, decay in ((decaying, 1.0, rates.weight_decay), (kept, 1.0, 0.0), (ids, rates.items, 0.0)):
            groups.append({"params": weights, "weight_decay": decay, "lr": times * rate * rates.encoder})
    return [group for group in groups if group["params"]]


def _decays(name: str, weight: Tensor) -> bool:
    return weight.dim() > 1 and "embedding" not in name


def _divide(parameters: Iterable[Tensor], count: float) -> None:
    """Make means of sums; a sparse gradient that several losses added to has each of its rows once from here on."""
    for weight in parameters:
        if weight.grad is not None:
            weight.grad = weight.grad.coalesce() if weight.grad.is_sparse else weight.grad
            weight.grad.div_(count)


def _clip(parameters: Iterable[Tensor]) -> None:
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
