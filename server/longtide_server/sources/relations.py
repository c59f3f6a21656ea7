"""What a user's last items are linked to by what they share: a director, a series, a brand. Pure functions on arrays.

A fact says that an item has a relation to an entity (`director`, `Kubrick`). Two items are linked when an entity is in
facts of both. How much a link says follows from the relation: from how much more often people go on along it than
chance would have it, as training counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.items.text_arrays import names_of
from longtide_server.sources.candidates import NOTHING, Scored, tally

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
    """(M,) items, an entity's ascending, each once."""
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
        self._scale = _scales(arrays)

    def votes(self, recent: NDArray[np.int64], decay: float) -> Scored:
        """What the last items are linked to, `recent` being in time order: the last one counts most."""
        facts, ages = self._facts(recent)
        if not len(facts):
            return NOTHING
        members, fact = self._members(facts)
        item = recent[len(recent) - 1 - ages][fact]
        strength = self._arrays.prior[members] * (self._scale[facts] * np.float32(decay) ** ages)[fact]
        found = tally(self._arrays.members[members], np.where(self._arrays.members[members] == item, 0.0, strength))
        there = found.probability > 0
        return Scored(found.items[there], found.probability[there])

    def paths(self, recent: NDArray[np.int64], item: int, decay: float) -> tuple[Path, ...]:
        """How an item is linked to the last ones, the strongest link first, at most PATHS_SHOWN.

        Of several relations between an item that the user had and one entity, the first is named.
        """
        arrays = self._arrays
        own = slice(int(arrays.offsets[item]), int(arrays.offsets[item + 1]))
        facts, ages = self._facts(recent)
        shared = np.isin(arrays.entity[facts], arrays.entity[own]) & (self._scale[facts] > 0)
        found: dict[tuple[int, int], tuple[float, Path]] = {}
        for fact, age in zip(facts[shared].tolist(), ages[shared].tolist(), strict=True):
            had, entity = int(recent[len(recent) - 1 - age]), int(arrays.entity[fact])
            if had != item and (had, entity) not in found:
                path = Path(had, self._relation_names[arrays.relation[fact]], self._entity_names[entity])
                found[had, entity] = (float(self._scale[fact]) * decay**age, path)
        best = sorted(found.values(), key=lambda one: -one[0])[:PATHS_SHOWN]
        return tuple(path for _, path in best)

    def _facts(self, recent: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The facts of the last items, the last one's first, and how many items came after each fact's."""
        newest_first = recent[::-1]
        return _ragged(self._arrays.offsets[newest_first], self._arrays.offsets[newest_first + 1])

    def _members(self, facts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The members of the facts' entities, one fact after the other, and the place of each member's fact."""
        entity = self._arrays.entity[facts]
        return _ragged(self._arrays.member_offsets[entity], self._arrays.member_offsets[entity + 1])


def _scales(arrays: RelationArrays) -> NDArray[np.float32]:
    """(F,) what a fact says of a member of its entity, the member's prior being 1.

    The relation's weight is divided among the members but the fact's own item; several facts may join an item with one
    entity.
    """
    owner = np.repeat(np.arange(len(arrays.member_offsets) - 1), np.diff(arrays.member_offsets))
    total = np.bincount(owner, weights=arrays.prior, minlength=len(arrays.member_offsets) - 1)  # (N,)
    item = np.repeat(np.arange(len(arrays.offsets) - 1), np.diff(arrays.offsets))  # (F,)
    width = len(arrays.offsets)
    key = owner * width + arrays.members  # ascending: members of an entity are
    own = arrays.prior[np.searchsorted(key, arrays.entity.astype(np.int64) * width + item)]
    others = total[arrays.entity] - own
    scale = arrays.weight[arrays.relation] / np.where(others > 0, others, np.inf)
    return np.asarray(scale, np.float32)


def _ragged(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All numbers from first[i] to before last[i], one i after the other, and the i of each."""
    sizes = last - first
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(int(sizes.sum())) + (first - np.cumsum(sizes) + sizes)[owner], owner
