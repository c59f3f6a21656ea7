"""Opens a file of SQLite for those who only read it: what it holds stays as it is, and nothing stays beside it."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from longtide_server.event_store import sqlite_log

NO_ROOM_BESIDE = (sqlite3.SQLITE_READONLY_DIRECTORY, sqlite3.SQLITE_CANTOPEN)


def connect(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. InvalidInput when the file is no store of this format."""
    try:
        return _checked(path, "mode=ro")
    except sqlite3.OperationalError as exc:
        # For its index of the write-ahead log SQLite makes a file beside this one, be the log empty. Where it cannot,
        # the folder is read-only, and without such a log nobody writes: the file is all there is.
        if exc.sqlite_errorcode not in NO_ROOM_BESIDE or _write_ahead_log(path).exists():
            raise
        return _checked(path, "mode=ro&immutable=1")


def tidy(path: Path) -> None:
    """Once the file is read: make it whole on its own again, unless somebody has it open or it may not be written to.

    SQLite does so when the last connection is closed, if it may write. A server that stops while its file is read does
    not close the last one.
    """
    with suppress(sqlite3.Error):
        if _write_ahead_log(path).exists():
            writing = sqlite3.connect(_uri(path, "mode=rw"), uri=True, timeout=sqlite_log.CHECKPOINT_WAIT_S)
            with closing(writing) as connection:
                connection.execute("PRAGMA user_version").fetchone()


def _checked(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        _uri(path, how), uri=True, timeout=sqlite_log.BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
    )
    try:
        sqlite_log.check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _uri(path: Path, how: str) -> str:
    return f"{path.resolve().as_uri()}?{how}"


def _write_ahead_log(path: Path) -> Path:
    file = path.resolve()  # SQLite too looks beside the file, not beside a link to it
    return file.with_name(f"{file.name}-wal")
