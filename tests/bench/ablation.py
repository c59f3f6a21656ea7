"""`make bench-ablation`: what each part of the encoder earns, on validation targets.

    python -m tests.bench.ablation --data DIR [--seeds N] [--jobs N] [--work DIR] [--json FILE]

Every variant is trained with the settings that `longtide train` chooses for the log, its best epoch chosen by events
that nothing else is judged by, and judged by each user's second-to-last event; the last ones, which tests are scored
by, are cut off before. Where a log takes long, some of its users have to do, evenly from the whole log. Variants are
trained on the GPU where there is one. What a variant costs is a core's time for training on a few users, against the
whole encoder's.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from tests.bench.figures import Figure, options, plain, publish
from tests.bench.pieces import Pieces
from torch import Tensor, nn

from longtide_server.training.dataset import Holdout, Sequences, hold_out_last, nothing_held_out, to_sequences
from longtide_server.training.files.log import read_log, times_are_real
from longtide_server.training.learning import model as model_module
from longtide_server.training.learning import train as train_module
from longtide_server.training.learning.content import Content
from longtide_server.training.learning.encoding import last_queries, ranks_by
from longtide_server.training.learning.loop import Run
from longtide_server.training.learning.model import Block, Encoder, Memories, ModelConfig, Packed
from longtide_server.training.learning.objective import Batch, Loss, Objective
from longtide_server.training.learning.train import fine_tune, train_encoder
from longtide_server.training.learning.workers import Workers, best_device
from longtide_server.training.metrics import NOT_RANKED, gains_at_k, hr_at_k, ndcg_at_k
from longtide_server.training.settings import Settings, bfloat16_is_faster, settings_for


class WithoutShortTerm(Encoder):
    """The memory of the last few is silent, to the gate too."""

    def _query(self, y: Tensor, gap: Tensor, memories: Tensor) -> Tensor:
        return super()._query(y, gap, memories * _first(memories, 0.0, 1.0))


class WithoutLongTerm(Encoder):
    """The slower memories are silent, to the gate too: what is long ago is left to the LSTM."""

    def _query(self, y: Tensor, gap: Tensor, memories: Tensor) -> Tensor:
        return super()._query(y, gap, memories * _first(memories, 1.0, 0.0))


def _first(memories: Tensor, first: float, others: float) -> Tensor:
    """Of memories (..., K, D), factors (K, 1)."""
    return torch.tensor([first] + [others] * (memories.shape[-2] - 1), device=memories.device).unsqueeze(1)


class Forgetful(nn.Module):
    """In the place of memories, none."""

    def __init__(self, kept: Memories) -> None:
        super().__init__()
        self.norm = kept.norm

    def forward(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), m (B, K, D) -> nothing, twice (B, T, K, D)."""
        nothing = x.new_zeros(*x.shape[:2], *m.shape[1:])
        return nothing, nothing

    def last(self, _x: Tensor, _packed: Packed, m: Tensor) -> Tensor:
        """-> nothing (R, K, D)."""
        return torch.zeros_like(m)


class WithoutGate(Encoder):
    """Both interests count equally, whatever the state and the time."""

    def joined(self, short_term: Tensor, long_term: Tensor, seen: Tensor) -> Tensor:
        return 0.5 * (short_term + long_term)


class WithoutMemories(Encoder):
    """The recurrence alone."""

    def __init__(self, config: ModelConfig, content: Content | None = None) -> None:
        super().__init__(config, content)
        self.add_module("memories", Forgetful(self.memories))

    def joined(self, short_term: Tensor, long_term: Tensor, seen: Tensor) -> Tensor:
        return torch.zeros_like(short_term)


class PlainBlock(Block):
    """An LSTM and nothing around it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.add_module("norm", nn.Identity())
        self.add_module("feed_forward", nn.Identity())

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows the recurrence, without x."""
        added: Tensor = self.dropout(self.project(y))
        return added


class Unforgiving(Objective):
    """What users have had counts as much as what is new to them."""

    def forward(self, batch: Batch, state: Tensor) -> tuple[Loss, Tensor]:
        nothing = replace(batch.past, count=torch.zeros_like(batch.past.count))
        return super().forward(replace(batch, past=nothing), state)


def with_model(**changes: Any) -> Callable[[Settings], Settings]:
    """A change of the model's settings."""
    return lambda settings: replace(settings, model=replace(settings.model, **changes))


def same(settings: Settings) -> Settings:
    """No change."""
    return settings


@dataclass(frozen=True)
class Variant:
    """An encoder, and how it is trained."""

    change: Callable[[Settings], Settings] = same
    encoder: type[Encoder] = Encoder
    block: type[Block] = Block
    objective: type[Objective] = Objective


VARIANTS = {
    "the encoder": Variant(),
    "without the memory of the last few": Variant(encoder=WithoutShortTerm),
    "without the slower memories": Variant(encoder=WithoutLongTerm),
    "without any memory": Variant(encoder=WithoutMemories),
    "the last item for the last few": Variant(with_model(half_lives=(0.1, *ModelConfig(1).half_lives))),
    "without the gate": Variant(encoder=WithoutGate),
    "without norm, residual and feed-forward": Variant(block=PlainBlock),
    "with what users have had counting in full": Variant(objective=Unforgiving),
    "without time gaps": Variant(with_model(use_gaps=False)),
    "without values": Variant(with_model(use_values=False)),
    "without types": Variant(with_model(use_types=False)),
    "without request times in training": Variant(with_model(use_request_time=False)),
}


