"""The event log as tables of SQLite: every statement, as functions on a connection, each inside a transaction.

An owner is a row, and its events point to it. The order of arrival is the order of the table's row ids, of which a
merged history keeps its own.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from longtide_server.attribution import Shown
from longtide_server.errors import Conflict, InvalidInput
from longtide_server.event_store import Appended, Deleted, History, Known, Merged, Place, Version, Written
from longtide_server.event_store.rows import COLUMNS, from_row, from_rows, to_row
from longtide_server.events import Event

FORMAT = 2
BUSY_TIMEOUT_S = 5.0
CHECKPOINT_WAIT_S = 0.05
FLUSHES_KNOWN = 10_000  # an hour's of a dozen workers

SCHEMA = """
CREATE TABLE IF NOT EXISTS owners (
  number INTEGER PRIMARY KEY,
  owner TEXT NOT NULL UNIQUE,
  rewrites INTEGER NOT NULL DEFAULT 0,
  position INTEGER NOT NULL DEFAULT 0,    -- of the last event
  merged_into INTEGER,                    -- another owner, who has all the events
  deleted_s REAL NOT NULL DEFAULT -1      -- events that happened until then are not taken
);
CREATE INDEX IF NOT EXISTS owners_by_merge ON owners (merged_into) WHERE merged_into IS NOT NULL;
CREATE TABLE IF NOT EXISTS events (
  position INTEGER PRIMARY KEY,           -- order of arrival
  owner INTEGER NOT NULL,
  event_id TEXT NOT NULL,
  item_id TEXT NOT NULL,
  type INTEGER NOT NULL,
  custom_type TEXT NOT NULL,
  time_s REAL NOT NULL,
  value REAL,
  session_id TEXT NOT NULL,
  attribution_token TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS shown (        -- how many items were recommended
  day TEXT NOT NULL,
  snapshot_id TEXT NOT NULL,
  surface TEXT NOT NULL,
  source INTEGER NOT NULL,
  items INTEGER NOT NULL,
  PRIMARY KEY (day, snapshot_id, surface, source)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS flushed (      -- what was added to these counts last
  number INTEGER PRIMARY KEY,
  flush_id TEXT NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS rewritten (    -- one row: how many histories were rewritten so far, of all owners
  total INTEGER NOT NULL
);
INSERT INTO rewritten SELECT 0 WHERE NOT EXISTS (SELECT * FROM rewritten);
CREATE TABLE IF NOT EXISTS identity (     -- one row: what tells this log from any other
  id TEXT NOT NULL
);
INSERT INTO identity SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT * FROM identity);
CREATE UNIQUE INDEX IF NOT EXISTS events_once ON events (owner, event_id);
CREATE INDEX IF NOT EXISTS events_by_owner ON events (owner, position, time_s);
"""
FIELDS = ", ".join(COLUMNS)
INSERT = (
    f"INSERT INTO events (owner, {FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner, event_id) DO NOTHING"
)
STAMP = "SELECT (SELECT coalesce(max(position), 0) FROM events), (SELECT total FROM rewritten)"
"""The last event's position and how many histories were rewritten: whether a history has changed."""
OWNER = (
    "number, owner, rewrites, position, merged_into, deleted_s, "
    "coalesce((SELECT event_id FROM events WHERE events.position = owners.position), '')"
)


@dataclass(frozen=True, slots=True)
class Owner:
    """A row of the table of owners."""

    number: int
    owner: str
    rewrites: int
    position: int
    merged_into: int | None
    deleted_s: float
    last: str
    """The id of the last event."""

    @property
    def version(self) -> Version:
        """Of the owner's history. SQLite loses nothing, but a file may be put back from a backup."""
        return Version(self.rewrites, self.position, self.last)


def connect(path: Path) -> sqlite3.Connection:
    """A connection without transactions of its own."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # an acknowledged event survives a power cut
    connection.execute("PRAGMA secure_delete = ON")  # a deleted event is overwritten, not only forgotten
    return connection


def checkpoint(path: Path) -> bool:
    """Move the whole write-ahead log into the file and empty it, unless somebody reads long; whether it is done.

    Others can read meanwhile, and not write.
    """
    try:
        with closing(sqlite3.connect(path, timeout=CHECKPOINT_WAIT_S)) as connection:
            [busy, _, _] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
    except sqlite3.Error:
        return False


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables where there are none. InvalidInput when the file is of another format."""
    if not _empty(connection):
        check(connection, path)
    connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")


def check(connection: sqlite3.Connection, path: Path) -> None:
    """InvalidInput when the file is no store, or one of another format."""
    if _empty(connection):
        raise InvalidInput.of("store", f"{path} is empty, and no event store")
    [found] = connection.execute("PRAGMA user_version").fetchone()
    if found != FORMAT:
        raise InvalidInput(f"the event store {path} is of format {found}; this release reads format {FORMAT}")


def touch(connection: sqlite3.Connection) -> None:
    """Write a page as it is."""
    connection.execute(f"PRAGMA user_version = {FORMAT}")


def look(connection: sqlite3.Connection) -> None:
    """Read a page of the events."""
    connection.execute("SELECT 1 FROM events LIMIT 1").fetchone()


def identity(connection: sqlite3.Connection) -> str:
    """See EventStore.identity."""
    [found] = connection.execute("SELECT id FROM identity").fetchone()
    return str(found)


def append(connection: sqlite3.Connection, events: Sequence[Event]) -> Written:
    """Insert what is new."""
    owners: dict[str, tuple[Owner, float]] = {}
    taken: list[tuple[Owner, Event]] = []
    for event in events:
        key = event.owner
        found = owners.get(key)
        if found is None:
            found = owners[key] = _writable(connection, key)
        owner, deleted_s = found
        if event.time_s > deleted_s:
            taken.append((owner, event))
    [last] = connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
    new = connection.executemany(INSERT, ((owner.number, *to_row(event)) for owner, event in taken)).rowcount
    if new < len(taken):
        taken = _those_inserted(connection, last, taken)
    return Written(len(taken), len(events) - len(taken), _advance(connection, taken, last))


def read_history(connection: sqlite3.Connection, key: str, known: Known | None) -> History:
    """See EventStore.history."""
    owner = _find(connection, key)
    if owner is None:
        return History(key, Version(), ())
    whole = known is None or known.owner != owner.owner or known.version.rewrites != owner.rewrites
    after = 0 if whole or known is None else known.version.position
    rows = connection.execute(
        f"SELECT {FIELDS} FROM events WHERE owner = ? AND position > ? ORDER BY position", (owner.number, after)
    )
    events = from_rows(owner.owner, rows)
    if whole:
        events.sort(key=lambda event: event.time_s)
    names = frozenset(_names(connection, owner)) if whole else frozenset()
    return History(owner.owner, owner.version, events, whole, names)


def read_page(connection: sqlite3.Connection, key: str, size: int, before: Place | None) -> list[tuple[Place, Event]]:
    """See EventStore.page. Only the index is read of what is not on the page."""
    owner = _find(connection, key)
    if owner is None:
        return []
    places = map(
        Place._make, connection.execute("SELECT time_s, position FROM events WHERE owner = ?", (owner.number,))
    )
    newest = heapq.nlargest(size, (place for place in places if before is None or place < before))
    row_of = f"SELECT {FIELDS} FROM events WHERE position = ?"
    return [
        (place, from_row(owner.owner, connection.execute(row_of, (place.position,)).fetchone())) for place in newest
    ]


def read_piece(connection: sqlite3.Connection, after: int, size: int) -> tuple[int, list[tuple[str, Event]]]:
    """The events that follow a position, with their owners, and the position of the last."""
    rows = connection.execute(
        f"SELECT events.position, owner_row.owner, {FIELDS} FROM events "
        "JOIN owners AS owner_row ON owner_row.number = events.owner "
        "WHERE events.position > ? ORDER BY events.position LIMIT ?",
        (after, size),
    ).fetchall()
    return (rows[-1][0] if rows else after), [(row[1], from_row(row[1], row[2:])) for row in rows]


def merge(connection: sqlite3.Connection, source_key: str, target_key: str) -> Merged:
    """See EventStore.merge."""
    target = _find_or_make(connection, target_key)
    source = _exactly(connection, source_key) or _find_or_make(connection, source_key)
    names = frozenset((source_key, target_key, target.owner, *_names(connection, source)))
    if source.merged_into == target.number:
        return Merged(0, names)
    if source.merged_into is not None:
        raise Conflict("the source was merged into another user before")
    if source.number == target.number:
        raise Conflict("a user cannot be merged into the one who was merged into them")
    kept_out = "DELETE FROM events WHERE owner = ? AND time_s <= ?"
    connection.execute(kept_out, (source.number, target.deleted_s))
    move = "UPDATE OR IGNORE events SET owner = ? WHERE owner = ?"
    moved = connection.execute(move, (target.number, source.number)).rowcount
    connection.execute("DELETE FROM events WHERE owner = ?", (source.number,))
    _rewritten(connection, [source.number, target.number])
    connection.execute(
        "UPDATE owners SET merged_into = ? WHERE number = ? OR merged_into = ?",
        (target.number, source.number, source.number),
    )
    return Merged(moved, names)


def delete(connection: sqlite3.Connection, key: str, now_s: float) -> Deleted:
    """See EventStore.delete."""
    owner = _find_or_make(connection, key)
    names = frozenset((key, owner.owner, *_names(connection, owner)))
    [last_s] = connection.execute("SELECT max(time_s) FROM events WHERE owner = ?", (owner.number,)).fetchone()
    until_s = max(owner.deleted_s, now_s, last_s or 0.0)
    deleted = connection.execute("DELETE FROM events WHERE owner = ?", (owner.number,)).rowcount
    _rewritten(connection, [owner.number])
    connection.execute(
        "UPDATE owners SET deleted_s = max(deleted_s, ?), merged_into = NULL WHERE number = ? OR merged_into = ?",
        (until_s, owner.number, owner.number),
    )
    return Deleted(deleted, until_s, names)


def expire(
    connection: sqlite3.Connection, kept_from_s: Mapping[int, float], after: int, size: int
) -> tuple[int, Mapping[str, int]]:
    """Expire among the next events after a position; the position of the last of them, and how many went, by owner.

    The position is `after` when there are no more.
    """
    span = "SELECT position FROM events WHERE position > ? ORDER BY position LIMIT ?"
    [last] = connection.execute(f"SELECT coalesce(max(position), ?) FROM ({span})", (after, after, size)).fetchone()
    gone: dict[int, int] = {}
    for kind, from_s in kept_from_s.items():
        rows = connection.execute(
            "DELETE FROM events WHERE position > ? AND position <= ? AND type = ? AND time_s < ? RETURNING owner",
            (after, last, kind, from_s),
        )
        for (number,) in rows:
            gone[number] = gone.get(number, 0) + 1
    _rewritten(connection, gone)
    named = "SELECT owner FROM owners WHERE number = ?"
    return last, {connection.execute(named, (number,)).fetchone()[0]: count for number, count in gone.items()}


def add_shown(connection: sqlite3.Connection, counts: Mapping[Shown, int], flush_id: str) -> None:
    """See EventStore.add_shown."""
    noted = "INSERT INTO flushed (flush_id) VALUES (?) ON CONFLICT DO NOTHING"
    if not connection.execute(noted, (flush_id,)).rowcount:
        return
    forget = "DELETE FROM flushed WHERE number <= (SELECT max(number) FROM flushed) - ?"
    connection.execute(forget, (FLUSHES_KNOWN,))
    connection.executemany(
        "INSERT INTO shown VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET items = items + excluded.items",
        [(*key, count) for key, count in counts.items()],
    )


def read_shown(connection: sqlite3.Connection) -> dict[Shown, int]:
    """See EventStore.shown."""
    return {Shown(*row[:4]): row[4] for row in connection.execute("SELECT * FROM shown")}


def _empty(connection: sqlite3.Connection) -> bool:
    [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not tables


def _exactly(connection: sqlite3.Connection, key: str) -> Owner | None:
    row = connection.execute(f"SELECT {OWNER} FROM owners WHERE owner = ?", (key,)).fetchone()
    return None if row is None else Owner(*row)


def _find(connection: sqlite3.Connection, key: str) -> Owner | None:
    """The owner of that name, or the one it was merged into."""
    owner = _exactly(connection, key)
    if owner is None or owner.merged_into is None:
        return owner
    return Owner(*connection.execute(f"SELECT {OWNER} FROM owners WHERE number = ?", (owner.merged_into,)).fetchone())


def _find_or_make(connection: sqlite3.Connection, key: str) -> Owner:
    owner = _find(connection, key)
    if owner is not None:
        return owner
    number = connection.execute("INSERT INTO owners (owner) VALUES (?)", (key,)).lastrowid
    assert number is not None
    return Owner(number, key, 0, 0, None, -1.0, "")


def _writable(connection: sqlite3.Connection, key: str) -> tuple[Owner, float]:
    """Who gets the events of that name, and until when they are not taken: also what was deleted before a merge."""
    named = _exactly(connection, key)
    owner = _find_or_make(connection, key)
    return owner, owner.deleted_s if named is None else max(named.deleted_s, owner.deleted_s)


def _names(connection: sqlite3.Connection, owner: Owner) -> list[str]:
    """The names that were merged into an owner."""
    rows = connection.execute("SELECT owner FROM owners WHERE merged_into = ?", (owner.number,))
    return [name for (name,) in rows]


def _rewritten(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Histories that are not what they were, longer by more than what was appended."""
    rewritten = connection.executemany(
        "UPDATE owners SET rewrites = rewrites + 1, position = "
        "(SELECT coalesce(max(position), 0) FROM events WHERE events.owner = owners.number) WHERE number = ?",
        [(number,) for number in numbers],
    )
    connection.execute("UPDATE rewritten SET total = total + ?", (max(rewritten.rowcount, 0),))


def _those_inserted(
    connection: sqlite3.Connection, after: int, events: Sequence[tuple[Owner, Event]]
) -> list[tuple[Owner, Event]]:
    """Which of the events are in the rows after a position; of several with one id it is the first."""
    inserted = set(connection.execute("SELECT owner, event_id FROM events WHERE position > ?", (after,)))
    found = []
    for owner, event in events:
        key = (owner.number, event.event_id)
        if key in inserted:
            inserted.remove(key)
            found.append((owner, event))
    return found


def _advance(connection: sqlite3.Connection, events: Sequence[tuple[Owner, Event]], after: int) -> dict[str, Appended]:
    """Move the histories on to the events that took the positions after one; what each history got."""
    added: dict[Owner, list[Event]] = {}
    last: dict[Owner, int] = {}
    for position, (owner, event) in enumerate(events, after + 1):
        added.setdefault(owner, []).append(event)
        last[owner] = position
    moved = [(position, owner.number) for owner, position in last.items()]
    connection.executemany("UPDATE owners SET position = ? WHERE number = ?", moved)
    return {
        owner.owner: Appended(owner.version, Version(owner.rewrites, last[owner], found[-1].event_id), found)
        for owner, found in added.items()
    }
