"""Collects what the sources say of the candidates of users, of as many of them as memory has room for."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.candidates import Candidates, Source


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What is said of the C candidates of a user."""

    items: NDArray[np.int64]
    """(C,) ascending, none twice."""
    said: Mapping[Source, NDArray[np.float64]]
    """(C,) each: the probabilities of the sources that bring any of them."""


def told_of(found: Candidates) -> Told:
    """The candidates of a user without the sources that say nothing, which most of them do."""
    columns = {source: found.probability[:, source - 1] for source in Source}
    return Told(found.items, {source: column.copy() for source, column in columns.items() if column.any()})


async def gathered(
    candidates: AsyncIterable[Candidates], draw: Sequence[int], most: int
) -> tuple[NDArray[np.int64], list[Told]]:
    """What is said of the candidates of users, and who (V,) of them these are, ascending.

    Those who have more than `most` candidates together lose the users with the highest places in the draw; one stays.
    """
    kept: dict[int, Told] = {}
    count, end, user = 0, len(draw), 0
    async for found in candidates:
        if draw[user] < end:
            kept[user] = told_of(found)
            count += len(found.items)
        while count > most and len(kept) > 1:
            last = max(kept, key=draw.__getitem__)
            end = draw[last]  # nobody behind them comes in for having few
            count -= len(kept.pop(last).items)
        user += 1
    return np.array(list(kept), np.int64), list(kept.values())
