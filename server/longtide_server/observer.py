"""What the parts of the server tell whoever watches them; told to nobody, it goes nowhere.

`begun_s` is always a moment of `time.perf_counter`, seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["state", "encoder", "neighbors", "fusion"]
"""Of an answer: reading the event log, waiting for the encoder, searching neighbours, fusing what the sources say."""
Missing = Literal["encoder", "store", "catalog"]
"""What an answer had to do without, or with what was known of it before."""
Lookup = Literal["hit", "miss", "bypass"]
"""What came of looking for a copy; a bypass is a request whose answer is never kept."""
Activated = Literal["activated", "unchanged", "refused", "failed"]
"""What came of an activation: refused is the snapshot's fault, failed is the server's."""


@dataclass(frozen=True, slots=True, eq=False)
class Gauges:
    """What can be read off a snapshot at work at any time, from any thread."""

    users: Callable[[], int]
    """User states in memory."""
    answers: Callable[[], int]
    """Answers that are kept."""
    waiting: Callable[[], int]
    """Users who wait for the next call to the encoder."""
    left_alone: Callable[[], bool]
    """Whether the breaker before the encoder is open."""


class StageObserver:
    """Told how an answer comes about."""

    def stage(self, stage: Stage, begun_s: float) -> None:
        """A stage is done. Told only of stages in which something was done."""

    def degraded(self, missing: Missing) -> None:
        """An answer goes out without what it should know."""


class Observer(StageObserver):
    """Told everything that happens."""

    def call(self, rpc: str, code: str, begun_s: float | None) -> None:
        """An RPC has ended with a gRPC status; of streams from the client, which last as they like, without a time."""

    def rows(self, answered: int, failed: int) -> None:
        """A message of StreamRecommend is answered."""

    def state_lookup(self, result: Lookup) -> None:
        """A user state was in memory, or was read from the event log."""

    def answer_lookup(self, result: Lookup) -> None:
        """An answer was kept, or was worked out."""

    def encoder_call(self, users: int, events: int, begun_s: float, error: Exception | None) -> None:
        """The encoder has answered a batch, or failed."""

    def store_call(self, operation: str, begun_s: float, error: Exception | None) -> None:
        """The event store has answered, or failed."""

    def store_works(self, works: bool) -> None:
        """The event store was tried."""

    def events(self, new: int, duplicates: int, refused: int, lags_s: Iterable[float]) -> None:
        """A batch of events is written; `lags_s` say how long ago the new ones happened."""

    def serving(self, snapshot_id: str, created_s: float) -> None:
        """A snapshot is served from now on; it was made at a time, seconds since 1970."""

    def activation(self, result: Activated) -> None:
        """An activation has ended."""

    def watch(self, gauges: Gauges) -> None:
        """A snapshot is at work: its gauges may be read until `unwatch`. While one replaces another there are two."""

    def unwatch(self, gauges: Gauges) -> None:
        """A snapshot is no longer at work."""


NOBODY = Observer()
