"""Trains an encoder on sequences: next-item cross-entropy over the whole catalogue at every position.

State is carried from chunk to chunk (truncated back-propagation through time, Williams & Peng 1990), so the long-lived
state that is served is the state that was trained.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtide_server.training.dataset import Chunk, Holdout, Sequences, batches, chunks
from longtide_server.training.loss import full_softmax_loss
from longtide_server.training.metrics import hr_at_k, ndcg_at_k, rank_of_target
from longtide_server.training.model import Encoder, ModelConfig

EVALUATED_AT = 10


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. `settings_for` chooses it from the log."""

    epochs: int = 16
    """Passes over the log at most; the best one is kept."""
    patience: int = 3
    """Epochs without a better validation NDCG@10 before training stops early."""
    learning_rate: float = 2e-3
    """Peak of the schedule: a short warm-up, then a cosine down to a twentieth."""
    refit_epochs: int = 1
    """Passes over the whole log, validation targets included, once everything is chosen; 0 leaves them out."""
    refit_learning_rate: float = 4e-4
    """Where the schedule of these passes starts; it falls to a twentieth."""
    weight_decay: float = 0.0
    """AdamW's, on everything but embeddings, biases and norms."""
    batch_events: int = 4096
    """Events of one optimiser step, padding included."""
    chunk: int = 128
    """Events through which gradients flow back, per row."""
    bfloat16: bool = False
    """Whether products are made in bfloat16; sums and weights stay in float32."""
    validation_users: int = 3000
    """How many users, drawn with the seed, judge an epoch."""
    seed: int = 0
    """Seeds the weights, the dropout and the order of the batches."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands."""

    epoch: int
    """From 1."""
    epochs: int
    done: float
    """Share of the epoch that is done, 0 to 1."""
    loss: float
    """Mean cross-entropy of the epoch so far, in nats per event."""
    ndcg: float | None = None
    """Validation NDCG@10, once the epoch is done."""
    hit_rate: float | None = None
    """Validation HR@10, once the epoch is done."""
    seconds: float = 0.0
    """Since training began."""


def train_encoder(
    config: ModelConfig, settings: TrainConfig, holdout: Holdout, report: Callable[[Progress], None]
) -> Encoder:
    """Train on the histories, judge every epoch on the targets, and return the encoder of the best epoch."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    history = holdout.history
    judged = _judged(holdout, settings.validation_users, rng)
    learners = np.flatnonzero(history.lengths >= 2)
    model = Encoder(config)
    optimizer = _optimizer(model, settings, settings.learning_rate)
    schedule = _schedule(optimizer, _steps(history, learners, settings) * settings.epochs)
    best, best_ndcg, waited = copy.deepcopy(model.state_dict()), -1.0, 0
    begun = time.monotonic()
    for epoch in range(1, settings.epochs + 1):
        loss_sum = event_count = 0.0
        for done, step_loss, count in _epoch(model, optimizer, schedule, history, learners, settings, rng):
            loss_sum, event_count = loss_sum + step_loss * count, event_count + count
            report(Progress(epoch, settings.epochs, done, loss_sum / event_count, seconds=time.monotonic() - begun))
        ranks = ranks_of_targets(model, judged, settings.batch_events)
        ndcg = ndcg_at_k(ranks, EVALUATED_AT) if len(ranks) else None
        hits = hr_at_k(ranks, EVALUATED_AT) if len(ranks) else None
        loss = loss_sum / max(event_count, 1.0)
        report(Progress(epoch, settings.epochs, 1.0, loss, ndcg, hits, time.monotonic() - begun))
        if ndcg is None or ndcg > best_ndcg:  # without targets to judge by, the last epoch is the best
            best, best_ndcg, waited = copy.deepcopy(model.state_dict()), ndcg or 0.0, 0
        elif (waited := waited + 1) >= settings.patience:
            break
    model.load_state_dict(best)
    return model.eval()


def refit(model: Encoder, settings: TrainConfig, sequences: Sequences, report: Callable[[Progress], None]) -> None:
    """Go on training on everything, so that what is served has also learned from what it was judged by."""
    rng = np.random.default_rng(settings.seed)
    learners = np.flatnonzero(sequences.lengths >= 2)
    optimizer = _optimizer(model, settings, settings.refit_learning_rate)
    schedule = _schedule(optimizer, _steps(sequences, learners, settings) * settings.refit_epochs)
    begun = time.monotonic()
    for epoch in range(1, settings.refit_epochs + 1):
        for done, loss, _ in _epoch(model, optimizer, schedule, sequences, learners, settings, rng):
            report(Progress(epoch, settings.refit_epochs, done, loss, seconds=time.monotonic() - begun))
    model.eval()


def _epoch(
    model: Encoder,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    sequences: Sequences,
    users: NDArray[np.int64],
    settings: TrainConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[float, float, int]]:
    """One pass; yields after every step: share done, mean loss, how many events it is the mean of."""
    model.train()
    groups = list(batches(sequences, users, settings.batch_events, settings.chunk, rng))
    for number, group in enumerate(groups, 1):
        state = torch.empty(0)
        for chunk in chunks(sequences, group, settings.chunk):
            state = model.initial_state(len(chunk.users)) if chunk.first == 0 else state[torch.from_numpy(chunk.keep)]
            targets = torch.from_numpy(chunk.targets)
            count = int((targets > 0).sum())
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                query, state = run(model, chunk, state)
            state = state.detach().float()
            if not count:
                continue
            dtype = torch.bfloat16 if settings.bfloat16 else torch.float32
            loss = next_item_loss(model, query.float(), targets, dtype)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            yield number / len(groups), float(loss.detach()), count


def run(model: Encoder, chunk: Chunk, state: Tensor) -> tuple[Tensor, Tensor]:
    """Encode one piece: query vectors (B, T, D), and states (B, S) that are right for rows that fill the piece."""
    query, state = model(
        torch.from_numpy(chunk.items),
        torch.from_numpy(chunk.types),
        torch.from_numpy(chunk.gaps),
        torch.from_numpy(chunk.values),
        None,
        state,
    )
    return query, state


def next_item_loss(model: Encoder, query: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy over the whole catalogue of the targets (B, T) that are there, from queries (B, T, D)."""
    there = targets > 0
    return full_softmax_loss(query[there], model.item_embeddings()[1:], targets[there] - 1, model.temperature, dtype)


