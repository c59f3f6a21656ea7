"""The moments that neighbours are found among: every position of every history, with what came next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtide_server.sources.neighbors import Positions
from longtide_server.training.dataset import Sequences
from longtide_server.training.learning.encoding import encode_histories
from longtide_server.training.learning.model import Encoder


def newest_moments(sequences: Sequences, most: int) -> NDArray[np.int64]:
    """Events after which something was chosen, at most `most`: every user's newest ones, as many for each as fit.

    When not even one for each user fits, the users whose newest one is latest have one.
    """
    lengths = sequences.lengths
    left = np.repeat(sequences.offsets[1:], lengths) - 1 - np.arange(len(sequences.items))  # events after this one
    told = (left > 0) & np.append(sequences.chosen[1:], False)
    ages = left[told]
    if len(ages) <= most:
        return np.flatnonzero(told)
    per_age = np.cumsum(np.bincount(ages))
    oldest = int(np.searchsorted(per_age, most, side="right")) - 1
    if oldest == 0:
        newest = np.flatnonzero(told & (left == 1))
        latest = np.argsort(-sequences.times[newest], kind="stable")[:most]
        return np.sort(newest[latest])
    return np.flatnonzero(told & (left <= oldest))


def encode_moments(
    model: Encoder, sequences: Sequences, most: int, batch_events: int
) -> tuple[Positions, NDArray[np.float32]]:
    """The positions and their query vectors (P, D), users in order and each one's moments in time order."""
    events = newest_moments(sequences, most)
    row = np.full(len(sequences.items), -1, np.int64)
    row[events] = np.arange(len(events))
    vectors = np.zeros((len(events), model.dim), np.float32)
    for piece, query in encode_histories(model, sequences, np.flatnonzero(sequences.lengths >= 2), batch_events):
        offset = np.arange(piece.items.shape[1])
        event = sequences.offsets[piece.users][:, None] + piece.first + offset  # (B, T)
        inside = offset < piece.lengths[:, None]
        wanted = inside & (row[np.where(inside, event, 0)] >= 0)
        vectors[row[event[wanted]]] = query[wanted]
    return (
        Positions(
            user=sequences.owner[events].astype(np.int32),
            next_item=sequences.items[events + 1].astype(np.int32),
            weight=_recency(sequences, events),
        ),
        vectors,
    )


def _recency(sequences: Sequences, events: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 for a user's newest moment, less the more events the user has had since: halved after 100."""
    end = np.repeat(sequences.offsets[1:], sequences.lengths)
    since = end[events] - 2 - events
    return np.asarray(0.5 ** (since / 100.0), np.float32)
