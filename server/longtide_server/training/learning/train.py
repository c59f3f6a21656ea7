"""The phases of training an encoder.

Pre-training on all behaviour: the next item at every position. Fine-tuning on the behaviour that is wanted, together
with a head for the next behaviour's type and value. Refitting on everything, with what validation had held back. State
is carried from chunk to chunk (truncated back-propagation through time, Williams & Peng 1990), so the long-lived state
that is served is the state that was trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from longtide_server.training.dataset import Holdout, Sequences, drawn
from longtide_server.training.learning.content import Content
from longtide_server.training.learning.heads import BehaviorHead
from longtide_server.training.learning.loop import BY_ITSELF, Phase, Report, Run, learn, validate
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.objective import Objective
from longtide_server.training.learning.optimizers import Rates
from longtide_server.training.learning.wanted import EVERYTHING, Wanted

ENOUGH_TARGETS = 50
"""With fewer, chance would judge."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. `settings_for` chooses it from the log."""

    epochs: int = 16
    """Passes over the log at most; the best one is kept."""
    patience: int = 3
    """A phase stops after so many epochs on end without a better validation NDCG@10; fine-tuning, after so many that
    were worse."""
    learning_rate: float = 2e-3
    """Peak of the schedule: a short warm-up, then a cosine down to a twentieth."""
    item_rate: float = 1.0
    """How many times as fast as the rest of the encoder the embeddings of the items' numbers learn."""
    fine_tune_epochs: int = 0
    """Passes that train what is wanted, and the head for type and value of what comes next; 0 leaves them out."""
    fine_tune_learning_rate: float = 5e-4
    """Where the schedule of these passes starts; it falls to a twentieth."""
    target_type: int = 0
    """The event type that is wanted, 1 to 12; 0 when every type is."""
    other_weight: float = 0.5
    """What items count in fine-tuning that do not lead to it, 0 to 1, those that do counting 1."""
    head_weight: float = 0.1
    """What the next type and value count in fine-tuning, the next item counting 1."""
    head_rate: float = 5.0
    """How many times as fast as the encoder the head learns: it begins from nothing when the encoder is trained."""
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
    negatives: int = 0
    """Items that a step's softmax is estimated from; 0 takes the whole catalogue."""
    bfloat16: bool = False
    """Whether products are made in bfloat16; sums and weights stay in float32."""
    validation_users: int = 3000
    """How many users, drawn with the seed, judge an epoch."""
    seed: int = 0
    """Seeds the weights, the dropout and the order of the batches."""


PRE_TRAINING, FINE_TUNING, REFITTING = "pre-training", "fine-tuning", "refitting"
READING = "reading"
"""What a head does that learns from an encoder which stays as it is."""


def planned(settings: TrainConfig) -> dict[str, int]:
    """How many epochs each phase has at most, in their order."""
    epochs = (settings.epochs, settings.fine_tune_epochs, settings.refit_epochs)
    return dict(zip((PRE_TRAINING, FINE_TUNING, REFITTING), epochs, strict=True))


def train_encoder(
    config: ModelConfig,
    settings: TrainConfig,
    holdout: Holdout,
    report: Report,
    run: Run = BY_ITSELF,
    content: Content | None = None,
) -> Encoder:
    """Train on the histories, judge every epoch on the targets, and return the encoder of the best one."""
    torch.manual_seed(settings.seed)
    model = Encoder(config, content).to(run.workers.device)
    phase = _phase(PRE_TRAINING, holdout.history, settings, settings.epochs, settings.learning_rate)
    phase = replace(phase, validation=_validation(holdout, settings), patience=settings.patience)
    learn(phase, objective_of(model, holdout.history, settings), run, report)
    return model


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned:
    """What fine-tuning led to."""

    head: BehaviorHead
    put_back: bool
    """Whether the encoder is what it was before: to turn to what is wanted had ranked the targets worse."""


def fine_tune(
    model: Encoder, config: ModelConfig, settings: TrainConfig, holdout: Holdout, report: Report, run: Run = BY_ITSELF
) -> FineTuned:
    """Train the encoder on for the behaviour that is wanted, and the head that tells type and value of the next one.

    Targets that lead to that behaviour judge every epoch. Where they are ranked worse than before in the end, the
    encoder is put back, and the head learns to read it as it is.
    """
    torch.manual_seed(settings.seed)
    head = BehaviorHead(config).to(run.workers.device)
    rate, epochs = settings.fine_tune_learning_rate, settings.fine_tune_epochs
    phase = _phase(FINE_TUNING, holdout.history, settings, epochs, rate)
    validation = _validation(_wanted_of(holdout, settings.target_type), settings)
    phase = replace(phase, wanted=_wanted(settings), validation=validation, patience=settings.patience)
    weights, before = copy.deepcopy(model.state_dict()), validate(phase, model, run.workers)
    learn(phase, objective_of(model, holdout.history, settings, head), run, report)
    after = validate(phase, model, run.workers)
    worse = before is not None and after is not None and after.is_worse_than(before)
    if worse:
        model.load_state_dict(weights)
        with _frozen(model):
            phase = _phase(READING, holdout.history, settings, epochs, rate)
            learn(phase, objective_of(model, holdout.history, settings, head), run, report)
    return FineTuned(head, put_back=worse)


def refit(
    model: Encoder,
    tuned: FineTuned | None,
    settings: TrainConfig,
    sequences: Sequences,
    report: Report,
    run: Run = BY_ITSELF,
) -> None:
    """Go on training on everything, so that what is served has also learned from what it was judged by."""
    phase = _phase(REFITTING, sequences, settings, settings.refit_epochs, settings.refit_learning_rate)
    head = None
    if tuned is not None:
        phase, head = replace(phase, wanted=EVERYTHING if tuned.put_back else _wanted(settings)), tuned.head
    learn(phase, objective_of(model, sequences, settings, head), run, report)


@contextmanager
def _frozen(model: Encoder) -> Iterator[None]:
    """No weight of it learns."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def _wanted(settings: TrainConfig) -> Wanted:
    return Wanted(settings.target_type, settings.other_weight)


def _phase(name: str, sequences: Sequences, settings: TrainConfig, epochs: int, learning_rate: float) -> Phase:
    rates = Rates(learning_rate, settings.item_rate, settings.head_rate, settings.weight_decay)
    return Phase(name, sequences, epochs, rates, settings.batch_events, settings.chunk, settings.seed)


def objective_of(
    model: Encoder, sequences: Sequences, settings: TrainConfig, head: BehaviorHead | None = None
) -> Objective:
    """With a head, the objective of fine-tuning; without, that of pre-training."""
    popularity = torch.from_numpy(np.bincount(sequences.items, minlength=sequences.item_count + 1))
    objective = Objective(model, popularity, settings.negatives, settings.bfloat16, head, settings.head_weight)
    return objective.to(model.device)


def _wanted_of(holdout: Holdout, event_type: int) -> Holdout:
    """The targets that lead to a type, 0 for every one; all of them where too few can be ranked to judge by."""
    if event_type == 0:
        return holdout
    rows = np.flatnonzero(holdout.outcomes[:, event_type])
    ranked = np.isin(holdout.targets[rows], holdout.history.items).sum()
    return holdout if ranked < ENOUGH_TARGETS else holdout.of_users(rows)


def _validation(holdout: Holdout, settings: TrainConfig) -> Holdout:
    """At most so many of the users as shall judge an epoch, drawn with the seed."""
    return holdout.of_users(drawn(len(holdout.users), settings.validation_users, settings.seed))
