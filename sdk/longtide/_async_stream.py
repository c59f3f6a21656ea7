"""One bidirectional call of the asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import grpc
import grpc.aio

from longtide._errors import DeadlineExceededError, UnavailableError, client_closed, stream_error_from_rpc

_GOODBYE_S = 1.0

Q = TypeVar("Q")
R = TypeVar("R")


class AsyncStream(Generic[Q, R]):
    """Sends without waiting and receives with a deadline for each answer. Leaving the context cancels the call."""

    def __init__(
        self,
        method: grpc.aio.StreamStreamMultiCallable[Q, R],
        metadata: tuple[tuple[str, str | bytes], ...],
        closed: Callable[[], bool],
    ) -> None:
        """`closed` says whether the client is."""
        self._closed = closed
        self._requests: asyncio.Queue[Q | None] = asyncio.Queue()
        self._call = method(self._outgoing(), metadata=metadata)
        self._next = asyncio.ensure_future(self._call.read())

    async def send(self, request: Q) -> None:
        """Sends a request; a failure shows in the next answer."""
        self._requests.put_nowait(request)
        # An iterable that never waits must still let the loop send and receive.
        await asyncio.sleep(0)

    def ready(self) -> bool:
        """Whether `receive` would answer, or fail, at once."""
        return self._next.done()

    async def receive(self, timeout_s: float) -> R:
        """The next answer; raises LongtideError when the stream fails, ends, or takes longer than the timeout."""
        await asyncio.wait({self._next}, timeout=timeout_s)
        if not self._next.done():
            raise DeadlineExceededError(f"the stream gave no answer within {timeout_s:g} s")
        if self._next.cancelled():
            raise client_closed()
        try:
            answer = self._next.result()
        except grpc.RpcError as exc:
            raise stream_error_from_rpc(exc, self._closed()) from exc
        if answer is grpc.aio.EOF:
            raise UnavailableError("the server ended the stream early")
        self._next = asyncio.ensure_future(self._call.read())
        return cast(R, answer)

    async def finish(self) -> None:
        """Ends the requests once everything is answered, and gives the server a moment to end the stream itself."""
        self._requests.put_nowait(None)
        await asyncio.wait({self._next}, timeout=_GOODBYE_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.cancel()
        self._next.cancel()
        # The outcome of a call that nobody waits for any more is of no interest, and must not be logged as lost.
        await asyncio.gather(self._next, return_exceptions=True)

    async def _outgoing(self) -> AsyncIterator[Q]:
        while (request := await self._requests.get()) is not None:
            yield request
