"""One bidirectional call of the synchronous client, driven from the caller's own thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

import grpc

from longtide._errors import DeadlineExceededError, UnavailableError, stream_error_from_rpc

_GOODBYE_S = 1.0

Q = TypeVar("Q")
R = TypeVar("R")


class _End:
    """Marks that the server has ended the stream without an error."""


class Stream(Generic[Q, R]):
    """Sends without waiting and receives with a deadline for each answer.

    gRPC can only block on an answer for ever, so a thread reads the answers into a queue, which has a timeout. Requests
    are put into a queue as well, so that the caller's iterable is always read in the caller's thread. Leaving the
    context cancels the call and waits for the thread.
    """

    def __init__(
        self,
        method: grpc.StreamStreamMultiCallable[Q, R],
        metadata: tuple[tuple[str, str | bytes], ...],
        closed: Callable[[], bool],
    ) -> None:
        """`closed` says whether the client is."""
        self._closed = closed
        self._requests: queue.SimpleQueue[Q | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[R | grpc.RpcError | _End] = queue.SimpleQueue()
        self._call = method(iter(self._requests.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="longtide-stream", daemon=True)
        self._reader.start()

    def send(self, request: Q) -> None:
        """Sends a request; a failure shows in the next answer."""
        self._requests.put(request)

    def ready(self) -> bool:
        """Whether `receive` would answer, or fail, at once."""
        return not self._answers.empty()

    def receive(self, timeout_s: float) -> R:
        """The next answer; raises LongtideError when the stream fails, ends, or takes longer than the timeout."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty as exc:
            raise DeadlineExceededError(f"the stream gave no answer within {timeout_s:g} s") from exc
        if isinstance(answer, _End):
            raise UnavailableError("the server ended the stream early")
        if isinstance(answer, grpc.RpcError):
            raise stream_error_from_rpc(answer, self._closed()) from answer
        return answer

    def finish(self) -> None:
        """Ends the requests once everything is answered, and gives the server a moment to end the stream itself."""
        self._requests.put(None)
        self._reader.join(_GOODBYE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._requests.put(None)  # ends the thread in which gRPC reads the requests
        self._call.cancel()
        self._reader.join()

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._answers.put(answer)
        except grpc.RpcError as exc:
            self._answers.put(exc)
        else:
            self._answers.put(_End())
