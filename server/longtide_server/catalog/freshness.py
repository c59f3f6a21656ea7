"""Whether copies of a shared catalogue are what it is now: they are not, once it could not be asked for a while."""

from __future__ import annotations

import time

STALE_AFTER_S = 3.0


class Freshness:
    """What came of asking for changes."""

    def __init__(self) -> None:
        """It is not asked yet."""
        self._failing_since_s: float | None = None
        self._reason = ""

    def asked(self, begun_s: float, reason: str) -> None:
        """It was asked, from a moment of `time.monotonic` on; the reason is why in vain, empty where it answered."""
        if not reason:
            self._failing_since_s = None
        elif self._failing_since_s is None:
            self._failing_since_s = begun_s
        self._reason = reason

    def stale_reason(self) -> str:
        """Why the copies may be old; empty when there is no reason to think so."""
        if self._failing_since_s is None or time.monotonic() - self._failing_since_s < STALE_AFTER_S:
            return ""
        return f"the catalogue could not be asked: {self._reason}"
