"""The server's error tree, free of any transport.

LongtideError
├── InvalidInput          a request, a log or a setting is wrong; names the field
│   ├── LogError          a log or items file is wrong; names file, row and column
│   └── SnapshotError     a snapshot cannot be read: wrong version, truncated, wrong checksum
├── Unavailable           a part we depend on cannot answer now; retrying later can help
│   └── EncoderUnavailable
│       └── EncoderUnreachable
├── NotFound              what is asked for is not there
├── Conflict              the request contradicts what is so already; retrying it cannot help
├── Overloaded            too much work is waiting; retrying later can help
└── DeadlineExceeded      the caller's deadline passed, or cannot be met
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request, and a sentence that says what is wrong and what is allowed."""

    field: str
    reason: str


class LongtideError(Exception):
    """Anything Longtide itself raises on purpose."""


class InvalidInput(LongtideError):
    """The caller sent something that cannot be right; retrying it unchanged cannot help."""

    def __init__(self, message: str, violations: tuple[FieldViolation, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations

    @classmethod
    def of(cls, field: str, reason: str) -> InvalidInput:
        """One wrong field."""
        return cls(f"{field}: {reason}", (FieldViolation(field, reason),))


class LogError(InvalidInput):
    """A log or items file is wrong. The message names the file, and the row and column where there is one."""


class SnapshotError(InvalidInput):
    """A snapshot is of another format version, incomplete or damaged."""


class Unavailable(LongtideError):
    """A part that the answer needs cannot answer now."""


class EncoderUnavailable(Unavailable):
    """The encoder is down, or answers nonsense."""


class EncoderUnreachable(EncoderUnavailable):
    """Nobody is there who would be the encoder, for whatever reason."""


class NotFound(LongtideError):
    """What is asked for is not there."""


class Conflict(LongtideError):
    """What is asked for contradicts what has been done before."""


class Overloaded(LongtideError):
    """More work is waiting than the server is allowed to hold."""


class DeadlineExceeded(LongtideError):
    """The deadline passed before the answer was ready."""
