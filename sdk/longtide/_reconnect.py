"""Decides how long a stream that lost its server waits before it tries again, and when it gives up."""

from __future__ import annotations

import random

from longtide._errors import LongtideError, UnavailableError

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0


def worth_a_retry(failure: LongtideError) -> bool:
    """Whether a stream may try again: the server is gone, or says itself how long to wait."""
    return isinstance(failure, UnavailableError) or failure.retry_delay_s is not None


class Reconnect:
    """Exponential backoff with jitter that starts afresh whenever the stream has made progress."""

    def __init__(self, give_up_after_s: float) -> None:
        self._give_up_after_s = give_up_after_s
        self._progress = -1
        self._failures = 0
        self._since_s = 0.0

    def delay_s(self, failure: LongtideError, progress: int, now_s: float) -> float:
        """How long to wait; raises `failure` when that would pass the limit without any progress."""
        if progress != self._progress:
            self._progress, self._failures, self._since_s = progress, 0, now_s
        # Jitter keeps the clients of a restarted server from coming back all at once.
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0**self._failures)
        delay = max(longest * random.uniform(0.5, 1.0), failure.retry_delay_s or 0.0)
        if now_s + delay > self._since_s + self._give_up_after_s:
            raise failure
        self._failures += 1
        return delay
