"""Builds the neighbour index over the moments of a log, and chooses how far a search in it must look."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import InvalidInput, Unavailable
from longtide_server.snapshot import DIRECTIONS, INDEX, POSITIONS, NeighborSettings
from longtide_server.sources.neighbors import (
    NeighborIndex,
    build_index,
    index_bytes,
    principal_directions,
    project,
    recall,
)
from longtide_server.training.dataset import Sequences, drawn
from longtide_server.training.learning.encoding import last_queries
from longtide_server.training.learning.model import Encoder
from longtide_server.training.settings import Settings
from longtide_server.training.sources.moments import encode_moments

REQUIRED_RECALL = 0.9
RECALL_QUERIES = 200
DIRECTION_MOMENTS = 100_000
LEAST_SEARCH_K = 500


def write_index(model: Encoder, sequences: Sequences, settings: Settings, folder: Path) -> NeighborSettings:
    """Index the moments, and choose how far a search must look: the least that finds 90 % of the true neighbours."""
    seed = settings.train.seed
    positions, vectors = encode_moments(model, sequences, settings.max_moments, settings.train.batch_events)
    np.savez(folder / POSITIONS, user=positions.user, next_item=positions.next_item, weight=positions.weight)
    directions = principal_directions(vectors[drawn(len(vectors), DIRECTION_MOMENTS, seed)], settings.neighbors.dim)
    np.save(folder / DIRECTIONS, directions)
    shadows = project(vectors, directions)
    del vectors  # a gigabyte for a million moments, and the index needs room
    _require_space(folder, index_bytes(len(shadows), shadows.shape[1], settings.neighbors.trees))
    build_index(shadows, folder / INDEX, settings.neighbors.trees)
    index = NeighborIndex(folder / INDEX, directions, positions)
    queries = _held_out_queries(model, sequences, settings)
    found = 0.0
    for search_k in _search_ks(len(shadows) * settings.neighbors.trees):
        found = recall(index, shadows, queries, settings.neighbors.count, search_k)
        if found >= REQUIRED_RECALL:
            return replace(settings.neighbors, search_k=search_k, recall=round(found, 4))
    raise InvalidInput(
        f"the neighbour index finds {found:.3f} of the true neighbours, however far it looks; {REQUIRED_RECALL} is "
        f"required. Try more trees: --set neighbors.trees={2 * settings.neighbors.trees}"
    )


def _search_ks(everything: int) -> Iterator[int]:
    """How far a search may look: twice as far each time, until it looks at every moment in every tree."""
    yield (search_k := LEAST_SEARCH_K)
    while search_k < everything:
        yield (search_k := 2 * search_k)


def _require_space(folder: Path, needed: int) -> None:
    """Unavailable where a disk is too full: a file that Annoy maps into memory and cannot fill kills the process."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Unavailable(f"{folder}: the neighbour index needs {needed >> 20} MiB; the disk has {free >> 20} left")


def _held_out_queries(model: Encoder, sequences: Sequences, settings: Settings) -> NDArray[np.float32]:
    """Vectors that are asked for in service and are not in the index: users after their last event."""
    users = np.flatnonzero(sequences.lengths >= 1)
    asking = users[drawn(len(users), RECALL_QUERIES, settings.train.seed)]
    return last_queries(model, sequences, asking, settings.train.batch_events)
