"""How long the encoder may be waited for, so that every answer is in time.

When the encoder hangs, all who wait for it give up at nearly the same time, and are then answered one after the other:
the more there are, the earlier they have to begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MARGIN_S = 0.01
SHARE = 0.2
COST = 2.0
"""Of an answer, to have it read and written too, as a multiple of its making."""
FIRST_S = 0.003
"""What an answer is thought to take before there was one."""
NEWEST = 0.1
"""What the newest answer counts in the mean of all before it."""


class Patience:
    """Counts those who wait, and knows what an answer costs."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._waiting = 0
        self._answer_s = FIRST_S

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody waits."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def answered(self, took_s: float) -> None:
        """An answer was made of what the sources said, in so many seconds of everybody's time."""
        self._answer_s += NEWEST * (took_s - self._answer_s)

    def for_encoder_s(self, timeout_s: float) -> float:
        """How long, of `timeout_s` seconds until an answer has to be there; 0 where there is no time to wait."""
        others_s = COST * self._answer_s * self._waiting
        return max(timeout_s - max(MARGIN_S, SHARE * timeout_s, others_s), 0.0)
