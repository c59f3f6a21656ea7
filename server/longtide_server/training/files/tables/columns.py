"""A table as columns of distinct values, and which of its rows are bad.

A column keeps every distinct value once, in order of first appearance, and one code a row: what a value means is
worked out once, however often it occurs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import LogError
from longtide_server.events import id_violation

MAX_BAD_ROW_DETAILS = 1_000

Scalar = str | int | float


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be used."""

    row: int
    column: str
    """The file's name of the column, or empty where the whole row is broken."""
    reason: str

    def __str__(self) -> str:
        where = f"row {self.row}, column {self.column}" if self.column else f"row {self.row}"
        return f"{where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class BadRows:
    """The rows that were skipped."""

    count: int = 0
    details: tuple[BadRow, ...] = ()
    """The first of them, at most as many as were asked for, in the file's order."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column of N rows: `values[codes[n]]` is what row n holds; None where it holds nothing."""

    name: str
    """The file's name of it."""
    values: list[Scalar | None]
    codes: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A file taken apart."""

    path: Path
    columns: Mapping[str, Column]
    """By our name of it; only those that the file has."""
    rows: NDArray[np.int64]
    """(N,) the row number of each row."""
    lost: Sequence[BadRow]
    """Rows that could not be taken apart; they are none of the N."""
    read_share: float = 1.0
    """How much of the file has been read with it: 0 to 1."""


class Faults:
    """Gathers a table's bad rows check by check, so that the first bad row is the file's first, not a check's.

    Starts with the rows that could not be taken apart and those whose text is not UTF-8.
    """

    def __init__(self, table: Table, max_details: int = MAX_BAD_ROW_DETAILS) -> None:
        self._path, self._rows, self._lost = table.path, table.rows, len(table.lost)
        self._max_details = max_details
        self._details = list(table.lost[:max_details])
        self._bad = np.zeros(len(table.rows), dtype=np.bool_)
        for column in table.columns.values():
            self.mark_values(column, _text_faults(column))

    def mark(self, column: str, bad: NDArray[np.bool_], reason: Callable[[int], str]) -> None:
        """Rows where `bad` (N,) holds are bad; `reason` says why, by position. A row's first check wins."""
        fresh = np.flatnonzero(bad & ~self._bad)
        self._details += [BadRow(int(self._rows[n]), column, reason(int(n))) for n in fresh[: self._max_details]]
        self._bad |= bad

    def mark_values(self, column: Column, reasons: Sequence[str | None]) -> None:
        """Rows whose value has a reason, one for each of `column.values`, are bad."""
        if any(reasons):
            bad = np.array([reason is not None for reason in reasons], dtype=np.bool_)
            self.mark(column.name, bad[column.codes], lambda n: reasons[column.codes[n]] or "")

    def settle(self, *, skip_bad_rows: bool) -> tuple[NDArray[np.bool_], BadRows]:
        """Which of the N rows are good, and the others. A LogError unless all are good, or some are and we may skip."""
        good, bad = self.found()
        if bad.count and not skip_bad_rows:
            raise LogError(f"{self._path}: {bad.details[0]}")
        if self._bad.all():
            raise LogError(
                f"{self._path}: every row is bad ({bad.count} of {bad.count}); the first is {bad.details[0]}"
            )
        return good, bad

    def found(self) -> tuple[NDArray[np.bool_], BadRows]:
        """Which of the N rows are good, and the others, whatever that means for the file."""
        details = tuple(sorted(self._details, key=lambda bad: bad.row)[: self._max_details])
        return ~self._bad, BadRows(int(self._bad.sum()) + self._lost, details)


def read_ids(column: Column, faults: Faults) -> tuple[list[str], NDArray[np.int32]]:
    """A column's distinct ids and (N,) their codes: whole numbers become digits, text stays as it is."""
    faults.mark_values(column, [_id_fault(value) for value in column.values])
    index: defaultdict[str, int] = numbering()
    merged = np.array([index[id_text(value)] for value in column.values], dtype=np.int32)
    return list(index), merged[column.codes]


def id_text(value: Scalar | None) -> str:
    """An id as text: a whole number becomes digits, nothing the empty text."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}…{text[-10:]}"


def numbering() -> defaultdict[Any, int]:
    """Numbers its keys in order of first appearance."""
    index: defaultdict[Any, int] = defaultdict()
    index.default_factory = index.__len__
    return index


def torn(text: str) -> bool:
    """Whether some of its bytes were not UTF-8."""
    # Bytes that are not UTF-8 were read as lone surrogates, which no UTF-8 text holds.
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _id_fault(value: Scalar | None) -> str | None:
    if value is None or value != value:  # a NaN is how data frames write a missing number
        return "is missing"
    if isinstance(value, float) and not value.is_integer():
        return f"{value!r} is not an id: a number must be whole"
    fault = id_violation("", id_text(value))
    return fault.reason if fault else None


def _text_faults(column: Column) -> list[str | None]:
    """For each value of a column, what is wrong with its bytes."""
    return [f"{shown(v)} is not UTF-8 text" if isinstance(v, str) and torn(v) else None for v in column.values]
