"""Reads a behaviour log, one row an event, into columns of numbers; the rules are those of `events.violation`.

Columns: `user_id`, `item_id` and `timestamp`; optionally `event_type`, `value`, `rating` and `session_id`. Rows stay in
the file's order, which is the order of events with equal times.

- `user_id` may be empty in a row that has a `session_id`: the row is of that anonymous session, and of no user.

- `timestamp`: a number, or ISO 8601 text (UTC unless it names an offset), or a Parquet time or date; every row as the
  first readable one is. Numbers are seconds since 1970, unless the column's upper median is above 1e11 (then they are
  milliseconds), 1e14 (microseconds) or 1e17 (nanoseconds): the median, so that one absurd time is one bad row.
- `event_type`: a name of EVENT_TYPE_NAMES or an alias, in any case. Without the column every event is a view, or with
  a `rating` column a rating.
- `value` belongs to every event but a rating, whose value is `rating` where the file has that column. Empty is absent.
- Rows equal in user, item, type, time and value are one event, as they are to the event store.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtide_server.events import (
    EVENT_TYPE_NAMES,
    MAX_AHEAD_S,
    MAX_VALUE,
    NO_VALUE,
    EventType,
    owner_key,
    values_as_read,
)
from longtide_server.training.files.tables.columns import (
    BadRows,
    Column,
    Faults,
    Scalar,
    Table,
    read_ids,
    shown,
)
from longtide_server.training.files.tables.reading import read_table

NEEDED = ("user_id", "item_id", "timestamp")
OPTIONAL = ("event_type", "value", "rating", "session_id")
_UNITS_ABOVE = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""(a number above this is of a unit, that many of which are a second)"""
_FIRST_REAL_TIME_S = 631_152_000.0
"""1990: no log of behaviour is older, so a smaller number is a counter and not a date."""
_FIRST_DAY, _LAST_DAY = 19_900_101, 20_991_231
_LAST_TIME_S = 253_402_300_799.0
"""The end of the year 9999, the last that a Timestamp of the contract can say."""

_ALIASES = {
    EventType.VIEW: "views viewed pageview page_view product_view detail_view detail visit pv",
    EventType.CLICK: "clicks clicked tap select",
    EventType.ADD_TO_CART: "cart addtocart add_cart added_to_cart basket add_to_basket",
    EventType.PURCHASE: "purchases purchased buy buys bought order ordered transaction sale",
    EventType.WATCH: "watched play played stream",
    EventType.LIKE: "liked likes fav favorite favourite thumbs_up upvote",
    EventType.DISLIKE: "disliked dislikes thumbs_down downvote",
    EventType.SHARE: "shared shares",
    EventType.COMMENT: "commented comments",
    EventType.RATE: "rated rating ratings",
}
EVENT_TYPES_BY_NAME = EVENT_TYPE_NAMES | {name: kind for kind, names in _ALIASES.items() for name in names.split()}


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """N events, in the file's order."""

    owners: tuple[str, ...]
    """Distinct, in order of first appearance: users, and anonymous sessions (`events.owner_key`)."""
    item_ids: tuple[str, ...]
    """Distinct, in order of first appearance."""
    user: NDArray[np.int32]
    """(N,) index into owners."""
    item: NDArray[np.int32]
    """(N,) index into item_ids."""
    time_s: NDArray[np.float64]
    """(N,) seconds since 1970, UTC."""
    event_type: NDArray[np.uint8]
    """(N,) EventType numbers."""
    value: NDArray[np.float32]
    """(N,) NaN where there is none."""
    repeated_rows: int
    """Rows left out because they repeat an event."""

    def __len__(self) -> int:
        return len(self.user)


