"""The deadline of calls that bring none: where a store hangs, such a call would keep its place for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from longtide_server.errors import DeadlineExceeded
from longtide_server.rpc.status import Context, abort

S = TypeVar("S")
Handler = Callable[[Message, Context], Awaitable[Message]]


def limited(servicer: S, service: ServiceDescriptor, limit_s: float, but: Collection[str] = ()) -> S:
    """The servicer itself, whose calls of one request and one answer have a deadline from now on, `but` for some."""
    for method in service.methods:
        if not (method.server_streaming or method.client_streaming or method.name in but):
            setattr(servicer, method.name, _limited(getattr(servicer, method.name), limit_s))
    return servicer


def _limited(handler: Handler, limit_s: float) -> Handler:
    async def ending_in_time(request: Message, context: Context) -> Message:
        if context.time_remaining() is not None:  # gRPC ends the call then
            return await handler(request, context)
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await handler(request, context)
        except TimeoutError:
            if not limit.expired():  # a defect of the handler's own, and told as one
                raise
            await abort(
                context, DeadlineExceeded(f"there was no answer within {limit_s:g} s, the server's own deadline")
            )

    return ending_in_time
