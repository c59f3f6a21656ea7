"""Chooses how to train from what the log is like: its size, density and columns. Never from its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longtide_server.errors import InvalidInput
from longtide_server.events import EventType
from longtide_server.snapshot import NeighborSettings
from longtide_server.sources.candidates import TransitionSettings
from longtide_server.training.dataset import Sequences
from longtide_server.training.learning.model import ModelConfig
from longtide_server.training.learning.train import TrainConfig
from longtide_server.training.learning.workers import CPU, best_device

DENSE_EVENTS_PER_USER = 20.0
LONGEST = 0.01
"""Of a log's histories."""
SMALL_LOG_EVENTS = 200_000
SELDOM_EVENTS = 100
SELDOM_RATE = 3.0
"""Of items with fewer events each, on average, the embeddings learn faster: they get fewer chances to. What a crawler
did, gives them none."""
STEPS_PER_EPOCH = 220
BATCH_EVENTS = (896, 2048)
FULL_SOFTMAX_ITEMS = 30_000
NEGATIVES = 4096
WANTED_TYPES = (EventType.PURCHASE, EventType.ADD_TO_CART, EventType.LIKE, EventType.WATCH, EventType.READ)
"""What a business wants, the most wanted first."""
COMMON_SHARE = 0.01
RARE = 0.001
"""Of a log's values, at either end: what they are like does not follow from these."""
CPU_FACTS = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
BFLOAT16_CAPABILITY = (8, 0)
"""NVIDIA's Ampere, 2020, and what came after it."""

# What `--set` may change, and from where to where. What follows from the log itself is not among it.
TINY = 1e-6
FEWEST = 2
"""Half-lives: a short-term one, then long-term ones."""
RANGES: dict[str, tuple[float, float]] = {
    "max_moments": (1, 1e9),
    "model.dim": (1, 4096),
    "model.hidden": (1, 16384),
    "model.blocks": (1, 64),
    "model.dropout": (0, 0.99),
    "model.temperature": (TINY, 100),
    "model.half_lives": (0.1, 1e6),
    "train.epochs": (1, 10_000),
    "train.patience": (1, 10_000),
    "train.learning_rate": (TINY, 10),
    "train.item_rate": (TINY, 1_000),
    "train.fine_tune_epochs": (0, 10_000),
    "train.fine_tune_learning_rate": (TINY, 10),
    "train.target_type": (0, 12),
    "train.other_weight": (0, 1),
    "train.head_weight": (0, 1_000),
    "train.head_rate": (TINY, 1_000),
    "train.refit_epochs": (0, 10_000),
    "train.refit_learning_rate": (TINY, 10),
    "train.weight_decay": (0, 10),
    "train.batch_events": (1, 1_000_000),
    "train.chunk": (1, 100_000),
    "train.negatives": (0, 10_000_000),
    "train.validation_users": (1, 1e9),
    "train.seed": (0, 2**32 - 1),
    "neighbors.count": (1, 100_000),
    "neighbors.dim": (1, 4096),
    "neighbors.trees": (1, 1_000),
    "neighbors.min_similarity": (-1, 1),
    "neighbors.temperature": (TINY, 100),
    "transitions.lags": (0, 1_000),
    "transitions.decay": (0, 1),
}
SWITCHES = ("model.use_types", "model.use_gaps", "model.use_values", "model.use_request_time", "train.bfloat16")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `longtide train` decides before it begins."""

    model: ModelConfig
    train: TrainConfig
    neighbors: NeighborSettings
    transitions: TransitionSettings
    """0 stands for what is chosen on validation data."""
    max_moments: int = 1_000_000
    """Moments in the neighbour index at most, the newest; each takes about 0.5 kB."""


def settings_for(sequences: Sequences, *, times_are_real: bool, seed: int) -> Settings:
    """Defaults for a log."""
    events = len(sequences.items)
    usual = _usual_length(sequences.lengths)
    dense = usual >= DENSE_EVENTS_PER_USER
    small = dense and events < SMALL_LOG_EVENTS
    dim = 64 if small else 256
    use_types = len(np.unique(sequences.types)) > 1
    mean, std = _mean_and_deviation(sequences.values[~np.isnan(sequences.values)])
    # What people think of items teaches an encoder as much as which they choose: where there is enough to learn both
    # from, the two are learned together, at full speed, after a short pre-training.
    together = dense and std > 0.0
    return Settings(
        model=ModelConfig(
            item_count=sequences.item_count,
            dim=dim,
            hidden=dim,
            blocks=2 if dense else 1,
            dropout=0.2 if dense else 0.5,
            use_types=use_types,
            use_gaps=times_are_real,
            use_values=std > 0.0,
            use_request_time=times_are_real,
            value_mean=mean,
            value_std=std or 1.0,
        ),
        train=TrainConfig(
            epochs=3 if together else 10 if dense and not small else 7,
            # Sparse logs gain from another round at full speed, dense ones lose by it.
            refit_epochs=1 if dense else 4,
            refit_learning_rate=4e-4 if dense else 2e-3,
            item_rate=SELDOM_RATE if usual * sequences.user_count < SELDOM_EVENTS * sequences.item_count else 1.0,
            fine_tune_epochs=8 if together else 2 if use_types or std > 0.0 else 0,
            fine_tune_learning_rate=2e-3 if together else 5e-4,
            head_weight=1.0 if together else 0.1,
            target_type=_wanted_type(sequences),
            batch_events=int(np.clip(events // STEPS_PER_EPOCH, *BATCH_EVENTS)),
            chunk=64 if dense else 128,
            negatives=0 if sequences.item_count <= FULL_SOFTMAX_ITEMS else NEGATIVES,
            bfloat16=bfloat16_is_faster(best_device()),
            seed=seed,
        ),
        neighbors=NeighborSettings(),
        transitions=TransitionSettings(lags=0, decay=0.0),
    )


def _usual_length(lengths: NDArray[np.int64]) -> float:
    """The mean of all users' but the longest: one crawler must not make a log of short visits a dense one."""
    kept = len(lengths) - int(LONGEST * len(lengths))
    return float(np.sort(lengths)[:kept].mean()) if len(lengths) else 0.0


