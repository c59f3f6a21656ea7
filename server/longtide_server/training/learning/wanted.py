"""What each event of a log counts where the encoder learns to foresee it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.training.dataset import Sequences


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the people who run a shop want others to do."""

    event_type: int = 0
    """What leads to an event of this type counts in full; 0 for every type."""
    other_weight: float = 1.0
    """What anything else counts, 0 to 1."""


EVERYTHING = Wanted()


def counts(sequences: Sequences, wanted: Wanted = EVERYTHING) -> NDArray[np.float32]:
    """(N,) what each event counts as one to foresee, 0 to 1.

    Mostly it is not new any more what people come to buy, and what is not new is hardly ever recommended: a purchase is
    to be foreseen where they first met the item. A dislike leads nobody to its item.
    """
    chosen = sequences.chosen.astype(np.float32)
    if wanted.event_type == 0:
        return chosen
    return np.where(sequences.leads_to(wanted.event_type), chosen, np.float32(wanted.other_weight) * chosen)
