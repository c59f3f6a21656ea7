"""Events in one SQLite file: embedded, durable, nothing to install.

One thread writes. It takes everything that is waiting into one transaction, so that many callers share one fsync
(group commit); WAL lets readers go on meanwhile.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from longtide_server.errors import Overloaded, Unavailable
from longtide_server.event_store import Written
from longtide_server.events import Event

MAX_WAITING_EVENTS = 200_000
MAX_EVENTS_PER_COMMIT = 50_000
READERS = 2
BUSY_TIMEOUT_S = 5.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  position INTEGER PRIMARY KEY,   -- order of arrival
  event_id TEXT NOT NULL UNIQUE,
  user_id TEXT NOT NULL,
  item_id TEXT NOT NULL,
  type INTEGER NOT NULL,
  custom_type TEXT NOT NULL,
  time_s REAL NOT NULL,
  value REAL,
  session_id TEXT NOT NULL,
  attribution_token TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_user ON events (user_id, time_s, position);
"""
COLUMNS = "event_id, user_id, item_id, type, custom_type, time_s, value, session_id, attribution_token"
INSERT = f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING"
HISTORY = f"SELECT {COLUMNS} FROM events WHERE user_id = ? ORDER BY time_s, position"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Batch:
    events: Sequence[Event]
    written: Future[Written]


class SqliteEventStore:
    """An EventStore in the file `path`, which is made when it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._waiting_events = 0
        self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(path)
            self._connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as exc:
            raise Unavailable(f"the event store {path} cannot be opened: {exc}") from exc
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="event-store-read")
        self._writer = threading.Thread(target=self._write_batches, name="event-store-write", daemon=True)
        self._writer.start()

    async def write(self, events: Sequence[Event]) -> Written:
        """See EventStore."""
        if self._closed:
            raise Unavailable("the event store is closing")
        if self._waiting_events + len(events) > MAX_WAITING_EVENTS:
            raise Overloaded(f"{self._waiting_events} events are waiting to be written")
        batch = _Batch(events, Future())
        self._waiting_events += len(events)
        self._waiting.put(batch)
        written = asyncio.wrap_future(batch.written)
        written.add_done_callback(lambda _: self._forget(len(events)))
        # Shielded: a caller that gives up must not undo a commit that is under way for others.
        return await asyncio.shield(written)

    def _forget(self, count: int) -> None:
        self._waiting_events -= count

    async def history(self, user_id: str) -> list[Event]:
        """See EventStore."""
        if self._closed:
            raise Unavailable("the event store is closing")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read_history, user_id)

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

    def _read_history(self, user_id: str) -> list[Event]:
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = _connect(self._path)
            rows = connection.execute(HISTORY, (user_id,)).fetchall()
        except sqlite3.Error as exc:
            raise Unavailable(f"the event store cannot be read: {exc}") from exc
        return [_event(row) for row in rows]

    def _write_batches(self) -> None:
        while (first := self._waiting.get()) is not None:
            batches, closing = self._take_waiting(first)
            self._commit(batches)
            if closing:
                return

    def _take_waiting(self, first: _Batch) -> tuple[list[_Batch], bool]:
        """Everything that waits right now, bounded; and whether the store is to close after it."""
        batches, count = [first], len(first.events)
        while count < MAX_EVENTS_PER_COMMIT:
            try:
                batch = self._waiting.get_nowait()
            except queue.Empty:
                break
            if batch is None:
                return batches, True
            batches.append(batch)
            count += len(batch.events)
        return batches, False

    def _commit(self, batches: list[_Batch]) -> None:
        results = []
        try:
            with self._connection:
                for batch in batches:
                    new = self._connection.executemany(INSERT, map(_row, batch.events)).rowcount
                    results.append(Written(new, len(batch.events) - new))
        except (sqlite3.Error, UnicodeEncodeError) as exc:
            log.error("events_not_written", batches=len(batches), error=str(exc))
            for batch in batches:
                batch.written.set_exception(Unavailable(f"the event store cannot write: {exc}"))
            return
        for batch, written in zip(batches, results, strict=True):
            batch.written.set_result(written)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # an acknowledged event survives a power cut
    return connection


def _row(event: Event) -> tuple[str, str, str, int, str, float, float | None, str, str]:
    return (
        event.event_id,
        event.user_id,
        event.item_id,
        int(event.type),
        event.custom_type,
        event.time_s,
        event.value,
        event.session_id,
        event.attribution_token,
    )


def _event(row: tuple[str, str, str, int, str, float, float | None, str, str]) -> Event:
    event_id, user_id, item_id, kind, custom_type, time_s, value, session_id, token = row
    return Event(event_id, user_id, item_id, kind, time_s, value, custom_type, session_id, token)
