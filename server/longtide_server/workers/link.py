"""Calls in both directions over the socket between the supervisor and a worker, each with a deadline."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from longtide_server.errors import DeadlineExceeded, LongtideError, Unavailable
from longtide_server.workers.messages import Call, Failure, Frame, Message, decode, encode, error_of, failure_of

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 64 << 20
GONE = "the process at the other end has ended"

T = TypeVar("T")

log = structlog.get_logger(__name__)


class LinkGone(Unavailable):
    """The process at the other end has ended, or is about to."""


class Link:
    """One end of the socket."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Message], Awaitable[object]],
    ) -> None:
        """`answer` does what the other side asks for; what it raises is raised there, if it is a LongtideError."""
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def over(cls, end: socket.socket, answer: Callable[[Message], Awaitable[object]]) -> Link:
        """The link over one end of a socket pair, which belongs to it from now on."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end), answer)

    async def call(self, message: Message, answer: type[T], timeout_s: float) -> T:
        """Ask the other side. Raises what it raised, DeadlineExceeded, or LinkGone when it ends meanwhile."""
        if self._gone.is_set():
            raise LinkGone(GONE)
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(Frame(number, "call", msgspec.Raw(encode(message))))
            async with asyncio.timeout(timeout_s):
                return decode(await asked, answer)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{type(message).__name__} was not answered within {timeout_s:g} s") from exc
        finally:
            del self._asked[number]

    async def gone(self) -> None:
        """Return when the other side has ended."""
        await self._gone.wait()

    async def close(self) -> None:
        """End it: for the other side, this one has ended."""
        self._reading.cancel()
        await asyncio.wait((self._reading,))

    def _send(self, frame: Frame) -> None:
        raw = encode(frame)
        # Nobody waits until it is read: a process that does not read is noticed by its not answering.
        self._writer.write(len(raw).to_bytes(LENGTH_BYTES) + raw)

    async def _read(self) -> None:
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                if length > MAX_FRAME_BYTES:
                    raise OSError(f"a message of {length} bytes")
                self._take(decode(await self._reader.readexactly(length), Frame))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the ends that are to be expected, also that of a process that is killed
        except (OSError, msgspec.MsgspecError) as exc:
            log.warning("link_broken", reason=str(exc))
        finally:
            self._end()

    def _take(self, frame: Frame) -> None:
        if frame.kind == "call":
            answering = asyncio.create_task(self._answered(frame))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)
            return
        asked = self._asked.get(frame.number)
        if asked is None or asked.done():  # too late
            return
        if frame.kind == "answer":
            asked.set_result(frame.body)
        else:
            asked.set_exception(error_of(decode(frame.body, Failure)))

    async def _answered(self, frame: Frame) -> None:
        try:
            message: Any = decode(frame.body, Call)  # type: ignore[arg-type]
            done = Frame(frame.number, "answer", msgspec.Raw(encode(await self._answer(message))))
        except LongtideError as exc:
            done = Frame(frame.number, "failure", msgspec.Raw(encode(failure_of(exc))))
        except Exception as exc:
            log.exception("call_failed_oddly")
            failure = Failure(Unavailable.__name__, f"failed in a way it should not: {exc!r}")
            done = Frame(frame.number, "failure", msgspec.Raw(encode(failure)))
        if not self._gone.is_set():  # the other side may have ended meanwhile, and nobody wants to know
            self._send(done)

    def _end(self) -> None:
        self._gone.set()
        self._writer.close()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(LinkGone(GONE))
        for answering in self._answering:
            answering.cancel()
