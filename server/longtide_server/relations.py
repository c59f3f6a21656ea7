"""What a user's last items are linked to by what they share: a director, a series, a brand. Pure functions on arrays.

A fact says that an item has a relation to an entity (`director`, `Kubrick`). Two items are linked when an entity is in
facts of both. How much a link says follows from the relation: from how much more often people go on along it than
chance would have it, as training counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.candidates import NOTHING, Scored, tally
from longtide_server.text_arrays import names_of

PATHS_SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class RelationArrays:
    """The facts of a catalogue of I items, F of them, about N entities, in R relations; as they are published."""

    offsets: NDArray[np.int64]
    """(I + 2,) item i has the facts at offsets[i] to offsets[i + 1]."""
    entity: NDArray[np.int32]
    """(F,) of each fact, from 0."""
    relation: NDArray[np.int32]
    """(F,) of each fact, from 0."""
    member_offsets: NDArray[np.int64]
    """(N + 1,) entity e is shared by the members at member_offsets[e] to member_offsets[e + 1]."""
    members: NDArray[np.int32]
    """(M,) items, each once an entity."""
    prior: NDArray[np.float32]
    """(M,) above 0: how often each member is chosen."""
    weight: NDArray[np.float32]
    """(R,) of each relation: the share of steps that go along it beyond chance, 0 to 1."""
    relation_names: NDArray[np.uint8]
    """R names in UTF-8, a zero byte between two of them."""
    entity_names: NDArray[np.uint8]
    """N names in UTF-8, a zero byte between two of them."""


@dataclass(frozen=True, slots=True)
class Path:
    """How an item is linked to one that the user had."""

    item: int
    """The number of the item that the user had."""
    relation: str
    """Between that item and the entity."""
    entity: str


class Relations:
    """The facts of a catalogue."""

    def __init__(self, arrays: RelationArrays) -> None:
        self._arrays = arrays
        self._relation_names = names_of(arrays.relation_names)
        self._entity_names = names_of(arrays.entity_names)

    def votes(self, recent: NDArray[np.int64], decay: float) -> Scored:
        """What the last items are linked to, `recent` being in time order: the last one counts most."""
        arrays = self._arrays
        items, weights = [], []
        for age, item in enumerate(recent[::-1].tolist()):
            for fact in range(int(arrays.offsets[item]), int(arrays.offsets[item + 1])):
                row, strength = self._linked(item, fact)
                items.append(arrays.members[row])
                weights.append(strength * np.float32(decay**age))
        if not items:
            return NOTHING
        found = tally(np.concatenate(items), np.concatenate(weights))
        there = found.probability > 0
        return Scored(found.items[there], found.probability[there])

    def paths(self, recent: NDArray[np.int64], item: int, decay: float) -> tuple[Path, ...]:
        """How an item is linked to the last ones, the strongest link first, at most PATHS_SHOWN."""
        arrays = self._arrays
        own = set(arrays.entity[arrays.offsets[item] : arrays.offsets[item + 1]].tolist())
        found: dict[tuple[int, int], tuple[float, Path]] = {}
        for age, had in enumerate(recent[::-1].tolist()):
            for fact in range(int(arrays.offsets[had]), int(arrays.offsets[had + 1])):
                entity, relation = int(arrays.entity[fact]), int(arrays.relation[fact])
                if entity not in own or had == item or (had, entity) in found:
                    continue
                row, strength = self._linked(had, fact)
                power = float(strength[arrays.members[row] == item].sum()) * decay**age
                if power > 0:
                    path = Path(had, self._relation_names[relation], self._entity_names[entity])
                    found[had, entity] = (power, path)
        best = sorted(found.values(), key=lambda one: -one[0])[:PATHS_SHOWN]
        return tuple(path for _, path in best)

    def _linked(self, item: int, fact: int) -> tuple[slice, NDArray[np.float32]]:
        """The members that a fact of an item links to, and how strongly: the relation's weight, divided among them."""
        arrays = self._arrays
        entity = arrays.entity[fact]
        row = slice(int(arrays.member_offsets[entity]), int(arrays.member_offsets[entity + 1]))
        prior = np.where(arrays.members[row] == item, np.float32(0), arrays.prior[row])
        total = prior.sum()
        share = arrays.weight[arrays.relation[fact]] / total if total > 0 else np.float32(0)
        return row, prior * share