@torch.inference_mode()
def encode_histories(
    model: Encoder, sequences: Sequences, users: NDArray[np.int64], batch_events: int, chunk: int = 256
) -> Iterator[tuple[Chunk, Tensor]]:
    """Every piece of the users' sequences with its query vectors (B, T, D), the state carried along."""
    model.eval()
    for group in batches(sequences, users, batch_events, chunk, None):
        state = torch.empty(0)
        for piece in chunks(sequences, group, chunk):
            state = model.initial_state(len(piece.users)) if piece.first == 0 else state[torch.from_numpy(piece.keep)]
            query, state = run(model, piece, state)
            yield piece, query


def last_queries(
    model: Encoder, sequences: Sequences, users: NDArray[np.int64], batch_events: int
) -> NDArray[np.float32]:
    """The query vector (V, D) after each user's last event; zeros for a user without events."""
    row = np.full(sequences.user_count, -1, np.int64)
    row[users] = np.arange(len(users))
    result = np.zeros((len(users), model.dim), np.float32)
    for piece, query in encode_histories(model, sequences, users, batch_events):
        ends = piece.first + piece.lengths == sequences.lengths[piece.users]
        last = query.numpy()[np.arange(len(piece.users)), piece.lengths - 1]  # (B, D)
        result[row[piece.users[ends]]] = last[ends]
    return result


def ranks_of_targets(model: Encoder, holdout: Holdout, batch_events: int) -> NDArray[np.int64]:
    """The rank of every target in the whole catalogue by the encoder alone, items of the history removed."""
    queries = last_queries(model, holdout.history, holdout.users, batch_events)
    embeddings = model.item_embeddings().detach().numpy()
    ranks = []
    for at in range(0, len(holdout.users), 256):
        scores = queries[at : at + 256] @ embeddings.T  # (B, I + 1)
        seen = np.zeros(scores.shape, bool)
        seen[:, 0] = True
        for row, user in enumerate(holdout.users[at : at + 256]):
            seen[row, holdout.history.items[holdout.history.of(user)]] = True
        ranks.append(rank_of_target(scores, holdout.targets[at : at + 256], seen))
    return np.concatenate(ranks) if ranks else np.zeros(0, np.int64)


def _judged(holdout: Holdout, most: int, rng: np.random.Generator) -> Holdout:
    if len(holdout.users) <= most:
        return holdout
    drawn = np.sort(rng.choice(len(holdout.users), most, replace=False))
    return Holdout(holdout.history, holdout.users[drawn], holdout.targets[drawn])


def _steps(sequences: Sequences, users: NDArray[np.int64], settings: TrainConfig) -> int:
    """About how many optimiser steps an epoch takes; at least 1."""
    groups = batches(sequences, users, settings.batch_events, settings.chunk, None)
    return max(1, sum(-(-int(sequences.lengths[group].max()) // settings.chunk) for group in groups))


def _optimizer(model: Encoder, settings: TrainConfig, learning_rate: float) -> torch.optim.Optimizer:
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if not (p.dim() > 1 and "embedding" not in name)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    warm_up = max(1, min(100, steps // 20))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