def read_log(path: Path, columns: Mapping[str, str] = {}, *, skip_bad_rows: bool = False) -> tuple[Log, BadRows]:
    """The log in a CSV, JSON-lines (both also zipped) or Parquet file, and the rows that were skipped.

    `columns` maps our names to the file's where they differ. The first bad row is a LogError, unless `skip_bad_rows`;
    then only a file without a good row is.
    """
    table = read_table(path, NEEDED, OPTIONAL, columns, option="--columns")
    faults = Faults(table)
    cells = read_cells(table, faults, time.time())
    keep, bad_rows = faults.settle(skip_bad_rows=skip_bad_rows)
    return log_of(cells, np.flatnonzero(keep)), bad_rows


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """N rows of a log as they were read, the bad ones among them."""

    owners: list[str]
    """Users, and anonymous sessions (`events.owner_key`)."""
    owner: NDArray[np.int32]
    """(N,) index into owners."""
    item_ids: list[str]
    item: NDArray[np.int32]
    """(N,) index into item_ids."""
    time_s: NDArray[np.float64]
    event_type: NDArray[np.uint8]
    value: NDArray[np.float64]
    """NaN where there is none."""


def read_cells(table: Table, faults: Faults, now_s: float, times: TimeFormat | None = None) -> Cells:
    """What the rows of a table say; what is wrong with them goes to `faults`."""
    owners, owner = _owners(table, faults)
    item_ids, item = read_ids(table.columns["item_id"], faults)
    time_s = _times(table.columns["timestamp"], faults, now_s, times)
    event_type = _event_types(table, faults)
    return Cells(owners, owner, item_ids, item, time_s, event_type, _event_values(table, event_type, faults))


def log_of(cells: Cells, good: NDArray[np.int64]) -> Log:
    """The log of the rows that are good, each event once."""
    value = values_as_read(cells.value)
    first = _first_of_each(cells.owner[good], cells.item[good], cells.time_s[good], cells.event_type[good], value[good])
    kept = good[first]
    owners, user = _in_order_of_appearance(cells.owners, cells.owner[kept])
    items, item = _in_order_of_appearance(cells.item_ids, cells.item[kept])
    return Log(
        owners=owners,
        item_ids=items,
        user=user,
        item=item,
        time_s=cells.time_s[kept],
        event_type=cells.event_type[kept],
        value=value[kept],
        repeated_rows=len(good) - len(kept),
    )


def _owners(table: Table, faults: Faults) -> tuple[list[str], NDArray[np.int32]]:
    """Whose each row (N,) is: the user, or where none is named the session."""
    users, sessions = table.columns["user_id"], table.columns.get("session_id")
    anonymous = np.zeros(len(users.codes), dtype=np.bool_)
    if sessions is not None:
        no_user = np.array([_absent(value) for value in users.values], dtype=np.bool_)
        a_session = np.array([not _absent(value) for value in sessions.values], dtype=np.bool_)
        anonymous = no_user[users.codes] & a_session[sessions.codes]
    user_ids, user = read_ids(_only(users, ~anonymous), faults)
    owners = [owner_key(user_id, "") for user_id in user_ids]
    if sessions is None:
        return owners, user
    session_ids, session = read_ids(_only(sessions, anonymous), faults)
    owners += [owner_key("", session_id) for session_id in session_ids]
    return owners, np.where(anonymous, len(user_ids) + session, user).astype(np.int32)


def _only(column: Column, rows: NDArray[np.bool_]) -> Column:
    """The column in some rows (N,), and something that is an id in the others."""
    values = [*column.values, "-"]
    return Column(column.name, values, np.where(rows, column.codes, len(column.values)).astype(np.int32))


def _absent(value: Scalar | None) -> bool:
    return value is None or value == "" or value != value


def read_request_times(path: Path) -> dict[str, float]:
    """When users will ask, seconds since 1970: the columns `user_id` and `timestamp` of a file that `read_log` reads.

    The times may lie ahead. LogError names the first bad row; a user's last row counts.
    """
    table = read_table(path, ("user_id", "timestamp"), (), {})
    faults = Faults(table)
    user_ids, user = read_ids(table.columns["user_id"], faults)
    time_s = _times(table.columns["timestamp"], faults, _LAST_TIME_S, None)
    faults.settle(skip_bad_rows=False)
    return {user_ids[n]: at for n, at in zip(user.tolist(), time_s.tolist(), strict=True)}


