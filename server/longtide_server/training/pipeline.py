"""From sequences to a published snapshot: train, judge on validation targets, fit the fusion, build, gate, publish."""

from __future__ import annotations

import asyncio
import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.errors import InvalidInput
from longtide_server.ranking import Fusion
from longtide_server.snapshot import load_snapshot, prepare, sweep
from longtide_server.sources.candidates import TransitionSettings
from longtide_server.training.dataset import (
    Holdout,
    Sequences,
    drawn,
    hold_out_last,
    nothing_held_out,
    places_by_frequency,
)
from longtide_server.training.items.known_items import NO_NEW_ITEMS, NOTHING_KNOWN, KnownItems, NewItems
from longtide_server.training.items.newcomers import newcomers_of
from longtide_server.training.learning.checkpoint import Checkpoints, checkpoints_of
from longtide_server.training.learning.content import Content
from longtide_server.training.learning.heads import BehaviorHead
from longtide_server.training.learning.loop import Progress, Run
from longtide_server.training.learning.memory import give_back
from longtide_server.training.learning.model import Encoder
from longtide_server.training.learning.train import fine_tune, planned, refit, train_encoder
from longtide_server.training.learning.workers import Workers, best_device
from longtide_server.training.offline import OfflineRecommender
from longtide_server.training.settings import Settings
from longtide_server.training.sources.counts import count_transitions
from longtide_server.training.sources.fusion import fit_fusion, line_up, source_metrics
from longtide_server.training.sources.gathering import gathered
from longtide_server.training.sources.repeating import count_repeats
from longtide_server.training.writing import Made, write_snapshot

FUSION_USERS = 3_000
FUSION_CANDIDATES = 12_000_000
"""Of all these users, about 180 bytes each while weights are sought. Those of MovieLens-1M have 11,118,000 at most."""
MIN_EVENTS = 3
MIN_TARGETS = 50
"""With fewer, chance would choose what they were asked to choose."""
EVERY_SOURCE = Fusion(relations=1.0, content=1.0)
"""While weights are sought, whoever has something to say is asked."""
TRANSITIONS_TRIED = (TransitionSettings(5, 0.7), TransitionSettings(20, 0.9))
"""Next steps alone, or what belongs to the same stretch of a history: which one helps more depends on the log."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the work that begins, in words."""

    text: str
    trains: bool = False
    """Whether it is one of the phases of training."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The training that begins: how many epochs each of its phases has at most, in their order."""

    epochs: Mapping[str, int]


Report = Callable[[Progress | Step | Plan], None]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What training made of a log."""

    validated: Encoder
    """Has not seen the targets of the holdout: the fusion is fitted with it."""
    served: Encoder
    """The same, refitted on everything."""
    head: BehaviorHead | None
    """Reads the next behaviour from the served encoder's query vectors, where the log has types or values to learn."""
    holdout: Holdout


def train_and_publish(
    sequences: Sequences,
    infos: Mapping[str, ItemInfo],
    settings: Settings,
    directory: Path,
    report: Report,
    known: KnownItems = NOTHING_KNOWN,
) -> Path:
    """Train, fit and publish a snapshot; returns its folder.

    InvalidInput when no user has enough events to learn from, or when no search_k reaches the recall that publishing
    asks for; Unavailable when the disk is full.
    """
    workers = Workers(device=best_device())
    run = Run(workers, prepare_training(sequences, settings, directory, known.content))
    trained = train(sequences, settings, report, run, known.content)
    return publish_trained(trained, sequences, infos, settings, directory, report, run, known.new)


def prepare_training(
    sequences: Sequences,
    settings: Settings,
    directory: Path,
    content: Content | None = None,
) -> Checkpoints:
    """Fail now what would fail after the training, and find what an earlier, killed training of the same log left."""
    if not (sequences.lengths >= 2).any():
        raise InvalidInput("no user of the log has two events; there is nothing to learn what follows what from")
    if not sequences.chosen.any():
        raise InvalidInput("the log has dislikes only; there is nothing to learn what people want from")
    prepare(directory)
    sweep(directory, time.time())
    log = (sequences.item_ids, sequences.offsets, sequences.items, sequences.types, sequences.gaps, sequences.values)
    told = () if content is None else (content.text, content.image, content.labels, content.offsets, content.names)
    return checkpoints_of(directory, settings.model, settings.train, *log, *told)


