"""What each source says about a user: pure functions from plain data to probabilities over items.

Items are catalogue indexes from 1 to I. Every source answers with the items it brings and a probability for each.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.neighbors import Neighbors, Positions

MANY_SHARE = 3  # one in three items is many


class Source(enum.IntEnum):
    """Where a candidate came from. The numbers are those of the contract, and the columns of a fusion less one."""

    ENCODER = 1
    NEIGHBORS = 2
    TRANSITIONS = 3
    POPULARITY = 4
    RELATIONS = 5
    CONTENT = 6
    TRENDING = 7
    INTERESTS = 8
    EXPLORATION = 9
    REPEATS = 10


UNWEIGHTED = (Source.EXPLORATION, Source.REPEATS)
"""They are not fused with the others, so no weight says how much they count."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Items that one source brings, in no particular order."""

    items: NDArray[np.int64]
    """(C,) none twice."""
    probability: NDArray[np.float64]
    """(C,) the source's probability that the item is next, 0 to 1."""


NOTHING = Scored(np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """A sparse matrix of what follows what, in rows: the row of item i is at offsets[i] to offsets[i + 1]."""

    offsets: NDArray[np.int64]
    """(I + 2,)"""
    items: NDArray[np.int32]
    """(E,) the items that follow."""
    probability: NDArray[np.float32]
    """(E,) of each; a row that was cut to its most frequent items sums to less than 1."""


@dataclass(frozen=True, slots=True)
class TransitionSettings:
    """How transitions are counted and read."""

    lags: int = 5
    """How many events apart two items may be, 1 or more; also how many last items are asked."""
    decay: float = 0.7
    """Weight of each further lag against the one before, 0 to 1."""


def neighbor_votes(neighbors: Neighbors, positions: Positions, temperature: float) -> Scored:
    """What the similar moments' people did next, weighted by similarity (a softmax over cosines) and recency."""
    if not len(neighbors.position):
        return NOTHING
    weight = np.exp((neighbors.similarity - neighbors.similarity[0]) / temperature)
    weight = weight * positions.weight[neighbors.position]
    return tally(positions.next_item[neighbors.position], weight)


def transition_votes(transitions: Transitions, recent: NDArray[np.int64], decay: float) -> Scored:
    """What follows the last items, `recent` being in time order: the last one counts most."""
    items, weights = [], []
    for age, item in enumerate(recent[::-1].tolist()):
        row = slice(int(transitions.offsets[item]), int(transitions.offsets[item + 1]))
        items.append(transitions.items[row])
        weights.append(transitions.probability[row] * decay**age)
    if not items:
        return NOTHING
    return tally(np.concatenate(items), np.concatenate(weights))


def tally(items: NDArray[np.int32], weight: NDArray[np.float32]) -> Scored:
    """Add up the weights of equal items and make them probabilities."""
    order = np.argsort(items)
    in_order = items[order]
    firsts = np.flatnonzero(np.diff(in_order, prepend=-1))
    total = np.add.reduceat(weight[order], firsts, dtype=np.float64) if len(items) else np.zeros(0)
    mass = total.sum()
    return Scored(in_order[firsts].astype(np.int64), total / mass if mass > 0 else total)


def interest_votes(popularity: NDArray[np.float64], items: NDArray[np.int64]) -> Scored:
    """The items of a kind that somebody likes, by their popularity (I + 1,); of those nobody chose yet, all alike."""
    share = popularity[items] + 1.0 / len(popularity)
    return Scored(items, share / share.sum()) if len(items) else NOTHING


def best_of(probability: NDArray[np.float64], count: int) -> Scored:
    """The most probable items by the probabilities (I + 1,) of all, at most `count`, and none without any."""
    best = np.argpartition(-probability, min(count, len(probability) - 1))[:count]
    best = best[probability[best] > 0.0]
    return Scored(best.astype(np.int64), probability[best])


def encoder_probability(
    items: NDArray[np.int64] | slice, query: NDArray[np.float32], embeddings: NDArray[np.float32], temperature: float,
    log_z: float,
) -> NDArray[np.float64]:  # fmt: skip
    """The encoder's probability (C,) of any items, from the query vector (D,) and the unit embeddings (I + 1, D)."""
    cosine = embeddings[items] @ query
    return np.exp(cosine.astype(np.float64) / temperature - log_z)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Items that at least one source brings, with what every source says of them."""

    items: NDArray[np.int64]
    """(C,) ascending, none twice."""
    probability: NDArray[np.float64]
    """(C, len(Source)) column `source - 1`; 0 where the source does not bring the item."""


def gather(votes: dict[Source, Scored], blocked: NDArray[np.int64], item_count: int) -> Candidates:
    """Join what the sources bring, without the blocked items."""
    brought = np.zeros(item_count + 1, np.bool_)  # a mark for each item of the catalogue is faster than sorting
    for scored in votes.values():
        brought[scored.items] = True
    brought[blocked] = False
    return tabulate(np.flatnonzero(brought), votes, item_count)


def gather_allowed(votes: dict[Source, Scored], allowed: NDArray[np.bool_]) -> Candidates:
    """Join what the sources bring of the allowed items (I + 1,)."""
    brought = np.zeros(len(allowed), np.bool_)
    for scored in votes.values():
        brought[scored.items] = True
    brought &= allowed
    return tabulate(np.flatnonzero(brought), votes, len(allowed) - 1)


def first_allowed(order: NDArray[np.int64], allowed: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The first items of an order (I,) that are allowed (I + 1,), at most `count`."""
    looked_at = 8 * count
    while True:  # the beginning is enough, unless few are allowed
        head = order[:looked_at]
        found = head[allowed[head]]
        if len(found) >= count or looked_at >= len(order):
            return found[:count]
        looked_at *= 8


def nearest_allowed(
    allowed: NDArray[np.bool_], query: NDArray[np.float32], embeddings: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """The allowed items (I + 1,) nearest to a query vector (D,), at most `count`, by unit embeddings (I + 1, D)."""
    items = np.flatnonzero(allowed)
    if len(items) <= count:
        return items
    # To read every embedding in order is faster than to copy a large part of them.
    cosine = (embeddings @ query)[items] if MANY_SHARE * len(items) > len(allowed) else embeddings[items] @ query
    return items[np.argpartition(-cosine, count)[:count]]


def tabulate(items: NDArray[np.int64], votes: dict[Source, Scored], item_count: int) -> Candidates:
    """What every source says of given items (C,), ascending and none twice."""
    probability = np.zeros((len(items), len(Source)))
    wanted = np.zeros(item_count + 1, np.bool_)
    wanted[items] = True
    row = np.empty(item_count + 1, np.int64)  # of items that are wanted; of others it says nothing
    row[items] = np.arange(len(items))
    for source, scored in votes.items():
        inside = wanted[scored.items]
        probability[row[scored.items[inside]], source - 1] = scored.probability[inside]
    return Candidates(items, probability)
