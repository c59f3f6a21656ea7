"""Reads CSV: cells are text, exactly as written, and a broken row spoils no other.

Row numbers are what an editor or a spreadsheet shows: the header is row 1, an empty line counts, a quoted cell with
line breaks in it is still one row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from longtide_server.errors import LogError
from longtide_server.training.files.tables.columns import BadRow, torn
from longtide_server.training.files.tables.formats import Read, Record, Texts, encoded, opened, require_distinct


class CsvReader(Protocol):
    """What csv.reader makes."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def read_csv(path: Path, wanted: list[str], _texts: Mapping[str, Texts], piece_rows: int | None) -> Iterator[Read]:
    """The wanted columns of a file, all rows at once or so many at a time."""
    lost: list[BadRow] = []
    with opened(path) as (stream, share):
        # surrogateescape: bytes that are not UTF-8 spoil their own cell, not the file.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header = _header(path, reader)
        places = [(name, header.index(name)) for name in wanted if name in header]
        records = _records(path, reader, len(header), lost)
        for cells, rows, bad in encoded(records, places, lost, piece_rows):
            yield header, cells, rows, bad, share()


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as exc:
        raise LogError(f"{path}: row 1: is not a CSV header: {exc}") from exc
    if not any(header):
        raise LogError(f"{path}: is empty, or its first row is; a CSV starts with a row of column names")
    if any(map(torn, header)):
        raise LogError(f"{path}: row 1: the column names are not UTF-8 text")
    require_distinct(path, header)
    return header


def _records(path: Path, reader: CsvReader, width: int, lost: list[BadRow]) -> Iterator[Record]:
    row = 1
    while True:
        row += 1
        lines = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            bad, swallowed = BadRow(row, "", _fault(exc)), reader.line_num - lines - 1
            if swallowed > 0:  # to skip this row would be to lose all that it swallowed
                raise LogError(f"{path}: {bad}; it runs on over the {swallowed} lines after it") from exc
            lost.append(bad)
            yield row, None
            continue
        if len(cells) == width:
            yield row, cells
        elif cells:  # an empty line is no row
            lost.append(BadRow(row, "", f"the header has {width} fields, this row {len(cells)}"))
            yield row, None


def _fault(exc: csv.Error) -> str:
    if "end of data" in str(exc):
        return "a quote opens in it and never closes"
    return f"is not well-formed CSV: {exc}"
