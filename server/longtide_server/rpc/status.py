"""The one table from errors to gRPC status, and what ends a call with one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from longtide_server.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    LongtideError,
    NotFound,
    Overloaded,
    Unavailable,
)

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext  # generic in its stubs only

T = TypeVar("T")

ERROR_DOMAIN = "longtide"
RETRY_AFTER_S = 1
MAX_VIOLATIONS = 20  # details travel as metadata, of which clients accept 8 KiB
MAX_MESSAGE_BYTES = 1_024  # it travels twice

# The first class that an error is an instance of decides.
STATUS_OF: tuple[tuple[type[LongtideError], grpc.StatusCode, int], ...] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT, code_pb2.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND, code_pb2.NOT_FOUND),
    (Conflict, grpc.StatusCode.FAILED_PRECONDITION, code_pb2.FAILED_PRECONDITION),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, code_pb2.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, code_pb2.DEADLINE_EXCEEDED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE, code_pb2.UNAVAILABLE),
)

log = structlog.get_logger(__name__)


async def answered(context: Context, answer: Callable[[], Awaitable[T]]) -> T:
    """Run a handler's body; what it raises becomes a status with typed details."""
    try:
        return await answer()
    except LongtideError as exc:
        await abort(context, exc)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception:
        log.exception("unexpected_error")
        await context.abort(grpc.StatusCode.INTERNAL, "the server failed in a way it should not; its log says how")


async def abort(context: Context, error: LongtideError) -> NoReturn:
    """End a call with the status of an error and its details: field violations, a reason, when to retry."""
    _, number = status_of(error)
    details: list[any_pb2.Any] = []
    if isinstance(error, InvalidInput) and error.violations:
        bad = error_details_pb2.BadRequest()
        for wrong in error.violations[:MAX_VIOLATIONS]:
            bad.field_violations.add(field=wrong.field, description=wrong.reason)
        details.append(_packed(bad))
    if isinstance(error, (Overloaded, Unavailable)):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(RETRY_AFTER_S)
        details.append(_packed(retry))
    details.append(_packed(error_details_pb2.ErrorInfo(reason=_reason(error), domain=ERROR_DOMAIN)))
    status = status_pb2.Status(code=number, message=told(error), details=details)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")


def told(error: LongtideError) -> str:
    """What a caller is told of an error: its first line, since logs may follow, and not more than gRPC can send."""
    line = str(error).partition("\n")[0]
    whole = line.encode()
    return line if len(whole) <= MAX_MESSAGE_BYTES else f"{whole[:MAX_MESSAGE_BYTES].decode(errors='ignore')} ..."


def status_of(error: LongtideError) -> tuple[grpc.StatusCode, int]:
    """The gRPC status of an error, and its number."""
    for kind, code, number in STATUS_OF:
        if isinstance(error, kind):
            return code, number
    return grpc.StatusCode.INTERNAL, code_pb2.INTERNAL


def remaining_s(context: Context) -> float | None:
    """Seconds until the caller's deadline; none when there is none. DeadlineExceeded when it has passed."""
    left = context.time_remaining()
    if left is not None and left <= 0:
        raise DeadlineExceeded("the deadline passed before the work began")
    return left


def _packed(
    message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo | error_details_pb2.ErrorInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _reason(error: LongtideError) -> str:
    name = type(error).__name__
    return "".join(f"_{letter}" if letter.isupper() else letter for letter in name).lstrip("_").upper()
