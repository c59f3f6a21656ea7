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
    """The probability with which it was drawn, above 0 and at most 1: what an analysis of clicks has to divide by."""


def explore(
    owner: str, moment: int, share: float, shown: NDArray[np.int64], pool: NDArray[np.int64], suits: NDArray[np.float64]
) -> tuple[Explored, ...]:
    """Which new items take places of an answer.

    owner, moment: who asks, and how far their history has come. share: of the places, 0 to 1. shown (R,): the items of
    the answer, best first. pool (N,): new items that may appear, with how well they suit (N,), above 0.
    """
    rng = np.random.default_rng([zlib.crc32(owner.encode("utf-8", "surrogatepass")), moment])
    fresh = ~np.isin(pool, shown)
    pool, suits = pool[fresh], suits[fresh]
    places = np.arange(FIRST_PLACE, len(shown))
    count = min(int(rng.binomial(len(places), share)) if len(places) else 0, len(pool))
    if not count:
        return ()
    chance = suits / suits.sum()
    drawn = rng.choice(len(pool), count, replace=False, p=chance)
    taken = np.sort(rng.choice(places, count, replace=False))
    return tuple(
        Explored(place, int(pool[index]), float(chance[index]))
        for place, index in zip(taken.tolist(), drawn.tolist(), strict=True)
    )
