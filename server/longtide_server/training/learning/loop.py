"""The training loop: epochs over sequences, the best one kept, every finished one on disk before the next begins."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longtide_server.training.dataset import EMPTY, Chunk, Holdout, Sequences, batches, chunks, ends_of_steps
from longtide_server.training.learning.checkpoint import Checkpoints, State
from longtide_server.training.learning.encoding import inputs, ranks_of_targets
from longtide_server.training.learning.had import Had, had_in
from longtide_server.training.learning.memory import give_back
from longtide_server.training.learning.objective import Batch, Objective
from longtide_server.training.learning.optimizers import Optimizers, Rates
from longtide_server.training.learning.workers import ALONE, Workers
from longtide_server.training.metrics import gains_at_k, hr_at_k, ndcg_at_k

EVALUATED_AT = 10
LEAST_STEP = 0.5
"""Of the events of a full step. The ends of long histories have fewer: a step for each of them would let a few long
histories teach more than all others."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands."""

    phase: str
    epoch: int
    """From 1."""
    epochs: int
    done: float
    """Share of the epoch that is done, 0 to 1."""
    loss: float
    """Mean loss of the next items in the epoch so far, in nats per event."""
    seconds: float
    """Since the phase began, or was taken up again."""
    finished: bool = False
    """Whether the epoch is done, judged and kept."""
    ndcg: float | None = None
    """Validation NDCG@10 of a finished epoch, where targets judge it."""
    hit_rate: float | None = None
    """Validation HR@10 of a finished epoch, where targets judge it."""
    behavior_loss: float | None = None
    """Mean loss of the next behaviour's type and value, times its weight, where a head learns them."""


class Outcome(NamedTuple):
    """Validation metrics at 10."""

    ndcg: float
    hit_rate: float
    standard_error: float
    """Of the NDCG, by the users who judge."""


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Run:
    """Where a training runs, and where it keeps what it has reached."""

    workers: Workers = ALONE
    checkpoints: Checkpoints | None = None


