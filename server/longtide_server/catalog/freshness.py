"""Whether copies of a shared catalogue are what it is now: they are not, once it could not be asked for a while."""

from __future__ import annotations

import time

STALE_AFTER_S = 3.0


class Freshness:
    """What came of asking for changes, or that nothing has come of it yet."""

    def __init__(self) -> None:
        """It is not asked yet."""
        self._asking_since_s: float | None = None
        self._failing_since_s: float | None = None
        self._reason = ""

    def asking(self) -> None:
        """It is asked from now on. A store that hangs lets go after a while only."""
        self._asking_since_s = time.monotonic()

    def asked(self, reason: str) -> None:
        """It was asked; the reason is why in vain, empty where it answered."""
        begun_s, self._asking_since_s = self._asking_since_s, None
        if not reason:
            self._failing_since_s = None
        elif self._failing_since_s is None:
            self._failing_since_s = begun_s
        self._reason = reason

    def stale_reason(self) -> str:
        """Why the copies may be old; empty when there is no reason to think so."""
        since_s = self._asking_since_s if self._failing_since_s is None else self._failing_since_s
        if since_s is None or time.monotonic() - since_s < STALE_AFTER_S:
            return ""
        return f"the catalogue could not be asked: {self._reason or 'it has not said everything yet'}"
