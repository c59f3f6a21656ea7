"""Turns the texts of new items into vectors while the server runs, in a process of its own.

Language models need torch, which the server does not load: a worker (`training.items.text_worker`) holds the model.
It is started when a text is neither in memory nor in the cache on disk, and started again after it died.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.errors import DeadlineExceeded, LongtideError, Overloaded, Unavailable
from longtide_server.items.text_cache import TextCache, text_key

WORKER = "longtide_server.training.items.text_worker"
BATCH_TEXTS = 32
"""Read in one go: a second's work or less, so that who comes later does not wait for long."""
MOST_WAITING = 20_000
MOST_KEPT = 20_000
WRITTEN_AT_ONCE = 256
"""Vectors that are new go to the cache on disk so many at a time, and when the encoder is closed."""
START_TIMEOUT_S = 120.0
READ_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
LENGTH = struct.Struct(">I")

Vector = NDArray[np.float32]

log = structlog.get_logger(__name__)


class Ready(msgspec.Struct):
    """What a worker says first."""

    identity: str = ""
    """Identifies its model."""
    error: str = ""
    """Why it has none; empty when it has."""


class TextEncoder:
    """Vectors of texts, each text read once; use it inside one event loop."""

    def __init__(self, identity: str, cache: TextCache, model: str = "", command: Sequence[str] = ()) -> None:
        """identity: of the model whose vectors are wanted; model: where the worker finds it, as `--text-model` says.

        command: what to start instead of the usual worker.
        """
        self._identity = identity
        self._cache = cache
        self._command = tuple(command) or (sys.executable, "-m", WORKER, model)
        self._kept: OrderedDict[bytes, Vector] = OrderedDict()
        self._unwritten: dict[str, Vector] = {}
        self._waiting: OrderedDict[str, asyncio.Future[Vector]] = OrderedDict()
        self._reading: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def encode(self, texts: Sequence[str], timeout_s: float) -> Vector:
        """(n, E) vectors of n texts, n at least 1, none of them empty: of length 1, or 0 where one says nothing.

        DeadlineExceeded after `timeout_s`; what was asked is read on, and found by a later call. Overloaded when too
        many texts wait. Unavailable when the worker fails, or has another model than is wanted.
        """
        found = {text: self._vector(text) for text in texts}
        if unknown := [future for future in found.values() if isinstance(future, asyncio.Future)]:
            _, late = await asyncio.wait(unknown, timeout=timeout_s)
            if late:
                raise DeadlineExceeded(f"{len(late)} texts were not read within {timeout_s:g} s")
        return np.stack([one.result() if isinstance(one := found[text], asyncio.Future) else one for text in texts])

    @property
    def running(self) -> bool:
        """Whether the worker is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the worker, so that the first text does not wait for it. That it cannot be is logged."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._start_and_read(), name="text-encoder")
        await asyncio.wait((self._reading,))

    async def close(self) -> None:
        """Stop the worker, write what is new to the cache, and fail whoever still waits."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        self._fail(Unavailable("the text encoder is closed"))
        await self._stop()
        await self._write(1)

    def _vector(self, text: str) -> Vector | asyncio.Future[Vector]:
        """The vector of a text, or the promise of one."""
        key = text_key(text)
        if (vector := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return vector
        if (future := self._waiting.get(text)) is not None:
            return future
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING:,} texts wait to be read")
        future = self._waiting[text] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_heard)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_waiting(), name="text-encoder")
        return future

    async def _start_and_read(self) -> None:
        try:
            if self._process is None:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await self._start()
        except (LongtideError, OSError, EOFError, TimeoutError, msgspec.MsgspecError) as exc:
            log.warning("text_worker_not_started", reason=str(exc) or type(exc).__name__)
            await self._stop()
        await self._read_waiting()

    async def _read_waiting(self) -> None:
        """Read all texts that wait, the first ones first. When a batch fails, everybody is told."""
        try:
            while self._waiting:
                batch = list(self._waiting)[:BATCH_TEXTS]
                for text, vector in zip(batch, await self._read(batch), strict=True):
                    self._keep(text, vector)
        except LongtideError as exc:
            log.warning("texts_not_read", reason=str(exc))
            self._fail(exc)
        except Exception:
            log.exception("texts_not_read")
            self._fail(Unavailable("texts cannot be read; the server's log says why"))

    def _keep(self, text: str, vector: Vector) -> None:
        self._kept[text_key(text)] = vector
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        if not (future := self._waiting.pop(text)).done():
            future.set_result(vector)

    def _fail(self, exc: LongtideError) -> None:
        waiting, self._waiting = self._waiting, OrderedDict()
        for future in waiting.values():
            if not future.done():
                future.set_exception(exc)

    async def _read(self, texts: list[str]) -> list[Vector]:
        """Vectors from the cache on disk, and from the worker where it has none."""
        known = await asyncio.to_thread(self._cache.read, self._identity, texts)
        known |= {text: self._unwritten[text] for text in texts if text in self._unwritten}
        if missing := [text for text in texts if text not in known]:
            fresh = dict(zip(missing, await self._ask(missing), strict=True))
            known |= fresh
            self._unwritten |= {text: vector for text, vector in fresh.items() if vector.any()}
            await self._write(WRITTEN_AT_ONCE)
        return [known[text] for text in texts]

    async def _write(self, least: int) -> None:
        """Write what is new to the cache, when it is at least so much."""
        if len(self._unwritten) >= least:
            fresh, self._unwritten = self._unwritten, {}
            await asyncio.to_thread(self._cache.write, self._identity, list(fresh), np.stack(list(fresh.values())))

    async def _ask(self, texts: list[str]) -> Vector:
        """(n, E) what the worker says of n texts."""
        if self._process is not None and self._process.returncode is not None:
            await self._stop()  # it died while nobody asked
        try:
            async with asyncio.timeout(START_TIMEOUT_S if self._process is None else READ_TIMEOUT_S):
                process = self._process or await self._start()
                await _send(process, msgspec.msgpack.encode(texts))
                return np.frombuffer(await _receive(process), "<f4").astype(np.float32).reshape(len(texts), -1)
        except (OSError, EOFError, TimeoutError, ValueError, msgspec.MsgspecError) as exc:
            await self._stop()
            raise Unavailable(f"the process that reads texts failed: {exc or type(exc).__name__}") from exc
        except BaseException:
            await self._stop()  # what it still has to say would be taken for the answer to the next question
            raise

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        # One thread, for it works beside a server that answers; a session of its own, for Ctrl-C is not for it.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, env=one_thread, start_new_session=True
        )
        ready = msgspec.msgpack.decode(await _receive(process), type=Ready)
        if ready.error:
            raise Unavailable(f"texts cannot be read: {ready.error}")
        if ready.identity != self._identity:
            raise Unavailable("texts cannot be read: the model is not the one that the snapshot was trained with")
        log.info("text_worker_started", pid=process.pid)
        return process

    async def _stop(self) -> None:
        """End the worker: it goes by itself when nobody writes to it, and is killed when it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with suppress(ProcessLookupError):
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _send(process: asyncio.subprocess.Process, content: bytes) -> None:
    if process.stdin is None:
        raise EOFError("it has no input")
    process.stdin.write(LENGTH.pack(len(content)) + content)
    await process.stdin.drain()


async def _receive(process: asyncio.subprocess.Process) -> bytes:
    """IncompleteReadError, an EOFError, when the worker has ended."""
    if process.stdout is None:
        raise EOFError("it has no output")
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    return await process.stdout.readexactly(length)


def _heard(future: asyncio.Future[Vector]) -> None:
    """A failure of which nobody waits to hear any more is no news."""
    if not future.cancelled():
        future.exception()
