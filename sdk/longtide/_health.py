"""Reads the standard health check: is the server ready, and if not, why."""

from __future__ import annotations

from longtide._errors import LongtideError, UnavailableError
from longtide.internal.v1 import standard_pb2

POLL_S = 0.1
_LONGEST_ATTEMPT_S = 2.0


def attempt_s(remaining_s: float) -> float:
    """How long one check may take, when so much time is left."""
    return max(POLL_S, min(_LONGEST_ATTEMPT_S, remaining_s))


def require_serving(response: standard_pb2.HealthCheckResponse) -> None:
    """Raises UnavailableError when the server says that it is not ready."""
    if response.status != standard_pb2.HealthCheckResponse.SERVING_STATUS_SERVING:
        name = standard_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        raise UnavailableError(f"the server says {name.removeprefix('SERVING_STATUS_')}")


def not_ready(error: LongtideError, timeout_s: float) -> LongtideError:
    """The error of a wait that ended in vain, of the kind of the last failure."""
    return type(error)(f"the server was not ready within {timeout_s:g} s: {error.message}")
