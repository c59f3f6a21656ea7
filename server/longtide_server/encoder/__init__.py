"""Asking the encoder: what it is asked, and what it answers.

`hosted` encoders are TorchServe's, or in this process; `coalescing` stands before either, and `breaking` between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """One user's next events, and the state that they go on from."""

    items: NDArray[np.int32]
    """(T,) catalogue numbers from 1, T at least 1."""
    types: NDArray[np.uint8]
    """(T,)"""
    gaps: NDArray[np.float32]
    """(T,) seconds since the event before."""
    values: NDArray[np.float32]
    """(T,) NaN where absent."""
    state: NDArray[np.float32]
    """(S,) zeros for a user without events before these."""
    top_n: int
    """How many of the best items to return, 1 or more."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A user after some events."""

    query: NDArray[np.float32]
    """(D,) of length 1."""
    state: NDArray[np.float32]
    """(S,)"""
    items: NDArray[np.int64]
    """(N,) the best items of the catalogue, best first; N is at least what was asked for, or the whole catalogue."""
    log_probability: NDArray[np.float32]
    """(N,)"""
    log_z: float
    """log-probability of item i = cosine(query, i) / temperature - log_z."""


@dataclass(frozen=True, slots=True)
class Batches:
    """How much goes into a call to the encoder, and how many calls go out side by side."""

    users: int = 256
    """Users in a call at most."""
    events: int = 4_096
    """Events of long histories in a call: on one core a sixth of a second, which is what others may wait for it."""
    steps: int = 256
    """Events of one history in a call at most, for they are taken one after the other."""
    calls: int = 1
    """Calls under way at a time, 1 or more."""


ON_CPU = Batches()
ON_GPU = Batches(users=512, events=65_536)
"""A GPU takes a step of hundreds of users in the time of a step of one; more at a time hold the event loop up."""


@dataclass(frozen=True, slots=True)
class EncoderAt:
    """A TorchServe that hosts an encoder."""

    address: str
    """HOST:PORT of its gRPC inference."""
    batches: Batches
    """What is best sent to it at a time."""


@dataclass(frozen=True, slots=True)
class AnswerSizes:
    """How large what a snapshot's encoder answers is, beside states, which are as large as those that it is sent."""

    dim: int
    """Width D of a query vector."""
    item_count: int
    """Items of the catalogue, those without events included."""

    @classmethod
    def of(cls, embeddings: NDArray[np.float32]) -> AnswerSizes:
        """Those that go with a snapshot's item embeddings (I + 1, D)."""
        return cls(embeddings.shape[1], embeddings.shape[0] - 1)


class Encoder(Protocol):
    """Encodes many users in one call."""

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """One result for each of the batch, in order; none where what was computed of that row alone is not finite.

        EncoderUnavailable, DeadlineExceeded or Overloaded.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...
