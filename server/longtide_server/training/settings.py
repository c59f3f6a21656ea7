"""Chooses how to train from what the log is like: its size, density and columns. Never from its name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from longtide_server.candidates import TransitionSettings
from longtide_server.errors import InvalidInput
from longtide_server.snapshot import NeighborSettings
from longtide_server.training.dataset import Sequences
from longtide_server.training.model import ModelConfig
from longtide_server.training.train import TrainConfig

DENSE_EVENTS_PER_USER = 20.0
SMALL_LOG_EVENTS = 200_000
STEPS_PER_EPOCH = 250
BATCH_EVENTS = (512, 4096)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `longtide train` decides before it begins."""

    model: ModelConfig
    train: TrainConfig
    neighbors: NeighborSettings
    transitions: TransitionSettings
    max_moments: int = 1_000_000
    """Moments in the neighbour index at most, the newest; each takes about 0.7 kB at 128 dimensions and 10 trees."""


def settings_for(sequences: Sequences, *, times_are_real: bool, seed: int) -> Settings:
    """Defaults for a log."""
    dense = len(sequences.items) / max(1, sequences.user_count) >= DENSE_EVENTS_PER_USER
    small = len(sequences.items) < SMALL_LOG_EVENTS
    values = sequences.values[~np.isnan(sequences.values)]
    std = float(values.std()) if len(values) else 0.0
    dim = 64 if small else 128
    return Settings(
        model=ModelConfig(
            item_count=sequences.item_count,
            dim=dim,
            hidden=2 * dim if dense else dim,
            blocks=2 if dense else 1,
            dropout=0.2 if dense else 0.5,
            use_types=len(np.unique(sequences.types)) > 1,
            use_gaps=times_are_real,
            use_values=std > 0.0,
            value_mean=float(values.mean()) if len(values) else 0.0,
            value_std=std or 1.0,
        ),
        train=TrainConfig(
            batch_events=int(np.clip(len(sequences.items) // STEPS_PER_EPOCH, *BATCH_EVENTS)),
            bfloat16=bfloat16_is_faster(),
            seed=seed,
        ),
        neighbors=NeighborSettings(),
        transitions=TransitionSettings(),
    )


def bfloat16_is_faster() -> bool:
    """Whether this processor multiplies bfloat16 matrices clearly faster than float32 ones. Measured: 20 ms."""
    seconds = {dtype: _multiply_s(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] < 0.75 * seconds[torch.float32]


def _multiply_s(dtype: torch.dtype) -> float:
    left, right = torch.ones(512, 128, dtype=dtype), torch.ones(128, 2048, dtype=dtype)
    tries = []
    for _ in range(5):
        begun = time.perf_counter()
        torch.mm(left, right)
        tries.append(time.perf_counter() - begun)
    return min(tries)


def with_overrides(settings: Settings, overrides: Mapping[str, str]) -> Settings:
    """Settings with `group.key=value` replaced, for example `train.epochs=5`. InvalidInput names what is wrong."""
    for name, text in overrides.items():
        group, _, key = name.partition(".")
        if not key:
            settings = replace(settings, **{group: _parsed(settings, group, text, name)})
            continue
        part = getattr(settings, group, None)
        if group not in ("model", "train", "neighbors", "transitions") or part is None:
            raise InvalidInput.of(name, "there is no such setting; `longtide train --help` says where they are listed")
        settings = replace(settings, **{group: replace(part, **{key: _parsed(part, key, text, name)})})
    return settings


def setting_names(settings: Settings) -> list[str]:
    """Every name that `--set` knows, with its value in these settings."""
    found = [f"max_moments={settings.max_moments}"]
    for group in ("model", "train", "neighbors", "transitions"):
        part = getattr(settings, group)
        found += [f"{group}.{field.name}={getattr(part, field.name)}" for field in fields(part)]
    return found


def _parsed(part: Any, key: str, text: str, name: str) -> Any:  # noqa: ANN401  (any setting of any group)
    if key not in {field.name for field in fields(part)}:
        raise InvalidInput.of(name, "there is no such setting")
    old = getattr(part, key)
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(old, tuple):
            return tuple(float(number) for number in text.split(","))
        return type(old)(text)
    except (ValueError, KeyError) as exc:
        raise InvalidInput.of(name, f"{text!r} is not a {type(old).__name__}") from exc
