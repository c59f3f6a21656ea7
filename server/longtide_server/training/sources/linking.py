"""Counts what a knowledge graph's relations are worth, and packs the facts of a catalogue for the relation source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.items.text_arrays import SEPARATOR, bytes_of_names
from longtide_server.sources.relations import RelationArrays
from longtide_server.training.dataset import Sequences

MOST_MEMBERS = 500
"""An entity that more items share (a language, a country) says little, and would cost every request much."""


def link(infos: Sequence[ItemInfo], sequences: Sequences) -> RelationArrays | None:
    """The facts of items 1 to I that link one to another; None when no fact does.

    The items of the log come first, as in `sequences`, those without events after them.
    """
    facts = [
        (item, relation, entity)
        for item, info in enumerate(infos, 1)
        for relation, entity in info.facts
        if SEPARATOR not in relation + entity
    ]
    entities: dict[str, set[int]] = {}
    for item, _, entity in facts:
        entities.setdefault(entity, set()).add(item)
    shared = {name: sorted(items) for name, items in entities.items() if 2 <= len(items) <= MOST_MEMBERS}
    if not shared:
        return None
    facts = [fact for fact in facts if fact[2] in shared]
    entity_row = {name: row for row, name in enumerate(shared)}
    relation_row = {name: row for row, name in enumerate(dict.fromkeys(relation for _, relation, _ in facts))}
    counts = np.bincount(sequences.items, minlength=len(infos) + 1)
    members = np.array([item for items in shared.values() for item in items], np.int32)
    arrays = RelationArrays(
        offsets=_offsets(np.array([item for item, _, _ in facts]), len(infos) + 1),
        entity=np.array([entity_row[entity] for _, _, entity in facts], np.int32),
        relation=np.array([relation_row[relation] for _, relation, _ in facts], np.int32),
        member_offsets=np.cumsum([0, *map(len, shared.values())]).astype(np.int64),
        members=members,
        prior=(counts[members] + 1).astype(np.float32),
        weight=np.zeros(len(relation_row), np.float32),
        relation_names=bytes_of_names(relation_row),
        entity_names=bytes_of_names(shared),
    )
    arrays.weight[:] = _weights(arrays, sequences, counts)
    return arrays


def _offsets(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count + 1,) where the entries of each of `count` rows begin; `rows` is ascending."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)


def _weights(arrays: RelationArrays, sequences: Sequences, counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(R,) the share of steps from one item to the next along each relation, beyond what chance would give."""
    owner = np.repeat(np.arange(sequences.user_count), sequences.lengths)
    steps = np.flatnonzero(owner[1:] == owner[:-1])
    width = len(counts)
    pairs, times = np.unique(sequences.items[steps] * width + sequences.items[steps + 1], return_counts=True)
    chosen = counts / max(1, counts.sum())  # (I + 1,) the chance of each item to be next
    left = np.bincount(pairs // width, weights=times, minlength=width)  # (I + 1,) steps from each item
    found = np.zeros(len(arrays.weight))
    for item in np.flatnonzero(np.diff(arrays.offsets)).tolist():
        first, last = np.searchsorted(pairs, (item * width, (item + 1) * width))
        went, often = pairs[first:last] - item * width, times[first:last]
        facts = slice(int(arrays.offsets[item]), int(arrays.offsets[item + 1]))
        for entity, relation in zip(arrays.entity[facts].tolist(), arrays.relation[facts].tolist(), strict=True):
            row = slice(int(arrays.member_offsets[entity]), int(arrays.member_offsets[entity + 1]))
            others = arrays.members[row][arrays.members[row] != item]
            found[relation] += often[np.isin(went, others)].sum() - left[item] * chosen[others].sum()
    return np.asarray(np.maximum(found / max(1, len(steps)), 0.0), np.float32)