def _mean_and_deviation(values: NDArray[np.float32]) -> tuple[float, float]:
    """Of values (N,), the rarest of them as near as the next: one slip must not make all others look alike."""
    if not len(values):
        return 0.0, 0.0
    last = len(values) - 1
    least, most = int(RARE * last), last - int(RARE * last)
    in_order = np.partition(values, (least, most))
    usual = values.astype(np.float64).clip(in_order[least], in_order[most])  # squares of 32 bits fit into nothing less
    return float(usual.mean()), float(usual.std())


def _wanted_type(sequences: Sequences) -> int:
    """The strongest type of behaviour that is common enough to learn from; 0 where there is but one."""
    counts = np.bincount(sequences.types, minlength=len(EventType) + 1)
    if np.count_nonzero(counts) < 2:
        return 0
    return next((wanted for wanted in WANTED_TYPES if counts[wanted] >= COMMON_SHARE * counts.sum()), 0)


def bfloat16_is_faster(device: torch.device = CPU) -> bool:
    """Whether this processor, or GPU, multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY
    facts = CPU_FACTS.read_text(encoding="ascii") if CPU_FACTS.exists() else ""
    return any(flag in facts for flag in BFLOAT16_FLAGS)


def with_overrides(settings: Settings, overrides: Mapping[str, str]) -> Settings:
    """Settings with `group.key=value` replaced, for example `train.epochs=5`. InvalidInput names what is wrong."""
    for name, text in overrides.items():
        if name not in RANGES and name not in SWITCHES:
            raise InvalidInput.of(name, "there is no such setting; --show-settings lists them")
        group, _, key = name.rpartition(".")
        if not group:
            settings = replace(settings, **{key: _parsed(settings, key, text, name)})
        else:
            part = getattr(settings, group)
            settings = replace(settings, **{group: replace(part, **{key: _parsed(part, key, text, name)})})
    return settings


def setting_names(settings: Settings) -> list[str]:
    """Every setting with its value, as `--set` takes it."""
    return [f"{name}={_written(settings, name)}" for name in (*RANGES, *SWITCHES)]


def _written(settings: Settings, name: str) -> str:
    group, _, key = name.rpartition(".")
    value = getattr(getattr(settings, group) if group else settings, key)
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value).lower()


def _parsed(part: Any, key: str, text: str, name: str) -> Any:  # noqa: ANN401  (any setting of any group)
    old = getattr(part, key)
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        value = tuple(float(number) for number in text.split(",")) if isinstance(old, tuple) else type(old)(text)
    except (ValueError, KeyError) as exc:
        raise InvalidInput.of(name, f"{text!r} is not a {type(old).__name__}") from exc
    if isinstance(value, tuple) and (len(value) < FEWEST or list(value) != sorted(value)):
        raise InvalidInput.of(name, f"{text!r} is not {FEWEST} numbers or more, the smallest first")
    least, most = RANGES[name]
    for number in value if isinstance(value, tuple) else (value,):
        if not least <= number <= most:  # also true for NaN
            raise InvalidInput.of(name, f"is {number}; {least:g} to {most:g} is allowed")
    return value
