"""One worker as the supervisor sees it: a process, the link to it, and how far it has come."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from longtide_server.errors import LongtideError, Unavailable
from longtide_server.workers.link import Link
from longtide_server.workers.messages import Activate, Begin, Failed, Job, Listening, Loaded, Message, error_of

STDERR = 2

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Worker:
    """A worker process. It ends with this one, however this one ends."""

    def __init__(self, job: Job, inherited: Sequence[int], activate: Callable[[str], Awaitable[None]]) -> None:
        """Not started yet. It will keep the file descriptors `inherited` open as long as it lives.

        `activate` has all workers serve a snapshot, when this one is asked for it.
        """
        self.number = job.number
        self._job = job
        self._inherited = inherited
        self._activate = activate
        self._loaded = asyncio.Event()
        self._may_listen = asyncio.Event()
        self._listening = asyncio.Event()
        self._failure: LongtideError | None = None
        self._process: Process | None = None
        self._link: Link | None = None
        self._exit: asyncio.Task[int] | None = None

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the process. OSError when that cannot be. To be ended also when this fails or is cancelled."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "longtide_server", "worker"),
                    *("--number", str(self.number), "--link", str(theirs.fileno()), "--supervisor", str(os.getpid())),
                    *("--log-format", self._job.config.log_format),
                    stdin=DEVNULL,
                    stdout=STDERR,  # what this process prints is read by scripts
                    pass_fds=(theirs.fileno(), *self._inherited),
                    start_new_session=True,  # Ctrl-C is the supervisor's: it has everybody finish their calls
                    env=_environment(self._job.config.workers),
                )
            self._exit = asyncio.create_task(self._process.wait())
            self._link = await Link.over(ours, self._answer)
        except BaseException:
            ours.close()
            raise

    async def loaded(self, within_s: float) -> None:
        """Return when it could listen. Raises why it could not."""
        await self._until(self._loaded, within_s)

    async def listen(self, within_s: float) -> None:
        """Have it listen; return when it does. Raises why it could not."""
        self._may_listen.set()
        await self._until(self._listening, within_s)

    async def call(self, message: Message, answer: type[T], timeout_s: float) -> T:
        """See Link."""
        if self._link is None:
            raise Unavailable("the worker has not begun")
        return await self._link.call(message, answer, timeout_s)

    async def ended(self, within_s: float | None = None) -> int | None:
        """The exit status, once it has ended, negative for a signal; none when it has not within the time."""
        assert self._exit is not None
        await asyncio.wait((self._exit,), timeout=within_s)
        return self._exit.result() if self._exit.done() else None

    def terminate(self) -> None:
        """Have it finish its calls and end."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self, grace_s: float) -> None:
        """Have it finish its calls and end; return when it has. Killed when it takes longer than the grace."""
        self.terminate()
        try:
            if await self.ended(grace_s) is None:
                log.error("worker_does_not_end", worker=self.number, pid=self.pid)
        finally:
            await self.end()

    async def end(self) -> None:
        """End it at once, and return when nothing is left of it."""
        self.kill()
        if self._exit is not None:
            await self.ended()
        if self._link is not None:
            await self._link.close()

    async def _answer(self, message: Message) -> object:
        match message:
            case Begin():
                return self._job
            case Loaded():
                self._loaded.set()
                await self._may_listen.wait()
            case Listening():
                self._listening.set()
            case Failed(failure=failure):
                self._failure = error_of(failure)
            case Activate(snapshot_id=snapshot_id):
                await self._activate(snapshot_id)
        return None

    async def _until(self, event: asyncio.Event, within_s: float) -> None:
        assert self._exit is not None
        reached = asyncio.create_task(event.wait())
        try:
            await asyncio.wait((reached, self._exit), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()
        if event.is_set():
            return
        if self._failure is not None:
            raise self._failure
        if self._exit.done():
            raise Unavailable(f"worker {self.number} ended with status {self._exit.result()} while it started")
        raise Unavailable(f"worker {self.number} did not start within {within_s:g} s")


def _environment(workers: int) -> dict[str, str]:
    """Of a worker: unless somebody has said otherwise, the workers together have a thread a core to compute with."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), **os.environ}
