"""The slices of an evaluation: which users a metric is about, by length of history and by popularity of the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD_SHARE = 0.2
"""Share of the items that are the head: the most popular ones."""
TAIL_SHARE = 0.5
"""Share of the items that are the tail: the least popular ones."""


@dataclass(frozen=True, slots=True)
class Range:
    """Users whose number, of events or of the target, is from `low` to `high`, both included."""

    name: str
    low: int
    high: int | None = None
    """None where there is no end."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The metrics of the users of a range; there is at least one."""

    name: str
    low: int
    high: int | None
    users: int
    """How many they are."""
    metrics: dict[str, dict[str, float]]
    """By way to recommend, then by name."""

    @property
    def span(self) -> str:
        """The range in words, for example `10 to 49`."""
        if self.high is None:
            return f"{self.low} or more"
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


HISTORY_LENGTHS = (Range("cold", 0, 0), Range("short", 1, 9), Range("medium", 10, 49), Range("long", 50))
"""By events in the history. The edges are the same for every log, so that logs, splits and months can be compared;
quantiles would call 40 events long in one shop and short in the next."""


def target_popularities(item_count: int) -> tuple[Range, ...]:
    """Ranges of target numbers, which are ranks by events in the history: 1 is the most popular item of `item_count`.

    Head, the most popular 20 % of the items (rounded up), as in the rule of 80 and 20; tail, the least popular half;
    mid, what is between them; new, target 0, items that the history does not hold: nobody can recommend those.
    """
    head = ceil(item_count * HEAD_SHARE)
    mid = max(head, item_count - int(item_count * TAIL_SHARE))
    return Range("head", 1, head), Range("mid", head + 1, mid), Range("tail", mid + 1, item_count), Range("new", 0, 0)


def doubling_lengths(longest: int) -> tuple[Range, ...]:
    """Ranges of history length that double, for a logarithmic axis: 0, 1, 2 to 3, 4 to 7, up to the longest."""
    lows = (1 << power for power in range(longest.bit_length()))
    return Range("0", 0, 0), *(Range(str(low), low, 2 * low - 1) for low in lows)


def members(numbers: NDArray[np.integer[Any]], ranges: tuple[Range, ...]) -> Iterator[tuple[Range, NDArray[np.bool_]]]:
    """Every range that holds at least one of the numbers (V,), and which ones (V,)."""
    for part in ranges:
        inside = numbers >= part.low
        if part.high is not None:
            inside &= numbers <= part.high
        if inside.any():
            yield part, inside
