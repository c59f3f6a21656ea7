"""What the supervisor and a worker say to each other, and how it is sent: MessagePack, told apart by a tag."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from longtide_server.config import ServerConfig
from longtide_server.encoder import EncoderAt
from longtide_server.errors import (
    Conflict,
    DeadlineExceeded,
    EncoderUnavailable,
    EncoderUnreachable,
    FieldViolation,
    InvalidInput,
    LongtideError,
    NotFound,
    Overloaded,
    SnapshotError,
    Unavailable,
)

ERRORS: dict[str, type[LongtideError]] = {
    kind.__name__: kind
    for kind in (
        *(InvalidInput, SnapshotError, NotFound, Conflict),
        *(Unavailable, EncoderUnavailable, EncoderUnreachable, Overloaded, DeadlineExceeded),
    )
}

T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, tag=True):
    """Something that is asked of the other side; most are answered with nothing but that it is done."""


# By a worker, in this order


class Begin(Message, frozen=True, tag=True):
    """What is there to do? A Job is."""


class Loaded(Message, frozen=True, tag=True):
    """Everything is loaded; answered when the worker is to listen."""


class Listening(Message, frozen=True, tag=True):
    """Calls are answered from now on."""


class Failed(Message, frozen=True, tag=True):
    """It could not begin."""

    failure: Failure


class Activate(Message, frozen=True, tag=True):
    """Have all workers serve a snapshot. Asked at any time after Listening."""

    snapshot_id: str


# By the supervisor, of a worker that has loaded


class Prepare(Message, frozen=True, tag=True):
    """Have a snapshot ready to be served, and try it."""

    folder: Path
    torchserve: EncoderAt | None
    """The TorchServe that has its encoder; None where a worker runs the encoder itself."""


class Commit(Message, frozen=True, tag=True):
    """Serve what was prepared, which is this."""

    folder: Path


class Abandon(Message, frozen=True, tag=True):
    """Let go of what was prepared, or is being prepared."""


class Drain(Message, frozen=True, tag=True):
    """Answered when nothing is used any more of what was served before."""


class Look(Message, frozen=True, tag=True):
    """How is it going? Answered with a Sample."""


Call = Begin | Loaded | Listening | Failed | Activate | Prepare | Commit | Abandon | Drain | Look


# Answers


class Job(msgspec.Struct, frozen=True):
    """What a worker does."""

    number: int
    """Which of the workers it is, from 0."""
    config: ServerConfig
    address: str
    """HOST:PORT to listen on, where the port is a real one."""
    folder: Path
    """Of the snapshot."""
    torchserve: EncoderAt | None
    """As in Prepare."""


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric as a worker counts it."""

    name: str
    meaning: str
    kind: str
    samples: Sequence[tuple[str, dict[str, str], float]]
    """Name, labels and value of each."""


class Sample(msgspec.Struct, frozen=True):
    """The metrics of a worker; none where they are not counted."""

    families: Sequence[Family] = ()


class Failure(msgspec.Struct, frozen=True):
    """An error on its way to the other side."""

    kind: str
    """Of ERRORS."""
    message: str
    violations: tuple[FieldViolation, ...] = ()


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What is sent: a call with a number, or what came of the call with that number."""

    number: int
    kind: Literal["call", "answer", "failure"]
    body: msgspec.Raw


def encode(value: object) -> bytes:
    """A value as bytes."""
    return msgspec.msgpack.encode(value, enc_hook=str)  # of paths


def decode(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    """The value of a type; msgspec.MsgspecError when the bytes are none."""
    return msgspec.msgpack.decode(raw, type=kind, dec_hook=_made)


def failure_of(error: LongtideError) -> Failure:
    """An error as it is sent: as the narrowest kind that is known to the other side."""
    name = next(one.__name__ for one in type(error).__mro__ if one.__name__ in ERRORS or one is LongtideError)
    violations = error.violations if isinstance(error, InvalidInput) else ()
    return Failure(name if name in ERRORS else Unavailable.__name__, str(error), violations)


def error_of(failure: Failure) -> LongtideError:
    """The error that was sent."""
    kind = ERRORS.get(failure.kind, Unavailable)
    return kind(failure.message, failure.violations) if issubclass(kind, InvalidInput) else kind(failure.message)


def _made(kind: type[Any], value: object) -> object:
    return kind(value)
