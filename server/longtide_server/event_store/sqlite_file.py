"""One SQLite file: who may open it, its one writer for many callers, and its readers.

One thread writes. It takes everything that is waiting into one transaction, so that many callers share one fsync
(group commit); WAL lets readers go on meanwhile. What is kept in the file, events or items, goes through here.
"""

from __future__ import annotations

import asyncio
import fcntl
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import structlog

from longtide_server.errors import InvalidInput, LongtideError, Unavailable
from longtide_server.event_store import sqlite_log
from longtide_server.event_store.backlog import Backlog

MAX_ROWS_PER_COMMIT = 50_000
READERS = 2

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    """A change of the file, and where its result goes."""

    do: Callable[[sqlite3.Connection], T]
    done: Future[T]
    rows: int
    """How many rows it may change."""


class SqliteFile:
    """The file `path`, which is made when it is not there."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Hold the file, unless it is only read. InvalidInput when another process holds it."""
        self.path = path
        self._writes = writes
        self._waiting: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._closed = False
        try:
            if not writes and not path.is_file():
                raise InvalidInput.of("store", f"there is no event store {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _held(path) if writes else None
            self.connection = sqlite_log.connect(path)
            """The writer's: for its thread alone, as long as that runs."""
            sqlite_log.prepare(self.connection, path)
        except (OSError, sqlite3.Error) as exc:
            raise Unavailable(f"the event store {path} cannot be opened: {exc}") from exc
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="event-store-read")
        self._writer = threading.Thread(target=self._work, name="event-store-write", daemon=True)
        self._writer.start()

    def add_tables(self, schema: str) -> None:
        """Make tables and indexes as SQL says, each only where it is not there. Unavailable when that cannot be."""
        try:
            with closing(sqlite_log.connect(self.path)) as connection:
                connection.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT")
        except sqlite3.Error as exc:
            raise Unavailable(f"the event store {self.path} cannot be opened: {exc}") from exc

    async def change(
        self, do: Callable[[sqlite3.Connection], T], rows: int = 0, backlog: Backlog | None = None, size: int = 0
    ) -> T:
        """Have the writer do something that changes so many rows; return when it is durable.

        Where there is a backlog, the change waits in it with a size. Overloaded when it is full.
        """
        self._check_open()
        if not self._writes:
            raise Unavailable("the event store was opened to be read only")
        if backlog is not None:
            backlog.enter(size)
        job = _Job(do, Future(), rows)
        self._waiting.put(job)
        done = asyncio.wrap_future(job.done)
        if backlog is not None:
            done.add_done_callback(lambda _: backlog.leave(size))
        # Shielded: a caller that gives up must not undo a commit that is under way for others.
        return await asyncio.shield(done)

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read at one moment of the file."""

        def reading(connection: sqlite3.Connection) -> T:
            with _transaction(connection, "BEGIN"):
                return read(connection)

        return await self._on_reader(reading)

    async def close(self) -> None:
        """Finish what was accepted and let go of the file. Closing it again does nothing."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._waiting.put(None)
        self._writer.join()
        self._readers.shutdown(wait=True)
        self.connection.close()
        if self._lock is not None:
            self._lock.close()

    async def _on_reader(self, do: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()

        def doing() -> T:
            try:
                connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = sqlite_log.connect(self.path)
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
        jobs, count = [first], first.rows
        while count < MAX_ROWS_PER_COMMIT:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            count += job.rows
        return jobs, False

    def _commit(self, jobs: list[_Job[Any]]) -> None:
        """Do the jobs in one transaction; what fails for its own reasons fails alone, and takes nothing along."""
        results: list[tuple[_Job[Any], object]] = []
        try:
            with _transaction(self.connection, "BEGIN IMMEDIATE"):
                for job in jobs:
                    self.connection.execute("SAVEPOINT job")
                    try:
                        results.append((job, job.do(self.connection)))
                    except sqlite3.Error:
                        raise
                    except UnicodeEncodeError as exc:
                        self.connection.execute("ROLLBACK TO job")
                        results.append((job, Unavailable(f"the event store cannot write: {exc}")))
                    except Exception as exc:
                        if not isinstance(exc, LongtideError):
                            log.exception("change_failed_oddly")
                        self.connection.execute("ROLLBACK TO job")
                        results.append((job, exc))
                    self.connection.execute("RELEASE job")
        except sqlite3.Error as exc:
            log.error("changes_not_written", jobs=len(jobs), error=str(exc))
            _fail(jobs, Unavailable(f"the event store cannot write: {exc}"))
        except Exception as exc:
            log.exception("changes_not_written", jobs=len(jobs))
            _fail(jobs, exc)
        else:
            for job, result in results:
                if isinstance(result, Exception):
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