def train(
    sequences: Sequences, settings: Settings, report: Report, run: Run, content: Content | None = None
) -> Trained:
    """All phases of training; in every process that takes part, with the same outcome."""
    users = max(FUSION_USERS, settings.train.validation_users)
    holdout = hold_out_last(sequences, MIN_EVENTS, most_users=users, seed=settings.train.seed)
    if np.isin(holdout.targets, holdout.history.items).sum() < MIN_TARGETS:  # learn from all of it, judge by nothing
        holdout = nothing_held_out(sequences)
    report(Plan(planned(settings.train)))
    report(Step("Training the encoder", trains=True))
    model = train_encoder(settings.model, settings.train, holdout, report, run, content)
    tuned = None
    if settings.train.fine_tune_epochs:
        report(Step("Fine-tuning on the behaviour that is wanted", trains=True))
        tuned = fine_tune(model, settings.model, settings.train, holdout, report, run)
        if tuned.put_back:
            report(Step("That ranked the targets worse, so the encoder was put back", trains=True))
    validated = copy.deepcopy(model).to(model.device)  # which lays out copied weights as cuDNN wants them
    if settings.train.refit_epochs:
        report(Step("Refitting on everything", trains=True))
        refit(model, tuned, settings.train, sequences, report, run)
    return Trained(validated, model, None if tuned is None else tuned.head, holdout)


def publish_trained(
    trained: Trained,
    sequences: Sequences,
    infos: Mapping[str, ItemInfo],
    settings: Settings,
    directory: Path,
    report: Report,
    run: Run,
    new: NewItems = NO_NEW_ITEMS,
) -> Path:
    """Fit the fusion, build, gate and publish; returns the snapshot's folder."""
    holdout = trained.holdout
    report(Step("Fitting the fusion on validation data"))
    tried = _tried(settings.transitions)
    # A kill may leave it, with an index of hundreds of megabytes: what clears the checkpoints clears it, too.
    room = directory if run.checkpoints is None else run.checkpoints.room()
    with tempfile.TemporaryDirectory(prefix="validation-", dir=room) as scratch:
        first = replace(settings, transitions=tried[0])
        newcomers = newcomers_of(trained.validated, holdout.history, settings.train, infos, NO_NEW_ITEMS)
        made = Made(trained.validated, holdout.history, infos, first, EVERY_SOURCE, newcomers)
        write_snapshot(made, Path(scratch))
        fits = asyncio.run(_fits(Path(scratch), holdout, tried, settings))
    best = max(fits, key=lambda fit: fit.metrics.get("fusion", {}).get("ndcg@10", 0.0))
    settings = replace(settings, transitions=best.transitions)
    give_back()
    if trained.served.items.content is not None:
        report(Step("Learning what content says of new items"))
    newcomers = newcomers_of(trained.served, sequences, settings.train, infos, new)
    report(Step("Building and publishing the snapshot"))
    repeats = count_repeats(sequences)
    made = Made(trained.served, sequences, infos, settings, best.fusion, newcomers, best.metrics, trained.head, repeats)
    folder = write_snapshot(made, directory)
    if run.checkpoints is not None:
        run.checkpoints.clear()
    return folder


def _tried(chosen: TransitionSettings) -> tuple[TransitionSettings, ...]:
    """The ways to count transitions that validation chooses from; 0 is what it chooses."""
    ways = (TransitionSettings(chosen.lags or way.lags, chosen.decay or way.decay) for way in TRANSITIONS_TRIED)
    return tuple(dict.fromkeys(ways))


@dataclass(frozen=True, slots=True)
class _Fit:
    """The weights that do best where transitions are read in one way, and how well."""

    transitions: TransitionSettings
    fusion: Fusion
    metrics: dict[str, dict[str, float]]


async def _fits(
    directory: Path, holdout: Holdout, tried: Sequence[TransitionSettings], settings: Settings
) -> list[_Fit]:
    """What the sources, built without the targets, are worth to users whose targets are known; by way, in order."""
    users = drawn(len(holdout.users), FUSION_USERS, settings.train.seed)
    draw = np.random.default_rng(settings.train.seed).permutation(len(users))
    snapshot = load_snapshot(directory)
    offline = OfflineRecommender(snapshot, holdout.history, kept_users=len(users) + 1)
    places = places_by_frequency(holdout.history)  # the items' numbers know how often the targets were chosen
    fits = {}
    try:
        for transitions in sorted(tried, key=lambda way: -way.lags):  # the widest finds most, so all have room for its
            counted = count_transitions(holdout.history, transitions)
            manifest = replace(snapshot.manifest, transitions=transitions)
            offline.reads(replace(snapshot, transitions=counted, manifest=manifest))
            owners = [holdout.history.owners[user] for user in holdout.users[users]]
            rows, told = await gathered(offline.candidates(owners, limit=10), draw.tolist(), FUSION_CANDIDATES)
            users, draw = users[rows], draw[rows]
            lined_up = line_up(told, holdout.targets[users], places)
            del told  # hundreds of megabytes, as is what they were lined up to
            fusion = fit_fusion(lined_up)
            fits[transitions] = _Fit(transitions, fusion, source_metrics(lined_up, fusion))
            del lined_up
    finally:
        await offline.close()
    return [fits[transitions] for transitions in tried]
