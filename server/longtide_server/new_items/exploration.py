"""Gives new items a few places in answers, so that it can be found out whom they please.

A share of the places goes to items that few have seen, drawn by how well they suit the one who asks. The draw hangs on
who asks and on what they have done, so the same question has the same answer until something happens.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIRST_PLACE = 1
"""The best item keeps its place."""


@dataclass(frozen=True, slots=True)
class Explored:
    """An item that is shown to find out about it."""

    place: int
    """In the answer, from 0."""
    number: int
    """Of the item."""
    propensity: float
    """The probability with which it is shown at all, above 0 and at most 1: what an analysis of clicks divides by."""


def draws_of(owner: str, moment: int) -> np.random.Generator:
    """The draws of who asks, the same until something happens."""
    return np.random.default_rng([zlib.crc32(owner.encode("utf-8", "surrogatepass")), moment])


def explore(
    owner: str, moment: int, share: float, shown: NDArray[np.int64], pool: NDArray[np.int64], suits: NDArray[np.float64]
) -> tuple[Explored, ...]:
    """Which new items take places of an answer.

    owner, moment: who asks, and how far their history has come. share: of the places, 0 to 1. shown (R,): the items of
    the answer, best first. pool (N,): new items that may appear, with how well they suit (N,), above 0.
    """
    rng = draws_of(owner, moment)
    fresh = ~np.isin(pool, shown)
    pool, suits = pool[fresh], suits[fresh]
    places = max(len(shown) - FIRST_PLACE, 0)
    taken = np.flatnonzero(rng.random(places) < share)
    if not len(taken) or not len(pool):
        return ()
    chance = suits / suits.sum()
    # Every place draws for itself, which makes the probability known exactly; a second draw of an item counts nothing.
    drawn = rng.choice(len(pool), len(taken), p=chance)
    _, firsts = np.unique(drawn, return_index=True)
    shown_at_all = 1.0 - (1.0 - share * chance) ** places
    return tuple(
        Explored(int(taken[one]) + FIRST_PLACE, int(pool[drawn[one]]), float(shown_at_all[drawn[one]]))
        for one in np.sort(firsts).tolist()
    )
