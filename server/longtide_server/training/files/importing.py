"""Reads a log file of any length as events, and writes them into a store or a running server.

An event without an id of its own gets one that follows from what it says, so that a file that is imported twice, or
was cut off and is imported again, is written once; and rows that say the same are one event, as they are to training.
"""

from __future__ import annotations

import csv
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import numpy as np

import longtide
from longtide import AsyncClient, InvalidEventsError
from longtide_server.errors import InvalidInput
from longtide_server.event_store import EventStore
from longtide_server.events import Event, EventType, violation
from longtide_server.training.files.log import NEEDED, OPTIONAL, TimeFormat, read_cells
from longtide_server.training.files.tables.columns import BadRow, Faults, Table, id_text
from longtide_server.training.files.tables.reading import read_pieces

PIECE_ROWS = 20_000
TEXTS = ("event_id", "custom_type", "attribution_token")
REPORT_COLUMNS = ("row", "column", "reason")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a file."""

    events: Sequence[Event]
    rows: Sequence[int]
    """The row of each event."""
    bad: Sequence[BadRow]
    read_share: float
    """How much of the file has been read with it: 0 to 1."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the events of a piece."""

    written: int
    duplicates: int
    refused: Sequence[tuple[int, str, str]] = ()
    """Place in the piece, field and reason of events that were not taken."""


@dataclass(slots=True)
class Imported:
    """What became of a file so far."""

    written: int = 0
    duplicates: int = 0
    """Events that were there already, or are twice in the file."""
    bad: int = 0
    """Rows that could not be read, and events that were refused."""
    read_share: float = 0.0


async def import_log(
    path: Path,
    columns: Mapping[str, str],
    write: Callable[[Sequence[Event]], Awaitable[Outcome]],
    bad_rows: BadRowsFile,
    report: Callable[[Imported], None],
) -> Imported:
    """Write every good row, and the reasons of the others into a file; memory holds a piece at a time."""
    done = Imported()
    for piece in read_events(path, columns):
        outcome = await write(piece.events) if piece.events else Outcome(0, 0)
        refused = [BadRow(piece.rows[place], field, reason) for place, field, reason in outcome.refused]
        bad_rows.add([*piece.bad, *refused])
        done.written += outcome.written
        done.duplicates += outcome.duplicates
        done.bad += len(piece.bad) + len(refused)
        done.read_share = piece.read_share
        report(done)
    return done


def read_events(path: Path, columns: Mapping[str, str]) -> Iterator[Piece]:
    """The rows of a CSV, JSON-lines (both also zipped) or Parquet file as events.

    Beside the columns of `log.read_log` a file may have `event_id`, `custom_type` and `attribution_token`. How times
    are written is decided by the first rows. LogError where the file or its columns are wrong.
    """
    times: TimeFormat | None = None
    for table in read_pieces(path, NEEDED, (*OPTIONAL, *TEXTS), columns, PIECE_ROWS, option="--columns"):
        if len(table.rows) and times is None:
            times = TimeFormat.of(table.columns["timestamp"])
        yield _piece(table, times)