def every(sequences: Sequences, users: int) -> Sequences:
    """At most so many users, evenly from the whole log."""
    last = sequences.user_count - 1
    chosen = np.linspace(0, last, min(users, sequences.user_count)).round().astype(np.int64)
    events = np.concatenate([np.arange(sequences.offsets[user], sequences.offsets[user + 1]) for user in chosen])
    return replace(
        sequences,
        owners=tuple(sequences.owners[user] for user in chosen),
        offsets=np.concatenate([[0], np.cumsum(sequences.lengths[chosen])]),
        items=sequences.items[events],
        types=sequences.types[events],
        times=sequences.times[events],
        gaps=sequences.gaps[events],
        values=sequences.values[events],
    )


@contextmanager
def built_as(variant: Variant) -> Iterator[None]:
    """Training makes the variant's modules instead of the encoder's."""
    with (
        patch.object(train_module, "Encoder", variant.encoder),
        patch.object(train_module, "Objective", variant.objective),
        patch.object(model_module, "Block", variant.block),
    ):
        yield


RowOf = dict[str, Any]
"""`variant` by name, and `ranks` of the targets, -1 where one is not among the first ten."""


def measured(name: str, settings: Settings, holdout: Holdout) -> list[RowOf]:
    """A variant, trained and judged; the whole encoder also when it is told the time of the request."""
    variant = VARIANTS[name]
    settings = variant.change(settings)
    # What judges the variant must not have chosen its best epoch: the events before say which that is.
    choosing = hold_out_last(holdout.history, most_users=settings.train.validation_users, seed=settings.train.seed)
    run = Run(Workers(device=best_device()))
    with built_as(variant):
        model = train_encoder(settings.model, settings.train, choosing, lambda _: None, run)
        if settings.train.fine_tune_epochs:
            fine_tune(model, settings.model, settings.train, choosing, lambda _: None, run)
    queries = last_queries(model, holdout.history, holdout.users, settings.train.batch_events)
    rows = [_row(name, ranks_by(queries, model, holdout))]
    if variant == Variant() and model.request_time is not None:
        told = model.request_time.cpu()(torch.from_numpy(queries), torch.from_numpy(_waits(holdout)))
        rows.append(_row(f"{name}, told the time of the request", ranks_by(told.detach().numpy(), model, holdout)))
    return rows


def training_s(name: str, settings: Settings, sequences: Sequences) -> float:
    """Seconds of a core for an epoch of a variant's pre-training."""
    variant = VARIANTS[name]
    settings = variant.change(settings)
    begun = time.process_time()
    with built_as(variant):
        once = replace(settings.train, epochs=1)
        train_encoder(settings.model, once, nothing_held_out(sequences), lambda _: None)
    return time.process_time() - begun


def _waits(holdout: Holdout) -> NDArray[np.float64]:
    """(V,) seconds from everyone's last event of the history to the target."""
    return holdout.times - holdout.history.times[holdout.history.offsets[holdout.users + 1] - 1]


def _row(name: str, ranks: NDArray[np.int64]) -> RowOf:
    return {"variant": name, "ranks": np.where(ranks < SHOWN, ranks, NOT_RANKED).tolist()}


@dataclass(frozen=True)
class Log:
    """A log, and how many of its users are enough."""

    folder: str
    timed_users: int
    """For what a variant costs."""
    users: int = 1_000_000
    file: str = "interactions.csv.gz"
    owner: str = "user_id"
    """The column that says whose event it is."""


LOGS = (
    Log("amazon-beauty", 1500),
    Log("movielens-1m", 100, users=2000),
    Log("movielens-100k", 100),
    Log("yoochoose-100k", 2500, file="clicks.csv.gz", owner="session_id"),
)
ROUNDS = 3
SHOWN = 10
"""How long a list is."""


def prepared(data: Path, log: Log, seed: int) -> tuple[Settings, Holdout]:
    """What `longtide train` chooses for the whole log; and its users, or some of them, without everyone's last event,
    the one before it being the target."""
    read, _ = read_log(data / log.folder / log.file, {"user_id": log.owner})
    whole = to_sequences(read)  # which settings are chosen from: fewer users do not make a log another one
    settings = settings_for(whole, times_are_real=times_are_real(read), seed=seed)
    # Everyone's last event is for tests; what is chosen between here is judged by the one before it.
    sequences = hold_out_last(every(whole, log.users)).history
    return replace(settings, train=replace(settings.train, patience=settings.train.epochs)), hold_out_last(sequences)


def differing(settings: Settings) -> list[str]:
    """The variants that differ from the encoder on a log: some inputs it does not have."""
    return [
        name for name, variant in VARIANTS.items() if variant.change is same or variant.change(settings) != settings
    ]


