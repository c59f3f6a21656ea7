"""Who and what is behind an answer: the people who went on to an item, and what links it to the user's last items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtide_server.answers import Link, SimilarUser, Voter
from longtide_server.neighbors import Neighbors
from longtide_server.snapshot import Snapshot

NEIGHBORS_SHOWN = 3
NEXT_ITEMS_SHOWN = 5


def links(snapshot: Snapshot, recent: NDArray[np.int64], number: int) -> tuple[Link, ...]:
    """What links an item to the last items, `recent` being in time order, the strongest first."""
    if snapshot.relations is None:
        return ()
    paths = snapshot.relations.paths(recent, number, snapshot.manifest.transitions.decay)
    return tuple(Link(snapshot.catalog.item_id(path.item), path.relation, path.entity) for path in paths)


def voters(snapshot: Snapshot, neighbors: Neighbors, number: int) -> tuple[Voter, ...]:
    """The people behind the moments after which an item came, each once, at their most similar moment."""
    positions = snapshot.neighbors.positions
    voting = np.flatnonzero(positions.next_item[neighbors.position] == number)
    users = positions.user[neighbors.position[voting]].tolist()
    found: dict[int, Voter] = {}
    for user, similarity in zip(users, neighbors.similarity[voting].tolist(), strict=True):
        if user not in found:
            found[user] = Voter(snapshot.user_ids[user], similarity)
            if len(found) == NEIGHBORS_SHOWN:
                break
    return tuple(found.values())


def people(snapshot: Snapshot, neighbors: Neighbors, limit: int) -> tuple[SimilarUser, ...]:
    """The people behind moments, at most `limit`, each once, at their most similar moment."""
    found: dict[str, SimilarUser] = {}
    for position, similarity in zip(neighbors.position.tolist(), neighbors.similarity.tolist(), strict=True):
        if len(found) == limit:
            break
        user_id = snapshot.user_ids[int(snapshot.neighbors.positions.user[position])]
        if user_id not in found:
            found[user_id] = SimilarUser(user_id, similarity, _next_items(snapshot, position))
    return tuple(found.values())


def _next_items(snapshot: Snapshot, position: int) -> tuple[str, ...]:
    """What the person of a moment turned to next."""
    positions = snapshot.neighbors.positions
    end = position + NEXT_ITEMS_SHOWN
    items = positions.next_item[position:end][positions.user[position:end] == positions.user[position]]
    return tuple(snapshot.catalog.item_id(int(item)) for item in items)
