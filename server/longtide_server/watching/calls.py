"""Watches every RPC of a servicer from outside: how it ended, how long it took, and a span of it where spans are made.

Handlers are wrapped and not intercepted: an interceptor of `grpc.aio` costs several microseconds a call, this one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from longtide_server.observer import Observer
from longtide_server.rpc.status import Context

S = TypeVar("S")
Metadata = Iterable[tuple[str, str | bytes]]
"""What a caller sent along; names are lower-case, those that end in `-bin` have bytes."""


class Span(Protocol):
    """A call in a trace."""

    def end(self, code: str) -> None:
        """The call has ended with a gRPC status."""
        ...


class Tracer(Protocol):
    """Makes spans of calls."""

    def call(self, service: str, rpc: str, metadata: Metadata, *, stages: bool) -> Span:
        """Begin a span; with `stages`, what the call does in this task becomes part of it. To end in the same task."""
        ...


class Calls:
    """Watches servicers."""

    def __init__(self, observer: Observer, tracer: Tracer | None = None) -> None:
        self._observer = observer
        self._tracer = tracer

    def watched(self, servicer: S, service: ServiceDescriptor) -> S:
        """The servicer itself, from now on watched."""
        for method in service.methods:
            handler = getattr(servicer, method.name)
            setattr(servicer, method.name, (self._stream if method.server_streaming else self._unary)(handler, method))
        return servicer

    def _unary(
        self, handler: Callable[[Any, Context], Awaitable[Any]], method: MethodDescriptor
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        service, rpc = method.containing_service.full_name, method.name

        async def watched(request: Any, context: Context) -> Any:  # noqa: ANN401  (whatever the contract says)
            begun_s = time.perf_counter()
            span = None if self._tracer is None else self._tracer.call(service, rpc, _metadata(context), stages=True)
            code = "OK"
            try:
                return await handler(request, context)
            except BaseException as exc:
                code = _code(context, exc)
                raise
            finally:
                self._observer.call(rpc, code, begun_s)
                if span is not None:
                    span.end(code)

        return watched

    def _stream(
        self, handler: Callable[[Any, Context], AsyncGenerator[Any, None]], method: MethodDescriptor
    ) -> Callable[[Any, Context], AsyncGenerator[Any, None]]:
        service, rpc = method.containing_service.full_name, method.name

        async def watched(request: Any, context: Context) -> AsyncGenerator[Any, None]:  # noqa: ANN401
            begun_s = None if method.client_streaming else time.perf_counter()
            # Of a stream of millions of rows the stages would be a trace that nobody can read.
            span = None if self._tracer is None else self._tracer.call(service, rpc, _metadata(context), stages=False)
            code = "OK"
            try:
                async with aclosing(handler(request, context)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as exc:
                code = _code(context, exc)
                raise
            finally:
                self._observer.call(rpc, code, begun_s)
                if span is not None:
                    span.end(code)

        return watched


def _code(context: Context, error: BaseException) -> str:
    """The status that a call ends with for an error that leaves its handler."""
    if isinstance(error, grpc.aio.AbortError):
        return context.code().name
    if not isinstance(error, Exception):  # the caller has gone, or gRPC has ended the call at its deadline
        left_s = context.time_remaining()
        return "CANCELLED" if left_s is None or left_s > 0 else "DEADLINE_EXCEEDED"
    return "UNKNOWN"


def _metadata(context: Context) -> Metadata:
    return context.invocation_metadata() or ()