BY_ITSELF = Run()


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training: what it learns from, how long, how fast, and who judges it."""

    name: str
    sequences: Sequences
    epochs: int
    rates: Rates
    batch_events: int
    """Events of one step, over all processes, padding included."""
    chunk: int
    """Events through which gradients flow back, per row."""
    seed: int
    judged: Holdout | None = None
    """Targets that judge every epoch; without any, the last epoch is the best."""
    patience: int = 1
    """Epochs without a better validation NDCG@10 before the phase stops early."""


@dataclass(slots=True)
class Learner:
    """Everything that changes while a phase runs."""

    objective: Objective
    optimizers: Optimizers
    best: State
    """The weights of the best epoch so far."""
    best_ndcg: float = -1.0
    epoch: int = 0
    """Epochs that are finished."""
    waited: int = 0
    """Of them, those since the best one."""

    def finish_epoch(self, outcome: Outcome | None) -> None:
        """Count an epoch in. Without targets to judge by, each is better than the one before."""
        self.epoch += 1
        if outcome is None or self._is_best(outcome):
            self.best, self.waited = copy.deepcopy(self.objective.state_dict()), 0
        else:
            self.waited += 1
        if outcome is not None:
            self.best_ndcg = max(self.best_ndcg, outcome.ndcg)

    def _is_best(self, outcome: Outcome) -> bool:
        """A head has learned more in a later epoch, which items alone do not show: that is better while the items are
        not ranked worse than chance explains (the rule of one standard error, Breiman et al. 1984)."""
        if self.objective.head is not None:
            return outcome.ndcg >= self.best_ndcg - outcome.standard_error
        return outcome.ndcg > self.best_ndcg

    def state(self) -> State:
        """What `restore` needs to go on as if nothing had happened: tensors and plain numbers."""
        return {
            "objective": self.objective.state_dict(),
            "optimizers": self.optimizers.state(),
            "best": self.best,
            "best_ndcg": self.best_ndcg,
            "epoch": self.epoch,
            "waited": self.waited,
        }

    def restore(self, state: State) -> None:
        """Take up what `state` said."""
        self.objective.load_state_dict(state["objective"])
        self.optimizers.restore(state["optimizers"])
        self.best, self.best_ndcg = state["best"], state["best_ndcg"]
        self.epoch, self.waited = state["epoch"], state["waited"]


def learn(phase: Phase, objective: Objective, run: Run, report: Report) -> None:
    """Train the objective's modules, and leave them with the weights of the best epoch.

    A phase that was killed goes on after its last finished epoch, as if nothing had happened.
    """
    users = np.flatnonzero(phase.sequences.lengths >= 2)
    optimizers = Optimizers(objective, phase.rates, _steps(phase, users) * phase.epochs, run.workers)
    learner = Learner(objective, optimizers, copy.deepcopy(objective.state_dict()))
    if run.checkpoints is not None and (reached := run.checkpoints.load(phase.name)) is not None:
        learner.restore(reached)
    had = had_in(phase.sequences, run.workers.device)
    begun = time.monotonic()
    while learner.epoch < phase.epochs and learner.waited < phase.patience:
        epoch, sums = learner.epoch + 1, np.zeros(3)
        for done, step_sums in _epoch(phase, learner, epoch, had, users, run.workers):
            sums += step_sums
            report(_progress(phase, objective, epoch, done, sums, begun))
        outcome = _judge(phase, objective, run.workers)
        learner.finish_epoch(outcome)
        _keep(run, phase, learner)
        give_back()
        finished = replace(_progress(phase, objective, epoch, 1.0, sums, begun), finished=True)
        if outcome is not None:
            finished = replace(finished, ndcg=outcome.ndcg, hit_rate=outcome.hit_rate)
        report(finished)
    objective.load_state_dict(learner.best)
    objective.eval()


def _progress(
    phase: Phase, objective: Objective, epoch: int, done: float, sums: NDArray[np.float64], begun: float
) -> Progress:
    """Of an epoch whose items' loss, behaviour's loss and counts have these sums (3,) so far."""
    items, behavior, counted = sums.tolist()
    return Progress(
        phase.name,
        epoch,
        phase.epochs,
        done,
        loss=items / max(counted, 1.0),
        seconds=time.monotonic() - begun,
        behavior_loss=None if objective.head is None else behavior / max(counted, 1.0),
    )


def _epoch(
    phase: Phase, learner: Learner, epoch: int, had: Had, users: NDArray[np.int64], workers: Workers
) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """One pass; yields after every piece: share done, and (3,) its sums of items' loss, behaviour's loss and counts."""
    objective = learner.objective
    objective.train()
    # Chance begins anew with every epoch, so that one after a kill is what it would have been, in every process.
    seeds = (phase.seed, zlib.crc32(phase.name.encode()), epoch)
    torch.manual_seed(_seed(*seeds, workers.rank))  # what is dropped
    objective.draw_by(_seed(*seeds))
    groups = list(batches(phase.sequences, users, phase.batch_events, phase.chunk, np.random.default_rng(seeds)))
    waiting = 0.0  # what the events count whose gradients wait for the next step
    for number, (group, ends) in enumerate(zip(groups, _ends(phase, groups), strict=True), 1):
        state = torch.empty(0)
        for piece, step_ends in zip(_pieces(phase, group, workers), ends, strict=True):
            if piece.first == 0:
                state = torch.zeros(len(piece.users), objective.encoder.state_size, device=workers.device)
            else:
                state = state[torch.from_numpy(piece.keep).to(workers.device)]
            loss, state = objective(_batch(piece, had, workers.device), state)
            sums = np.array(workers.total(torch.stack([loss.items, loss.behavior, loss.counted]).detach()))
            if sums[2]:
                learner.optimizers.add(loss.items + loss.behavior)
                waiting += sums[2]
                yield number / len(groups), sums
            if step_ends and waiting:
                learner.optimizers.step(waiting)
                waiting = 0.0


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _pieces(phase: Phase, users: NDArray[np.int64], workers: Workers) -> Iterator[Chunk]:
    """This process's share of a batch, piece by piece; every process has equally many, empty ones at the end."""
    longest = int(phase.sequences.lengths[users].max())
    count = 0
    for piece in chunks(phase.sequences, workers.share(users), phase.chunk):
        count += 1
        yield piece
    for _ in range(count, -(-longest // phase.chunk)):
        yield EMPTY


def _batch(piece: Chunk, had: Had, device: torch.device) -> Batch:
    nexts = (piece.targets, piece.next_types, piece.next_gaps, piece.next_values)
    past = had.at(torch.from_numpy(piece.events[piece.targets > 0]).to(device))
    return Batch(past, *inputs(piece, device), *(torch.from_numpy(part).to(device) for part in nexts))


def _judge(phase: Phase, objective: Objective, workers: Workers) -> Outcome | None:
    """By the encoder alone; the same in every process. None where there are no targets."""
    if phase.judged is None or not len(phase.judged.users):
        return None
    outcome = torch.zeros(3, dtype=torch.float64)
    if workers.leads:
        ranks = ranks_of_targets(objective.encoder, phase.judged, phase.batch_events)
        error = float(gains_at_k(ranks, EVALUATED_AT).std() / np.sqrt(len(ranks)))
        outcome = torch.tensor([ndcg_at_k(ranks, EVALUATED_AT), hr_at_k(ranks, EVALUATED_AT), error]).double()
    return Outcome(*workers.led(outcome).tolist())


def _keep(run: Run, phase: Phase, learner: Learner) -> None:
    if run.checkpoints is not None and run.workers.leads:
        run.checkpoints.save(phase.name, learner.state())


def _steps(phase: Phase, users: NDArray[np.int64]) -> int:
    """About how many optimiser steps an epoch takes; at least 1."""
    groups = list(batches(phase.sequences, users, phase.batch_events, phase.chunk, None))
    return max(1, sum(map(sum, _ends(phase, groups))))


def _ends(phase: Phase, groups: Sequence[NDArray[np.int64]]) -> list[list[bool]]:
    least = LEAST_STEP * phase.batch_events
    return ends_of_steps([phase.sequences.lengths[group] for group in groups], phase.chunk, least)
