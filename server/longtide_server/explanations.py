"""Who and what is behind an answer: the people who went on to an item, and what links it to the user's last items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtide_server.answers import Link, SimilarUser, Voter
from longtide_server.events import user_of
from longtide_server.snapshot import Snapshot
from longtide_server.sources.neighbors import Neighbors

NEIGHBORS_SHOWN = 3
NEXT_ITEMS_SHOWN = 5


def links(snapshot: Snapshot, recent: NDArray[np.int64], number: int) -> tuple[Link, ...]:
    """What links an item to the last items, `recent` being in time order, the strongest first."""
    if snapshot.relations is None:
        return ()
    paths = snapshot.relations.paths(recent, number, snapshot.manifest.transitions.decay)
    return tuple(Link(snapshot.catalog.item_id(path.item), path.relation, path.entity) for path in paths)


def voters(snapshot: Snapshot, neighbors: Neighbors, numbers: Sequence[int]) -> list[tuple[Voter, ...]]:
    """Of each item, the people behind the moments after which it came, each once, at their most similar moment.

    Anonymous sessions are named to nobody.
    """
    positions = snapshot.neighbors.positions
    users = positions.user[neighbors.position]
    places: dict[int, dict[int, int]] = {number: {} for number in numbers}  # by item and user
    for place, number in enumerate(positions.next_item[neighbors.position].tolist()):  # the most similar first
        of_item = places.get(number)
        if of_item is not None and len(of_item) < NEIGHBORS_SHOWN and user_of(snapshot.owners[users[place]]):
            of_item.setdefault(int(users[place]), place)
    return [
        tuple(
            Voter(user_of(snapshot.owners[user]), float(neighbors.similarity[place]))
            for user, place in places[number].items()
        )
        for number in numbers
    ]


def people(snapshot: Snapshot, neighbors: Neighbors, limit: int) -> tuple[SimilarUser, ...]:
    """The people behind moments, at most `limit`, each once, at their most similar moment; no anonymous sessions."""
    found: dict[str, SimilarUser] = {}
    for position, similarity in zip(neighbors.position.tolist(), neighbors.similarity.tolist(), strict=True):
        if len(found) == limit:
            break
        user_id = user_of(snapshot.owners[int(snapshot.neighbors.positions.user[position])])
        if user_id and user_id not in found:
            found[user_id] = SimilarUser(user_id, similarity, _next_items(snapshot, position))
    return tuple(found.values())


def _next_items(snapshot: Snapshot, position: int) -> tuple[str, ...]:
    """What the person of a moment turned to next."""
    positions = snapshot.neighbors.positions
    end = position + NEXT_ITEMS_SHOWN
    items = positions.next_item[position:end][positions.user[position:end] == positions.user[position]]
    return tuple(snapshot.catalog.item_id(int(item)) for item in items)