class BadRowsFile:
    """A CSV of row numbers, columns and reasons; there is no file where there are no bad rows.

    It takes the place of an earlier one at the end of the run: until then, and where the run fails before it has found
    a bad row, that stays as it was. A run that takes every row removes it, for it tells of another file.
    """

    def __init__(self, path: Path) -> None:
        """InvalidInput where a file of somebody else's is in the way, or nothing can be written."""
        if path.is_dir() or not path.parent.is_dir():
            raise InvalidInput.of("--bad-rows", f"{path} is not a file in a folder that exists")
        self._replaces = path.exists()
        if self._replaces and not _is_report(path):
            raise InvalidInput.of("--bad-rows", f"{path} is there, and is no report of an import; name another file")
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._file: TextIO | None = None

    def add(self, rows: Sequence[BadRow]) -> None:
        """Write down some rows."""
        if not rows:
            return
        if self._file is None:
            self._file = self._partial.open("w", encoding="utf-8", newline="", errors="backslashreplace")
            csv.writer(self._file).writerow(REPORT_COLUMNS)
        csv.writer(self._file).writerows((bad.row, bad.column, bad.reason) for bad in rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._partial.replace(self.path)
        elif exc_type is None and self._replaces:
            self.path.unlink(missing_ok=True)


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(100).rstrip() == ",".join(REPORT_COLUMNS).encode()


def _piece(table: Table, times: TimeFormat | None) -> Piece:
    if len(table.rows) == 0:
        return Piece((), (), tuple(table.lost), table.read_share)
    now_s = time.time()
    faults = Faults(table, max_details=len(table.rows) + len(table.lost))
    cells = read_cells(table, faults, now_s, times)
    keep, bad = faults.found()
    good = np.flatnonzero(keep)
    texts = {name: _texts(table, name) for name in ("user_id", "session_id", *TEXTS)}
    events, rows, wrong = [], [], list(bad.details)
    columns = (cells.item, cells.event_type, cells.time_s, cells.value, table.rows)
    parts = zip(good.tolist(), *(column[good].tolist() for column in columns), strict=True)
    for place, item, kind, time_s, value, row in parts:
        event = Event(
            event_id=texts["event_id"][place],
            user_id=texts["user_id"][place],
            item_id=cells.item_ids[item],
            type=kind,
            time_s=time_s,
            value=None if math.isnan(value) else value,
            custom_type=texts["custom_type"][place],
            session_id=texts["session_id"][place],
            attribution_token=texts["attribution_token"][place],
        )
        event = event if event.event_id else event._replace(event_id=_derived_id(event))
        fault = violation(event, now_s)
        if fault is None:
            events.append(event)
            rows.append(row)
        else:
            wrong.append(BadRow(row, fault.field, fault.reason))
    return Piece(events, rows, sorted(wrong, key=lambda one: one.row), table.read_share)


def _texts(table: Table, name: str) -> list[str]:
    """(N,) what each row holds as text; empty where it holds nothing."""
    column = table.columns.get(name)
    if column is None:
        return [""] * len(table.rows)
    texts = ["" if value != value else id_text(value) for value in column.values]
    return [texts[code] for code in column.codes.tolist()]


def _derived_id(event: Event) -> str:
    said = (event.user_id, event.session_id, event.item_id, event.type, event.custom_type, event.time_s, event.value)
    return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def into_store(store: EventStore) -> Callable[[Sequence[Event]], Awaitable[Outcome]]:
    """Writes pieces straight into a store."""

    async def write(events: Sequence[Event]) -> Outcome:
        written = await store.write(events)
        return Outcome(written.new, written.duplicates)

    return write


def into_server(client: AsyncClient) -> Callable[[Sequence[Event]], Awaitable[Outcome]]:
    """Writes pieces through a running server, which may refuse some of them, and may be restarted meanwhile."""

    async def write(events: Sequence[Event]) -> Outcome:
        try:
            result = await client.stream_events(map(_sent, events))
        except InvalidEventsError as exc:
            written = exc.result.written_count
            errors: Sequence[longtide.EventError] = exc.errors
            if len(errors) < exc.result.refused_count:  # a stream keeps the first reasons only
                written, errors = await _refusals(client, events, written)
            refused = [(error.index, error.field, error.reason) for error in errors]
            return Outcome(written, len(events) - written - len(refused), refused)
        return Outcome(result.written_count, result.duplicate_count)

    return write


async def _refusals(
    client: AsyncClient, events: Sequence[Event], written: int
) -> tuple[int, Sequence[longtide.EventError]]:
    """Every reason for which events are refused, and how many were written then and before."""
    try:
        result = await client.write_events(map(_sent, events))
    except InvalidEventsError as exc:
        return written + exc.result.written_count, exc.errors
    return written + result.written_count, ()


def _sent(event: Event) -> longtide.Event:
    return longtide.Event(
        event.user_id,
        event.item_id,
        EventType(event.type).name.lower(),
        time=event.time_s,
        value=event.value,
        event_id=event.event_id,
        session_id=event.session_id,
        custom_type=event.custom_type,
        attribution_token=event.attribution_token,
    )