def times_are_real(log: Log) -> bool:
    """Whether a log's times are times, so that gaps between them mean something, and not only an order.

    They are not if all are equal; if every user's are a counter (each event one second after the user's last); or if
    all are below 1990 and the whole log's are a counter (every whole number from the smallest to the largest occurs).
    """
    distinct = np.unique(log.time_s)
    if len(distinct) <= 1:
        return False
    if distinct[-1] < _FIRST_REAL_TIME_S and bool((np.diff(distinct) == 1.0).all()):
        return False
    order = np.lexsort((log.time_s, log.user))
    same_user = np.diff(log.user[order]) == 0
    gaps_s = np.diff(log.time_s[order])[same_user]
    return len(gaps_s) == 0 or bool((gaps_s != 1.0).any())


@dataclass(frozen=True, slots=True)
class TimeFormat:
    """How a column writes its times."""

    as_numbers: bool
    """Numbers, or else ISO 8601 text."""
    units_per_s: float = 1.0

    @classmethod
    def of(cls, column: Column) -> TimeFormat | None:
        """The format that the column's first readable time and its upper median say; none when no time is readable."""
        numbers, dates = _numbers_and_dates(column)
        # The values are in order of first appearance: the first that reads as either decides what all must be.
        readable = np.flatnonzero(~np.isnan(numbers) | ~np.isnan(dates))
        if len(readable) == 0:
            return None
        # Where every number is a date as well, it is meant: as seconds, 20260131 would be a day in August 1970.
        as_numbers = not np.isnan(numbers[readable[0]]) and bool(np.isnan(dates[~np.isnan(numbers)]).any())
        return cls(as_numbers, _units_per_second(numbers[column.codes]) if as_numbers else 1.0)


def _times(column: Column, faults: Faults, now_s: float, times: TimeFormat | None) -> NDArray[np.float64]:
    """(N,) seconds since 1970; a row's is NaN where it is bad."""
    numbers, dates = _numbers_and_dates(column)
    times = times or TimeFormat.of(column) or TimeFormat(as_numbers=False)
    time_s = numbers / times.units_per_s if times.as_numbers else dates
    expected = "a number, as the column's first time is" if times.as_numbers else "a time such as 2026-01-31T12:00:00Z"
    reasons = [_time_fault(v, s, expected, now_s) for v, s in zip(column.values, time_s.tolist(), strict=True)]
    faults.mark_values(column, reasons)
    return time_s[column.codes]


