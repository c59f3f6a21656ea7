"""Everything that can go wrong in a call, as one tree, read from what the server sent.

* LongtideError
  * InvalidArgumentError        the request is wrong; `violations` says where
    * InvalidEventsError        some or all events were refused; the others are written
  * FailedPreconditionError     the request contradicts what is so now
  * NotFoundError               what the request names does not exist
  * UnauthenticatedError        no credentials, or wrong ones
  * PermissionDeniedError       the credentials do not allow the call
  * ResourceExhaustedError      over a limit: a message too large, or too many calls
  * DeadlineExceededError       no answer within the timeout
  * UnavailableError            the server cannot be reached or is not ready; trying later may help
  * InternalError               the server, or the server's answer, is broken
  * UnknownError                any other status; CANCELLED when the client was closed, before the call or during it

A wrong type or an unknown name in the caller's own code raises TypeError or ValueError before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import grpc
from google.protobuf.message import DecodeError

from longtide._types import EventError, FieldViolation, WriteResult
from longtide.internal.v1 import standard_pb2


class LongtideError(Exception):
    """Base of every error that a call raises. The gRPC error, where there is one, is its `__cause__`."""

    default_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    message: str
    """What went wrong, in the server's words."""
    status: grpc.StatusCode
    """The gRPC status."""
    violations: tuple[FieldViolation, ...]
    """The fields that are wrong, when the error is about fields."""
    reason: str
    """The server's name of the cause, in UPPER_SNAKE_CASE; empty when it sent none."""
    retry_delay_s: float | None
    """How long the server asks to wait before the next try, in seconds; None when it did not say."""

    # Every argument but the message has a default, so that an error can be pickled, for example by a worker process.
    def __init__(
        self,
        message: str,
        *,
        status: grpc.StatusCode | None = None,
        violations: tuple[FieldViolation, ...] = (),
        reason: str = "",
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status or self.default_status
        self.violations = violations
        self.reason = reason
        self.retry_delay_s = retry_delay_s


class InvalidArgumentError(LongtideError):
    """The request is wrong: `violations` says which fields and why. Sending it again unchanged cannot succeed."""

    default_status = grpc.StatusCode.INVALID_ARGUMENT


class InvalidEventsError(InvalidArgumentError):
    """Some or all events were refused. The others are written: `result` says how many, `errors` which were not."""

    result: WriteResult
    """What became of all events of the call."""

    def __init__(self, result: WriteResult) -> None:
        super().__init__(
            _refusal(result),
            violations=tuple(FieldViolation(_path(error), error.reason) for error in result.errors),
        )
        self.result = result

    @property
    def errors(self) -> tuple[EventError, ...]:
        """Why events were refused, by ascending index."""
        return self.result.errors

    def __reduce__(self) -> tuple[type[InvalidEventsError], tuple[WriteResult]]:
        return type(self), (self.result,)


class FailedPreconditionError(LongtideError):
    """The request contradicts what is so now; sending it again cannot succeed before that has changed."""

    default_status = grpc.StatusCode.FAILED_PRECONDITION


class NotFoundError(LongtideError):
    """What the request names does not exist."""

    default_status = grpc.StatusCode.NOT_FOUND


class UnauthenticatedError(LongtideError):
    """The call carries no credentials, or wrong ones."""

    default_status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(LongtideError):
    """The credentials do not allow the call."""

    default_status = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(LongtideError):
    """A limit is reached: a message is too large, or there are too many calls; see `retry_delay_s`."""

    default_status = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(LongtideError):
    """No answer came within the timeout. A write may or may not have happened: writing again is safe."""

    default_status = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(LongtideError):
    """The server cannot be reached or is not ready. The SDK has already retried where that is safe."""

    default_status = grpc.StatusCode.UNAVAILABLE


class InternalError(LongtideError):
    """The server failed, or answered against the contract."""

    default_status = grpc.StatusCode.INTERNAL


class UnknownError(LongtideError):
    """A status that has no class of its own; see `status`. CANCELLED says that the client was closed: a write that was
    under way may or may not have happened, and writing again is safe."""


_CLASS_OF_STATUS: dict[grpc.StatusCode, type[LongtideError]] = {
    error.default_status: error
    for error in (
        InvalidArgumentError,
        FailedPreconditionError,
        NotFoundError,
        UnauthenticatedError,
        PermissionDeniedError,
        ResourceExhaustedError,
        DeadlineExceededError,
        UnavailableError,
        InternalError,
    )
}
_STATUS_OF_NUMBER: dict[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}
_DETAILS_KEY = "grpc-status-details-bin"
_AIO_STATUS_LOST = "Internal error from Core"
_MEMBER_PATH = re.compile(r"(events|items)\[(\d+)\](?:\.(.*))?")


@dataclass(frozen=True, slots=True)
class _Details:
    """The typed details of a google.rpc.Status that the SDK understands."""

    violations: tuple[FieldViolation, ...] = ()
    reason: str = ""
    retry_delay_s: float | None = None


def client_closed() -> LongtideError:
    """The error of a call on a client that is closed, or is closed during the call."""
    return UnknownError("the client was closed", status=grpc.StatusCode.CANCELLED)


def error_from_rpc(exc: grpc.RpcError, closed: bool = False) -> LongtideError:
    """The error that a failed gRPC call means; raise it `from` that call's error.

    `closed` says whether the client is: then it, and not the server, has cancelled what is cancelled.
    """
    if closed and exc.code() == grpc.StatusCode.CANCELLED:
        return client_closed()
    # The type stubs know no common type for the trailers of both gRPC libraries; both are pairs.
    trailers = cast("Iterable[tuple[str, str | bytes]]", exc.trailing_metadata() or ())
    packed = next((value for key, value in trailers if key == _DETAILS_KEY), None)
    if exc.code() == grpc.StatusCode.CANCELLED:  # not by us: a server that shuts down drops what it has not taken up
        return UnavailableError(exc.details() or "the server dropped the call", status=exc.code())
    return _error(exc.code(), exc.details() or "", _details(packed))


def stream_error_from_rpc(exc: grpc.RpcError, closed: bool = False) -> LongtideError:
    """As `error_from_rpc`, for a stream: what only says that the stream was cut is UnavailableError."""
    # A server that shuts down may cancel its streams. One that ends a stream while a message is being sent makes
    # grpc.aio replace the server's status by an INTERNAL of its own (grpc/grpc#36066): a lasting reason shows again
    # on the next stream.
    cut = exc.code() == grpc.StatusCode.CANCELLED
    overwritten = exc.code() == grpc.StatusCode.INTERNAL and exc.details() == _AIO_STATUS_LOST
    if (cut and not closed) or overwritten:
        return UnavailableError("the server ended the stream early")
    return error_from_rpc(exc, closed)


def error_from_row(code: int, field: str, reason: str) -> LongtideError:
    """The error of one refused request of a stream, as the request would have got it alone."""
    violations = (FieldViolation(field, reason),) if field else ()
    message = f"{field}: {reason}" if field else reason
    return _error(_STATUS_OF_NUMBER.get(code, grpc.StatusCode.UNKNOWN), message, _Details(violations))


def violations_by_index(error: InvalidArgumentError, batch: str) -> dict[int, tuple[str, str]]:
    """The first violation of each member of a batch that the error names, as field and reason."""
    found: dict[int, tuple[str, str]] = {}
    for violation in error.violations:
        match = _MEMBER_PATH.fullmatch(violation.field)
        if match and match[1] == batch:
            found.setdefault(int(match[2]), (match[3] or "", violation.reason))
    return found


def _error(status: grpc.StatusCode, message: str, details: _Details) -> LongtideError:
    return _CLASS_OF_STATUS.get(status, UnknownError)(
        message or status.name,
        status=status,
        violations=details.violations,
        reason=details.reason,
        retry_delay_s=details.retry_delay_s,
    )


def _details(packed: str | bytes | None) -> _Details:
    if not isinstance(packed, bytes):
        return _Details()
    try:
        return _read_details(standard_pb2.Status.FromString(packed))
    except DecodeError:
        # Details that cannot be read, from some proxy, must not hide the error that they belong to.
        return _Details()


def _read_details(status: standard_pb2.Status) -> _Details:
    found: dict[str, Any] = {}
    for detail in status.details:
        match detail.type_url.rpartition("/")[2]:
            case "google.rpc.BadRequest":
                bad = standard_pb2.BadRequest.FromString(detail.value)
                found["violations"] = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
            case "google.rpc.ErrorInfo":
                found["reason"] = standard_pb2.ErrorInfo.FromString(detail.value).reason
            case "google.rpc.RetryInfo":
                delay = standard_pb2.RetryInfo.FromString(detail.value).retry_delay
                found["retry_delay_s"] = delay.seconds + delay.nanos / 1e9
    return _Details(**found)


def _refusal(result: WriteResult) -> str:
    total = result.written_count + result.duplicate_count + result.refused_count
    summary = f"{result.refused_count} of {total} events were refused, the others are written"
    if not result.errors:
        return summary
    return f"{summary}; the first: {_path(result.errors[0])}: {result.errors[0].reason}"


def _path(error: EventError) -> str:
    return f"events[{error.index}].{error.field}".removesuffix(".")
