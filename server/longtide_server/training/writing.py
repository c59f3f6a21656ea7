"""Writes what training led to: a snapshot, file by file."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from longtide_server.catalog.catalog import Catalog, ItemInfo, write_catalog
from longtide_server.ranking import Fusion
from longtide_server.snapshot import (
    BEHAVIOR,
    CATALOG,
    CONTENT,
    CONTENT_VECTORS,
    EMBEDDINGS,
    ENCODER,
    POPULARITY,
    RELATIONS,
    REPEATS,
    REQUEST_TIME,
    TRANSITIONS,
    USERS,
    EncoderFacts,
    Manifest,
    publish,
    write_owners,
)
from longtide_server.sources.repeats import RepeatWeights
from longtide_server.training.dataset import Sequences
from longtide_server.training.items.newcomers import Newcomers
from longtide_server.training.learning.heads import BehaviorHead
from longtide_server.training.learning.model import Encoder
from longtide_server.training.learning.serving import ServingEncoder
from longtide_server.training.settings import Settings
from longtide_server.training.sources.counts import count_popularity, count_transitions
from longtide_server.training.sources.indexing import write_index
from longtide_server.training.sources.linking import link


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a snapshot is made of."""

    encoder: Encoder
    sequences: Sequences
    """What neighbours, transitions and popularity are of."""
    infos: Mapping[str, ItemInfo]
    settings: Settings
    fusion: Fusion
    newcomers: Newcomers
    metrics: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """Validation metrics by source, then by name."""
    head: BehaviorHead | None = None
    repeats: RepeatWeights | None = None


def write_snapshot(made: Made, directory: Path) -> Path:
    """Write, gate and publish it; returns its folder.

    InvalidInput when no search_k reaches the recall that publishing asks for; Unavailable when the disk is full.
    """
    return publish(directory, partial(_write, made))


def _write(made: Made, folder: Path) -> Manifest:
    new_count = len(made.newcomers.item_ids)
    _write_items(made, folder)
    _write_encoder(made, folder)
    _write_counts(made, folder)
    write_owners(made.sequences.owners, folder / USERS)
    neighbors = write_index(made.encoder, made.sequences, made.settings, folder)
    now, model = datetime.now(UTC), made.settings.model
    return Manifest(
        snapshot_id=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        created_time=now.isoformat(timespec="seconds"),
        encoder=EncoderFacts(model.dim, model.state_size, model.temperature),
        neighbors=neighbors,
        transitions=made.settings.transitions,
        fusion=made.fusion,
        user_count=made.sequences.user_count,
        item_count=made.sequences.item_count,
        new_item_count=new_count,
        event_count=len(made.sequences.items),
        model={**asdict(model), "half_lives": list(model.half_lives)},
        training=asdict(made.settings.train),
        metrics=dict(made.metrics),
    )


def _write_items(made: Made, folder: Path) -> None:
    """The catalogue, and what items are by behaviour and by content."""
    newcomers = made.newcomers
    item_ids = (*made.sequences.item_ids, *newcomers.item_ids)
    catalog = Catalog(item_ids, tuple(made.infos.get(item, ItemInfo()) for item in item_ids))
    write_catalog(catalog, folder / CATALOG)
    embeddings = made.encoder.item_embeddings().detach().cpu().numpy()
    np.save(folder / EMBEDDINGS, np.concatenate([embeddings, newcomers.vectors]))
    if newcomers.content is not None:
        np.savez(folder / CONTENT, **asdict(newcomers.content))
        np.save(folder / CONTENT_VECTORS, np.concatenate([newcomers.known, newcomers.vectors]))
    relations = link(catalog.infos, made.sequences)
    if relations is not None:
        np.savez(folder / RELATIONS, **asdict(relations))


def _write_encoder(made: Made, folder: Path) -> None:
    """The encoder for TorchServe, and what of it the server needs without torch."""
    hosted = ServingEncoder(made.encoder.folded(made.settings.model, torch.from_numpy(made.newcomers.vectors)))
    torch.jit.script(hosted).save(str(folder / ENCODER))  # type: ignore[no-untyped-call]
    if made.head is not None:
        np.savez(folder / BEHAVIOR, **asdict(made.head.weights()))
    if made.encoder.request_time is not None:
        np.savez(folder / REQUEST_TIME, **asdict(made.encoder.request_time.weights()))


def _write_counts(made: Made, folder: Path) -> None:
    """What is popular, what follows what, and how people repeat themselves; of new items, nothing."""
    new_count = len(made.newcomers.item_ids)
    np.save(folder / POPULARITY, np.pad(count_popularity(made.sequences), (0, new_count)))
    transitions = count_transitions(made.sequences, made.settings.transitions)
    np.savez(
        folder / TRANSITIONS,
        offsets=np.pad(transitions.offsets, (0, new_count), mode="edge"),
        items=transitions.items,
        probability=transitions.probability,
    )
    if made.repeats is not None:
        np.savez(folder / REPEATS, **asdict(made.repeats))
