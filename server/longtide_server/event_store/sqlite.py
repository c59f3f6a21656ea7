"""Events in one SQLite file: embedded, durable, nothing to install.

One thread writes. It takes everything that is waiting into one transaction, so that many callers share one fsync
(group commit); WAL lets readers go on meanwhile.
"""

from __future__ import annotations

import asyncio
import fcntl
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import structlog

from longtide_server.attribution import Shown
from longtide_server.errors import InvalidInput, LongtideError, Overloaded, Unavailable
from longtide_server.event_store import Deleted, History, Known, Merged, Place, Written, sqlite_log
from longtide_server.events import Event

MAX_WAITING_EVENTS = 200_000
MAX_EVENTS_PER_COMMIT = 50_000
PIECE_EVENTS = 10_000
READERS = 2
CHECKPOINT_TRIES = 5
CHECKPOINT_TRY_S = 0.05

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    """A change of the log, and where its result goes."""

    do: Callable[[sqlite3.Connection], T]
    done: Future[T]
    events: int = 0
    """How many events it adds."""


class SqliteEventStore:
    """An EventStore in the file `path`, which is made when it is not there."""

    shared = False

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Hold the file, unless it is only read. InvalidInput when another process holds it."""
        self._path = path
        self._writes = writes
        self._waiting: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._waiting_events = 0
        self._closed = False
        try:
            if not writes and not path.is_file():
                raise InvalidInput.of("store", f"there is no event store {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _held(path) if writes else None
            self._connection = sqlite_log.connect(path)
            sqlite_log.prepare(self._connection, path)
        except (OSError, sqlite3.Error) as exc:
            raise Unavailable(f"the event store {path} cannot be opened: {exc}") from exc
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="event-store-read")
        self._writer = threading.Thread(target=self._work, name="event-store-write", daemon=True)
        self._writer.start()

    async def write(self, events: Sequence[Event]) -> Written:
        """See EventStore."""
        if self._waiting_events + len(events) > MAX_WAITING_EVENTS:
            raise Overloaded(f"{self._waiting_events} events are waiting to be written")
        return await self._change(lambda connection: sqlite_log.append(connection, events), len(events))

    async def history(self, owner: str, known: Known | None = None) -> History:
        """See EventStore."""
        return await self._read(lambda connection: sqlite_log.read_history(connection, owner, known))

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """See EventStore."""
        return await self._read(lambda connection: sqlite_log.read_page(connection, owner, size, before))

    async def merge(self, source: str, target: str) -> Merged:
        """See EventStore."""
        return await self._change(lambda connection: sqlite_log.merge(connection, source, target))

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """See EventStore. Nothing is left of the events in the files, unless somebody reads them at this moment."""
        deleted = await self._change(lambda connection: sqlite_log.delete(connection, owner, now_s))
        for _ in range(CHECKPOINT_TRIES):
            if await asyncio.to_thread(sqlite_log.checkpoint, self._path):
                return deleted
            await asyncio.sleep(CHECKPOINT_TRY_S)
        # A backup or an export is reading: what it may still see leaves the files with a later checkpoint.
        log.warning("checkpoint_postponed", path=str(self._path))
        return deleted

    async def expire(self, kept_from_s: Mapping[int, float]) -> AsyncIterator[Mapping[str, int]]:
        """See EventStore. A piece is a transaction, so that writers have their turn between the pieces."""
        after = 0
        while True:
            expire = partial(sqlite_log.expire, kept_from_s=kept_from_s, after=after, size=PIECE_EVENTS)
            last, gone = await self._change(expire)
            if last == after:
                return
            after = last
            yield gone

    async def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """See EventStore."""
        after = 0
        while True:
            after, piece = await self._read(partial(sqlite_log.read_piece, after=after, size=PIECE_EVENTS))
            if not piece:
                return
            yield piece

    async def add_shown(self, counts: Mapping[Shown, int]) -> None:
        """See EventStore."""
        await self._change(lambda connection: sqlite_log.add_shown(connection, counts))

    async def shown(self) -> Mapping[Shown, int]:
        """See EventStore."""
        return await self._read(sqlite_log.read_shown)

    async def probe(self) -> None:
        """See EventStore. The write is durable as that of an event is: a full disk is no less full for a reader."""
        await self._change(sqlite_log.touch)
        await self._read(sqlite_log.look)

    async def close(self) -> None:
        """See EventStore."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._waiting.put(None)
        self._writer.join()
        self._readers.shutdown(wait=True)
        self._connection.close()
        if self._lock is not None:
            self._lock.close()

    async def _change(self, do: Callable[[sqlite3.Connection], T], events: int = 0) -> T:
        """Have the writer do something; return when it is durable."""
        self._check_open()
        if not self._writes:
            raise Unavailable("the event store was opened to be read only")
        job = _Job(do, Future(), events)
        self._waiting_events += events
        self._waiting.put(job)
        done = asyncio.wrap_future(job.done)
        done.add_done_callback(lambda _: self._forget(events))
        # Shielded: a caller that gives up must not undo a commit that is under way for others.
        return await asyncio.shield(done)

    def _forget(self, count: int) -> None:
        self._waiting_events -= count

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read at one moment of the log."""

        def reading(connection: sqlite3.Connection) -> T:
            with _transaction(connection, "BEGIN"):
                return read(connection)

        return await self._on_reader(reading)

    async def _on_reader(self, do: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()

        def doing() -> T:
            try:
                connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = sqlite_log.connect(self._path)
                return do(connection)
            except sqlite3.Error as exc:
                raise Unavailable(f"the event store cannot be read: {exc}") from exc

        return await asyncio.get_running_loop().run_in_executor(self._readers, doing)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the event store is closing")

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            jobs, closing = self._take_waiting(first)
            self._commit(jobs)
            if closing:
                return

    def _take_waiting(self, first: _Job[Any]) -> tuple[list[_Job[Any]], bool]:
        """Everything that waits right now, bounded; and whether the store is to close after it."""
        jobs, count = [first], first.events
        while count < MAX_EVENTS_PER_COMMIT:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            count += job.events
        return jobs, False

    def _commit(self, jobs: list[_Job[Any]]) -> None:
        """Do the jobs in one transaction; what fails for its own reasons fails alone, and takes nothing along."""
        results: list[tuple[_Job[Any], object]] = []
        try:
            with _transaction(self._connection, "BEGIN IMMEDIATE"):
                for job in jobs:
                    self._connection.execute("SAVEPOINT job")
                    try:
                        results.append((job, job.do(self._connection)))
                    except LongtideError as exc:
                        self._connection.execute("ROLLBACK TO job")
                        results.append((job, exc))
                    except UnicodeEncodeError as exc:
                        self._connection.execute("ROLLBACK TO job")
                        results.append((job, Unavailable(f"the event store cannot write: {exc}")))
                    self._connection.execute("RELEASE job")
        except sqlite3.Error as exc:
            log.error("events_not_written", jobs=len(jobs), error=str(exc))
            _fail(jobs, Unavailable(f"the event store cannot write: {exc}"))
        except Exception as exc:
            log.exception("events_not_written", jobs=len(jobs))
            _fail(jobs, exc)
        else:
            for job, result in results:
                if isinstance(result, LongtideError):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)


def _held(path: Path) -> BinaryIO:
    """Hold the file for this process: what another one wrote would not be felt by the states that are kept here."""
    lock = path.with_name(f"{path.name}.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock.close()
        raise InvalidInput.of("store", f"{path} is in use by another process") from exc
    return lock


def _fail(jobs: Sequence[_Job[Any]], exc: Exception) -> None:
    for job in jobs:
        job.done.set_exception(exc)


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself after some errors, a full disk for one
            connection.execute("ROLLBACK")
        raise
