"""Decides how long a stream that lost its server waits before it tries again, and when it gives up."""

from __future__ import annotations

import random

from longtide._errors import LongtideError, ResourceExhaustedError, UnavailableError

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0

_TOO_LARGE = "larger than max"


def worth_a_retry(failure: LongtideError) -> bool:
    """Whether a stream may try again: the server is gone, says itself how long to wait, or has too many calls."""
    if isinstance(failure, UnavailableError) or failure.retry_delay_s is not None:
        return True
    # With too many calls under way gRPC itself refuses further ones, and sends no details along. It refuses a message
    # that is too large with the same status, and would the next time too.
    by_grpc = isinstance(failure, ResourceExhaustedError) and not failure.reason
    return by_grpc and _TOO_LARGE not in failure.message


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
