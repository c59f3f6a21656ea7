"""One SQLite file: who may open it, its one writer for many callers, and its readers.

One thread writes. It takes everything that is waiting into one transaction, so that many callers share one fsync
(group commit); WAL lets readers go on meanwhile. What is kept in the file, events or items, goes through here.

A file belongs to one process, or to one and those that it starts (`--workers`): it holds the file, and each of them
opens it as shared. Their writers take turns. Who writes gets positions, versions and revisions inside the transaction,
so it does not matter who it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import structlog

from longtide_server.errors import InvalidInput, LongtideError, Unavailable
from longtide_server.event_store import sqlite_log, sqlite_reading
from longtide_server.event_store.backlog import Backlog
from longtide_server.event_store.sqlite_watch import Watch

MAX_ROWS_PER_COMMIT = 50_000
READERS = 2
ERASE_EVERY_S = 1.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    """A change of the file, and where its result goes."""

    do: Callable[[sqlite3.Connection], T]
    done: Future[T]
    rows: int
    """How many rows it may change."""
    erases: bool
    """Whether nothing of what it overwrites may be left in the write-ahead log."""


class SqliteFile:
    """The file `path`, which is made when it is not there, unless it is only read."""

    def __init__(self, path: Path, *, writes: bool = True, shared: bool = False) -> None:
        """Hold the file, unless it is only read or is shared. InvalidInput when another process holds it.

        Whoever starts processes that share it holds it for them, with `hold`. What is only read may be read-only.
        """
        self.path = path
        self.shared = shared
        self.writes = writes
        self._connect = sqlite_log.connect if writes else sqlite_reading.connect
        self._watches: list[Watch] = []
        self._waiting: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._closed = False
        try:
            if writes:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not path.is_file():
                raise InvalidInput.of("store", f"there is no event store {path}")
            self._lock = hold(path) if writes and not shared else None
            self.connection = self._connect(path)
            """The writer's: for its thread alone, as long as that runs."""
            if writes:
                with self.turn():
                    sqlite_log.prepare(self.connection, path)
            self._erasing = writes and not self._erased()  # a server that was killed may have owed it
            """Whether the write-ahead log may hold what is to be gone."""
            self._erase_again_s = time.monotonic() + ERASE_EVERY_S
        except (OSError, sqlite3.Error) as exc:
            raise Unavailable(f"the event store {path} cannot be opened: {exc}") from exc
        self._local = threading.local()
        self._reading: list[sqlite3.Connection] = []
        """The readers', each for its own thread, as long as that runs."""
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="event-store-read")
        self._writer = threading.Thread(target=self._work, name="event-store-write", daemon=True)
        self._writer.start()

    def add_tables(self, schema: str) -> None:
        """Make tables and indexes as SQL says, each only where it is not there. Unavailable when that cannot be.

        A file that is only read has those that it has.
        """
        if not self.writes:
            return
        try:
            with self.turn(), closing(sqlite_log.connect(self.path)) as connection:
                connection.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT")
        except (OSError, sqlite3.Error) as exc:
            raise Unavailable(f"the event store {self.path} cannot be opened: {exc}") from exc

    def watch(self, read: str) -> Watch:
        """Watch what a statement reads, a row of it, until the file is closed. Unavailable when that cannot be."""
        try:
            watch = Watch(sqlite_log.connect(self.path), read)
        except sqlite3.Error as exc:
            raise Unavailable(f"the event store {self.path} cannot be opened: {exc}") from exc
        self._watches.append(watch)
        return watch

    async def change(
        self,
        do: Callable[[sqlite3.Connection], T],
        rows: int = 0,
        backlog: Backlog | None = None,
        size: int = 0,
        *,
        erases: bool = False,
    ) -> T:
        """Have the writer do something that changes so many rows; return when it is durable.

        Where there is a backlog, the change waits in it with a size. Overloaded when it is full. `erases`: what it
        overwrites is to be gone from the write-ahead log as well, at once or as soon as nobody reads it any more.
        """
        self._check_open()
        if not self.writes:
            raise Unavailable("the event store was opened to be read only")
        if backlog is not None:
            backlog.enter(size)
        job = _Job(do, Future(), rows, erases)
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
            for watch in self._watches:
                watch.close()
            await asyncio.to_thread(self._stop)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Of the processes that share the file one writes at a time, and those that wait are woken when it is done.

        SQLite itself would have them look again and again, with longer and longer pauses, and meet the others by luck.
        """
        if not self.shared:
            yield
            return
        with self.path.with_name(f"{self.path.name}.turn").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield  # and closing the file gives the turn back, as the end of a process does

    def _stop(self) -> None:
        self._waiting.put(None)
        self._writer.join()
        self._readers.shutdown(wait=True)
        # The last connection that is closed moves the write-ahead log into the file, which is then whole on its own.
        for connection in (*self._reading, self.connection):
            connection.close()
        if not self.writes:
            sqlite_reading.tidy(self.path)
        if self._lock is not None:
            self._lock.close()

    async def _on_reader(self, do: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()

        def doing() -> T:
            try:
                connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = self._connect(self.path)
                    self._reading.append(connection)
                return do(connection)
            except sqlite3.Error as exc:
                raise Unavailable(f"the event store cannot be read: {exc}") from exc

        return await asyncio.get_running_loop().run_in_executor(self._readers, doing)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the event store is closing")

    def _work(self) -> None:
        while (first := self._next()) is not None:
            try:
                with self.turn():
                    jobs, closing = self._take_waiting(first)
                    results = self._committed(jobs)
            except OSError as exc:  # no turn to be had
                log.error("changes_not_written", jobs=1, error=str(exc))
                jobs, closing, results = [first], False, [Unavailable(f"the event store cannot write: {exc}")]
            if any(job.erases for job in jobs):
                self._erase()
            for job, result in zip(jobs, results, strict=True):
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)
            if closing:
                return

    def _next(self) -> _Job[Any] | None:
        """The next job, or none at the end. What is still to be erased is tried now and then, however busy it is."""
        while self._erasing:
            left_s = self._erase_again_s - time.monotonic()
            if left_s <= 0:
                self._erase()
                continue
            with suppress(queue.Empty):
                return self._waiting.get(timeout=left_s)
        return self._waiting.get()

    def _erase(self) -> None:
        """Empty the write-ahead log, now or later: a backup or an export may be reading it."""
        before, self._erasing = self._erasing, not self._erased()
        self._erase_again_s = time.monotonic() + ERASE_EVERY_S
        if self._erasing and not before:
            log.warning("erasing_postponed", path=str(self.path))
        elif before and not self._erasing:
            log.info("erased", path=str(self.path))

    def _erased(self) -> bool:
        """Whether the write-ahead log could be emptied."""
        try:
            with self.turn():
                return sqlite_log.checkpoint(self.path)
        except OSError:  # no turn to be had
            return False

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

    def _committed(self, jobs: list[_Job[Any]]) -> list[object]:
        """Do the jobs in one transaction; what came of each, which may be an exception.

        What fails for its own reasons fails alone, and takes nothing along.
        """
        results: list[object] = []
        try:
            with _transaction(self.connection, "BEGIN IMMEDIATE"):
                for job in jobs:
                    self.connection.execute("SAVEPOINT job")
                    try:
                        results.append(job.do(self.connection))
                    except sqlite3.Error:
                        raise
                    except UnicodeEncodeError as exc:
                        self.connection.execute("ROLLBACK TO job")
                        results.append(Unavailable(f"the event store cannot write: {exc}"))
                    except Exception as exc:
                        if not isinstance(exc, LongtideError):
                            log.exception("change_failed_oddly")
                        self.connection.execute("ROLLBACK TO job")
                        results.append(exc)
                    self.connection.execute("RELEASE job")
        except sqlite3.Error as exc:
            log.error("changes_not_written", jobs=len(jobs), error=str(exc))
            return [Unavailable(f"the event store cannot write: {exc}")] * len(jobs)
        except Exception as exc:
            log.exception("changes_not_written", jobs=len(jobs))
            return [exc] * len(jobs)
        return results


def hold(path: Path) -> BinaryIO:
    """Hold the file for this process, and those that inherit the hold, until all of them have closed it or ended.

    What others wrote would not be felt by the states that are kept here. InvalidInput when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock.close()
        raise InvalidInput.of("store", f"{path} is in use by another process") from exc
    return lock


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
