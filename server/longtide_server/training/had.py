"""What users have had by some moment: it is never recommended to them again, so it counts little in training.

An encoder that is trained against the items of the history keeps its query vector away from them, and with them from
what is most like them, which is what the user wants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtide_server.training.dataset import Sequences

HAD_COUNTS = 0.05
"""In a softmax, beside an item that is new to the user. Not 0: who is at the third episode has had the second one, so
that nothing else would say of somebody who has not that it does not follow."""


@dataclass(frozen=True, slots=True, eq=False)
class Had:
    """The items of R histories, one history after the other, each item once and where it came first."""

    items: Tensor
    """(P,) from 1."""
    row: Tensor
    """(P,) ascending: whose."""
    since: Tensor
    """(P,) the places in the history, from 0; ascending for each row."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """N moments in such histories."""

    had: Had
    row: Tensor
    """(N,) whose moment it is."""
    place: Tensor
    """(N,) of the last event that the moment knows, from 0."""

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Moments (Q,), ascending, from 0, each as often as it has had items by then; and these items (Q,)."""
        span = 1 + max((int(places.max()) for places in (self.had.since, self.place) if len(places)), default=0)
        order = self.had.row * span + self.had.since
        first = torch.searchsorted(order, self.row * span)  # (N,)
        count = torch.searchsorted(order, self.row * span + self.place, right=True) - first
        moment = torch.repeat_interleave(count)  # (Q,)
        before = torch.cumsum(count, dim=0) - count
        return moment, self.had.items[torch.arange(len(moment), device=moment.device) + (first - before)[moment]]


def had_by(sequences: Sequences, users: NDArray[np.int64], events: int, device: torch.device | None = None) -> Had:
    """What users (R,) have had in the first so many events of their histories."""
    lengths = np.minimum(sequences.lengths[users], events)
    row = np.repeat(np.arange(len(users)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    items = sequences.items[sequences.offsets[users][row] + place]
    _, first = np.unique(row * (sequences.item_count + 1) + items, return_index=True)
    first.sort()
    return Had(*(torch.from_numpy(part[first]).to(device) for part in (items, row, place)))


def past_of(sequences: Sequences, events: NDArray[np.int64], device: torch.device) -> Past:
    """What the users of events (N,) of the log have had by then."""
    owner = np.searchsorted(sequences.offsets, events, side="right") - 1
    users, row = np.unique(owner, return_inverse=True)
    place = events - sequences.offsets[owner]
    had = had_by(sequences, users, int(place.max()) + 1, device)
    return Past(had, torch.from_numpy(row).to(device), torch.from_numpy(place).to(device))