def _numbers_and_dates(column: Column) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each value as a number and as seconds since 1970 of a date; NaN where it is none. 20260131 is both."""
    numbers = [_number(value) for value in column.values]
    dates = [
        iso_time_s(value) if number != number else _day_s(number)
        for value, number in zip(column.values, numbers, strict=True)
    ]
    return np.array(numbers, np.float64), np.array(dates, np.float64)


def _day_s(number: float) -> float:
    """Seconds since 1970 of a day written as a number of eight digits; NaN where it is none."""
    return iso_time_s(f"{number:.0f}") if _FIRST_DAY <= number <= _LAST_DAY and number.is_integer() else np.nan


def _units_per_second(numbers: NDArray[np.float64]) -> float:
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) == 0:
        return 1.0
    middle = len(numbers) // 2
    typical = np.partition(numbers, middle)[middle]
    return next((units for above, units in _UNITS_ABOVE if typical > above), 1.0)


def _time_fault(value: Scalar | None, time_s: float, expected: str, now_s: float) -> str | None:
    if 0.0 <= time_s <= now_s + MAX_AHEAD_S:
        return None
    if value is None or value == "":
        return "is missing"
    if time_s < 0.0:
        return f"{shown(value)} is before 1970"
    if time_s > now_s:
        return f"{shown(value)} is more than a day in the future"
    return f"{shown(value)} is not {expected}"


def _number(value: Scalar | None) -> float:
    """The finite or infinite number that a value is or spells; NaN where it is none."""
    # Python reads 1_000 as a number; in a file it is a slip or a name.
    if value is None or (isinstance(value, str) and "_" in value):
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf
    except ValueError:
        return np.nan


def iso_time_s(value: Scalar | None) -> float:
    """Seconds since 1970 of an ISO 8601 date or time, in UTC where it names no zone; NaN where it is none."""
    if not isinstance(value, str):
        return np.nan
    try:
        moment = datetime.fromisoformat(value.strip().removesuffix(" UTC"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return np.nan


def _event_types(table: Table, faults: Faults) -> NDArray[np.uint8]:
    column = table.columns.get("event_type")
    if column is None:
        every = EventType.RATE if "rating" in table.columns else EventType.VIEW
        return np.full(len(table.rows), every, dtype=np.uint8)
    kinds = [_event_type(value) for value in column.values]
    faults.mark_values(column, [_event_type_fault(v, kind) for v, kind in zip(column.values, kinds, strict=True)])
    return np.array([kind or 0 for kind in kinds], dtype=np.uint8)[column.codes]


def _event_type(value: Scalar | None) -> EventType | None:
    if not isinstance(value, str):
        return None
    return EVENT_TYPES_BY_NAME.get(value.strip().lower().replace("-", "_").replace(" ", "_"))


def _event_type_fault(value: Scalar | None, kind: EventType | None) -> str | None:
    if kind is not None:
        return None
    what = "is missing" if value is None or value == "" else f"{shown(value)} is not an event type"
    return f"{what}; use one of {', '.join(EVENT_TYPE_NAMES)}"


def _event_values(table: Table, event_type: NDArray[np.uint8], faults: Faults) -> NDArray[np.float64]:
    value = _values(table, "value", faults)
    rating = _values(table, "rating", faults) if "rating" in table.columns else value
    is_rate = event_type == EventType.RATE
    column = table.columns.get("rating") or table.columns.get("value") or table.columns.get("event_type")
    if column is not None:
        faults.mark(column.name, is_rate & np.isnan(rating), lambda _: "a rate event needs the rating as its value")
    return np.where(is_rate, rating, value)


def _values(table: Table, name: str, faults: Faults) -> NDArray[np.float64]:
    column = table.columns.get(name)
    if column is None:
        return np.full(len(table.rows), np.nan)
    numbers = np.array([_number(value) for value in column.values], dtype=np.float64)
    faults.mark_values(column, _value_faults(column.values, (np.abs(numbers) <= MAX_VALUE).tolist()))
    return numbers[column.codes]


def _value_faults(values: Sequence[Scalar | None], readable: Sequence[bool]) -> list[str | None]:
    return [
        None if fine or value is None or value == "" else f"{shown(value)} {NO_VALUE}"
        for value, fine in zip(values, readable, strict=True)
    ]


def _first_of_each(
    user: NDArray[np.int32],
    item: NDArray[np.int32],
    time_s: NDArray[np.float64],
    event_type: NDArray[np.uint8],
    value: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Positions, in order, of the rows that repeat no earlier one."""
    pair = user.astype(np.int64) * (int(item.max()) + 1) + item
    # Most pairs of user and item occur once: only the others need the long comparison.
    order = np.argsort(pair, kind="stable")
    same = np.diff(pair[order]) == 0
    again = np.zeros(len(pair), dtype=np.bool_)
    again[order] = np.append(same, False) | np.append(False, same)
    rows = np.flatnonzero(again)
    # As bits, an absent value equals an absent value. lexsort is stable: of equal rows the earliest comes first.
    keys = (value[rows].view(np.uint32), event_type[rows], time_s[rows], pair[rows])
    order = np.lexsort(keys)
    repeats = np.all([np.diff(key[order]) == 0 for key in keys], axis=0)
    first = np.ones(len(pair), dtype=np.bool_)
    first[rows[order][1:][repeats]] = False
    return np.flatnonzero(first)


def _in_order_of_appearance(ids: list[str], codes: NDArray[np.int32]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The ids that occur in codes (N,), by first appearance in it, and the codes that go with them."""
    first = np.full(len(ids), len(codes), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the last assignment to a place stays, so the earliest row's
    order = np.argsort(first, kind="stable")[: int((first < len(codes)).sum())]
    place = np.empty(len(ids), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return tuple(ids[n] for n in order.tolist()), place[codes]
