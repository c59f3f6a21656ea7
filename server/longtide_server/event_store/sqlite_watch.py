"""Says at once whether what is kept in a SQLite file may have changed, whichever process changed it."""

from __future__ import annotations

import sqlite3


class Watch:
    """Watches what one statement reads. Not for several threads at once."""

    def __init__(self, connection: sqlite3.Connection, read: str) -> None:
        """A connection of its own, to be closed with this; `read` gives one row, which differs after every change."""
        self._connection = connection
        self._connection.execute("PRAGMA busy_timeout = 0")  # whoever asks has no time to wait, and another way to know
        self._read = read
        self._version: int | None = None
        self._stamp: object = None

    def stamp(self) -> object:
        """What is read now; none while the file does not answer, or this is closed."""
        try:
            # The connection's own count of the changes of others; nearly free. Not all of them are of what is watched.
            [version] = self._connection.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._stamp = self._connection.execute(self._read).fetchone()
                self._version = version
        except sqlite3.Error:
            return None
        return self._stamp

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
