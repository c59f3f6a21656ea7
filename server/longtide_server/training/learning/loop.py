"""The training loop: epochs over sequences, the best one kept, every finished one on disk before the next begins."""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from longtide_server.errors import InvalidInput, Unavailable
from longtide_server.training.dataset import EMPTY, Chunk, Holdout, Sequences, batches, chunks, ends_of_steps
from longtide_server.training.learning.checkpoint import Checkpoints, State
from longtide_server.training.learning.encoding import inputs, ranks_of_targets
from longtide_server.training.learning.had import Had, had_by_event
from longtide_server.training.learning.memory import give_back
from longtide_server.training.learning.model import Encoder
from longtide_server.training.learning.objective import Batch, Objective
from longtide_server.training.learning.optimizers import Optimizers, Rates
from longtide_server.training.learning.wanted import EVERYTHING, Wanted, counts
from longtide_server.training.learning.workers import ALONE, Workers
from longtide_server.training.metrics import gains_at_k, hr_at_k, ndcg_at_k

EVALUATED_AT = 10
LEAST_STEP = 0.5
"""Of the events of a full step. The ends of long histories have fewer: a step for each of them would let a few long
histories teach more than all others."""

SAMPLE = 1 << 31
"""Beside the ranks of processes, what seeds the draw of samples: the same in all of them."""


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
    targets: int = 0
    """How many targets judge."""
    behavior_loss: float | None = None
    """Mean loss of the next behaviour's type and value, times its weight, where a head learns them."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How an encoder ranks the targets that judge it."""

    ranks: NDArray[np.int64]
    """(V,)"""

    @property
    def ndcg(self) -> float:
        """NDCG@10."""
        return ndcg_at_k(self.ranks, EVALUATED_AT)

    @property
    def hit_rate(self) -> float:
        """HR@10."""
        return hr_at_k(self.ranks, EVALUATED_AT)

    def is_worse_than(self, other: Outcome) -> bool:
        """Whether the NDCG@10 of the same users is lower by more than chance explains: the standard error of the
        difference (the rule of one standard error, Breiman et al. 1984, by pairs)."""
        gained = gains_at_k(self.ranks, EVALUATED_AT) - gains_at_k(other.ranks, EVALUATED_AT)
        return float(gained.mean()) < -float(gained.std()) / math.sqrt(len(gained))


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
    wanted: Wanted = EVERYTHING
    """What of the events counts, and how much."""
    validation: Holdout | None = None
    """Targets that judge every epoch; without any, the last epoch is kept."""
    patience: int = 1
    """So many epochs on end that are no better, and with a head are worse, stop the phase early."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What a phase knows of each of the N events of its log."""

    had: Had
    """What its user had had by then."""
    counts: NDArray[np.float32]
    """(N,) what it counts as one to foresee."""


@dataclass(slots=True)
class Learner:
    """Everything that changes while a phase runs."""

    objective: Objective
    optimizers: Optimizers
    kept: State
    """The weights of the epoch that is kept so far."""
    best: Outcome | None = None
    """The best that any epoch reached."""
    epoch: int = 0
    """Epochs that are finished."""
    waited: int = 0
    """Of them, those since the one that is kept."""

    def finish_epoch(self, outcome: Outcome | None) -> None:
        """Count an epoch in. Without targets to judge by, each is kept in the place of the one before."""
        self.epoch += 1
        if outcome is None or self.best is None or self._to_be_kept(outcome, self.best):
            self.kept, self.waited = copy.deepcopy(self.objective.state_dict()), 0
        else:
            self.waited += 1
        if outcome is not None and (self.best is None or outcome.ndcg > self.best.ndcg):
            self.best = outcome

    def _to_be_kept(self, outcome: Outcome, best: Outcome) -> bool:
        """A head has learned more in a later epoch, which items alone do not show: that one is kept while they are not
        ranked worse."""
        return not outcome.is_worse_than(best) if self.objective.head is not None else outcome.ndcg > best.ndcg

    def state(self) -> State:
        """What `restore` needs to go on as if nothing had happened: tensors and plain numbers."""
        return {
            "objective": self.objective.state_dict(),
            "optimizers": self.optimizers.state(),
            "kept": self.kept,
            "best": None if self.best is None else torch.from_numpy(self.best.ranks),
            "epoch": self.epoch,
            "waited": self.waited,
        }

    def restore(self, state: State) -> None:
        """Take up what `state` said."""
        self.objective.load_state_dict(state["objective"])
        self.optimizers.restore(state["optimizers"])
        self.kept, self.best = state["kept"], None if state["best"] is None else Outcome(state["best"].numpy())
        self.epoch, self.waited = state["epoch"], state["waited"]


