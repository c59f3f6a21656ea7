"""What users have had by some moment: it is recommended as what is new is not, so it counts little in training.

An encoder that is trained against the items of the history keeps its query vector away from them, and with them from
what is most like them, which is what the user wants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtide_server.training.dataset import Sequences

HAD_COUNTS = 0.01
"""In a softmax, beside an item that is new to the user. Not 0: who is at the third episode has had the second one, so
that nothing else would say of somebody who has not that it does not follow."""


@dataclass(frozen=True, slots=True, eq=False)
class Had:
    """What the users of a log have had, and of each of its N events, which part of that had come by then."""

    items: Tensor
    """(P,) from 1: every item of each history once, in the order in which they came, one history after the other."""
    begin: Tensor
    """(N,) where the history of the event's user begins among these."""
    count: Tensor
    """(N,) how many of that history's had come by the event, its own item among them."""

    def at(self, events: Tensor) -> Past:
        """What the users of events (M,) of the log had had by then."""
        return Past(self.items, self.begin[events], self.count[events])


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What had been had by M moments."""

    items: Tensor
    """(P,) as in `Had`."""
    begin: Tensor
    """(M,) of each moment's, the first place among the items."""
    count: Tensor
    """(M,) how many of them."""

    def of(self, moments: slice) -> Past:
        """The same of some of the moments."""
        return Past(self.items, self.begin[moments], self.count[moments])

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Moments (Q,), ascending, from 0, each as often as it has had items by then; and these items (Q,).

        Long histories make many: ask for some moments at a time.
        """
        moment = torch.repeat_interleave(self.count)  # (Q,)
        skipped = self.begin - (torch.cumsum(self.count, dim=0) - self.count)  # (M,)
        return moment, self.items[torch.arange(len(moment), device=moment.device) + skipped[moment]]


def had_by_event(sequences: Sequences, device: torch.device | None = None) -> Had:
    """What the users of a log have had by each of its events."""
    owner, new = sequences.owner, sequences.firsts().astype(np.int64)  # (N,) each
    known = np.cumsum(new)
    begin = (known - new)[sequences.offsets[owner]]
    return Had(*(torch.from_numpy(part).to(device) for part in (sequences.items[new == 1], begin, known - begin)))