class Studies(Pieces):
    """What each training of a variant gave."""

    def __init__(self, data: Path, work: Path) -> None:
        super().__init__(work, (Path(__file__),))
        self.data = data

    def file(self, log: Log) -> Path:
        """Where a log is."""
        return self.data / log.folder / log.file

    def studied(self, log: Log, seed: int, name: str) -> list[RowOf]:
        """A variant's rows."""

        def do() -> dict[str, Any]:
            return {"rows": measured(name, *prepared(self.data, log, seed)), "device": best_device().type}

        words = name.replace(",", "").replace(" ", "-")
        found = self.piece(f"{log.folder}.ablation.{words}.{seed}", do, [self.code], [self.file(log)])
        return list(found["rows"])

    def costs(self, log: Log) -> dict[str, float]:
        """What training each variant costs, the encoder's being 1: the median of rounds in which all take turns."""

        def do() -> dict[str, Any]:
            settings, holdout = prepared(self.data, log, seed=0)
            settings = replace(settings, train=replace(settings.train, bfloat16=bfloat16_is_faster()))
            few = every(holdout.history, log.timed_users)
            rounds = [{name: training_s(name, settings, few) for name in differing(settings)} for _ in range(ROUNDS)]
            against = [{name: one[name] / one["the encoder"] for name in one} for one in rounds]
            return {"costs": {name: round(statistics.median(one[name] for one in against), 2) for name in against[0]}}

        return dict(self.piece(f"{log.folder}.ablation.costs", do, [self.code], [self.file(log)])["costs"])


@dataclass(frozen=True)
class Row:
    """What a variant reached on a log, over all seeds."""

    hit_rates: list[float]
    ndcgs: list[float]
    more: float
    """NDCG@10 beyond the encoder's."""
    error: float
    """The standard error of that, by the users, who judge both; what chance does in training is not in it."""
    cost: float | None


def table(trainings: list[list[RowOf]], costs_of: dict[str, float]) -> dict[str, Row]:
    """A log's rows by variant, of what every training gave."""
    ranks: dict[str, list[NDArray[np.int64]]] = {}
    for row in (row for rows in trainings for row in rows):
        ranks.setdefault(row["variant"], []).append(np.array(row["ranks"]))
    gains = {name: np.mean([gains_at_k(one, SHOWN) for one in found], axis=0) for name, found in ranks.items()}  # (V,)
    rows = {}
    for name, found in ranks.items():
        more = gains[name] - gains["the encoder"]
        rows[name] = Row(
            [hr_at_k(one, SHOWN) for one in found],
            [ndcg_at_k(one, SHOWN) for one in found],
            float(more.mean()),
            float(more.std() / np.sqrt(len(more))),
            costs_of.get(name),
        )
    return rows


def figures(found: dict[str, dict[str, Row]]) -> Iterator[Figure]:
    """All rows, by log, for machines."""
    for folder, rows in found.items():
        for name, row in rows.items():
            for metric, values in (("hr@10", row.hit_rates), ("ndcg@10", row.ndcgs)):
                note = f"validation targets; {len(values)} seeds, {min(values):.4f} to {max(values):.4f}"
                yield plain(f"{folder} {name} {metric}", round(statistics.mean(values), 4), "share", note)
            if name != "the encoder":
                note = f"than the encoder's; standard error {row.error:.4f}, by users"
                yield plain(f"{folder} {name} ndcg@10, more", round(row.more, 4), "share", note)
            if row.cost is not None:
                yield plain(f"{folder} {name} training cost", row.cost, "times", "a core's time, the encoder's is 1")


def show(found: dict[str, dict[str, Row]]) -> None:
    """One table: a row for each variant, three columns for each log."""
    print("\n| HR@10 / NDCG@10 | " + " | ".join(f"{folder} | more | cost" for folder in found) + " |")
    print("|---" * (1 + 3 * len(found)) + "|")
    for name in dict.fromkeys(name for rows in found.values() for name in rows):
        cells = [cell for rows in found.values() for cell in _cells(rows.get(name))]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _cells(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    means = f"{statistics.mean(row.hit_rates):.4f} / {statistics.mean(row.ndcgs):.4f}"
    return means, f"{row.more:+.4f} ± {row.error:.4f}", "" if row.cost is None else f"{row.cost:.2f}"


def main() -> None:
    """Print a table with a row for each variant and columns for each log where it differs."""
    asked = options(__doc__).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // asked.jobs))
    studies = Studies(asked.data, asked.work)
    named = {log: differing(prepared(asked.data, log, seed=0)[0]) for log in LOGS}
    one_by_one = [(log, seed, name) for seed in range(asked.seeds) for log, names in named.items() for name in names]
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        for work in [pool.submit(studies.studied, *one) for one in one_by_one]:
            work.result()
        for log in LOGS:  # which is timed, and so has the machine to itself
            pool.submit(studies.costs, log).result()
    found = {
        log.folder: table([studies.studied(*one) for one in one_by_one if one[0] == log], studies.costs(log))
        for log in LOGS
    }
    show(found)
    publish([*figures(found), studies.of_other_code()], asked.json)


if __name__ == "__main__":
    main()