def learn(phase: Phase, objective: Objective, run: Run, report: Report) -> None:
    """Train the objective's modules, and leave them with the weights of the epoch that is kept.

    InvalidInput where the learning rate is so high that they become infinite.

    A phase that was killed goes on after its last finished epoch, as if nothing had happened.
    """
    users = np.flatnonzero(phase.sequences.lengths >= 2)
    optimizers = Optimizers(objective, phase.rates, _steps(phase, users) * phase.epochs, run.workers)
    learner = Learner(objective, optimizers, copy.deepcopy(objective.state_dict()))
    if run.checkpoints is not None and (reached := run.checkpoints.load(phase.name)) is not None:
        learner.restore(reached)
    if (leaders := int(run.workers.led(torch.tensor([learner.epoch])))) != learner.epoch:
        raise Unavailable(
            f"of {phase.name}, this process has found {learner.epoch} finished epochs, the one of rank 0 {leaders}: "
            "all have to read the same folder"
        )
    known = Known(had_by_event(phase.sequences, run.workers.device), counts(phase.sequences, phase.wanted))
    begun = time.monotonic()
    while learner.epoch < phase.epochs and learner.waited < phase.patience:
        epoch, sums = learner.epoch + 1, np.zeros(3)
        for done, step_sums in _epoch(phase, learner, epoch, known, users, run.workers):
            sums += step_sums
            report(_progress(phase, objective, epoch, done, sums, begun))
        if not all(bool(torch.isfinite(weight).all()) for weight in objective.parameters()):
            raise InvalidInput(
                f"in {phase.name}, epoch {epoch}, weights have become infinite: a lower learning rate may help"
            )
        outcome = validate(phase, objective.encoder, run.workers)
        learner.finish_epoch(outcome)
        _keep(run, phase, learner)
        give_back()
        finished = replace(_progress(phase, objective, epoch, 1.0, sums, begun), finished=True)
        if outcome is not None:
            finished = replace(finished, ndcg=outcome.ndcg, hit_rate=outcome.hit_rate, targets=len(outcome.ranks))
        report(finished)
    objective.load_state_dict(learner.kept)
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
    phase: Phase, learner: Learner, epoch: int, known: Known, users: NDArray[np.int64], workers: Workers
) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """One pass; yields after every piece: share done, and (3,) its sums of items' loss, behaviour's loss and counts."""
    objective = learner.objective
    objective.train()
    # Chance begins anew with every epoch, so that one after a kill is what it would have been, in every process.
    seeds = (phase.seed, zlib.crc32(phase.name.encode()), epoch)
    torch.manual_seed(_seed(*seeds, workers.rank))  # what is dropped
    objective.draw_by(_seed(*seeds, SAMPLE))
    groups = list(batches(phase.sequences, users, phase.batch_events, phase.chunk, np.random.default_rng(seeds)))
    waiting = 0.0  # what the events count whose gradients wait for the next step
    for number, (group, ends) in enumerate(zip(groups, _ends(phase, groups), strict=True), 1):
        state = torch.empty(0)
        for piece, step_ends in zip(_pieces(phase, group, workers), ends, strict=True):
            if piece.first == 0:
                state = torch.zeros(len(piece.users), objective.encoder.state_size, device=workers.device)
            else:
                state = state[torch.from_numpy(piece.keep).to(workers.device)]
            loss, state = objective(_batch(piece, known, workers.device), state)
            items, counted, behavior, events = workers.total(loss.sums())
            if counted:
                # Of a mean event of all processes: divided by what items count, it must not grow where that is less.
                share = counted / events
                learner.optimizers.add(loss.items + share * loss.behavior)
                waiting += counted
                yield number / len(groups), np.array([items, share * behavior, counted])
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


def _batch(piece: Chunk, known: Known, device: torch.device) -> Batch:
    following = np.where(piece.targets > 0, piece.events + 1, 0)
    next_counts = np.where(piece.targets > 0, known.counts[following], np.float32(0))  # (B, T)
    nexts = (piece.targets, piece.next_types, piece.next_gaps, piece.next_values, next_counts)
    past = known.had.at(torch.from_numpy(piece.events[next_counts > 0]).to(device))
    return Batch(past, *inputs(piece, device), *(torch.from_numpy(part).to(device) for part in nexts))


def validate(phase: Phase, encoder: Encoder, workers: Workers) -> Outcome | None:
    """What the encoder alone makes of the phase's targets; the same in every process. None where there are none."""
    if phase.validation is None or not len(phase.validation.users):
        return None
    ranks = np.zeros(len(phase.validation.users), np.int64)
    if workers.leads:
        ranks = ranks_of_targets(encoder, phase.validation, phase.batch_events)
    return Outcome(workers.led(torch.from_numpy(ranks)).numpy())


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
