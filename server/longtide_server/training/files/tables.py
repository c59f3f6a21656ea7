"""Reads a table file (CSV, JSON lines, Parquet) into columns of distinct values, and says which row of it is wrong.

A column keeps every distinct value once, in order of first appearance, and one code a row: what a value means is
worked out once, however often it occurs. CSV cells are text, exactly as written; JSON and Parquet keep their numbers.

Row numbers are what an editor or a spreadsheet shows: the header of a CSV is row 1, an empty line counts, a quoted
cell with line breaks in it is still one row. A JSON-lines file's and a Parquet file's first row is row 1.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longtide_server.errors import LogError
from longtide_server.events import id_violation

MAX_BAD_ROW_DETAILS = 1_000
_BATCH_ROWS = 512  # few enough that a batch dies young: more, and the garbage collector takes most of the time
_GZIP_MAGIC = b"\x1f\x8b"
_TICKS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # whole, so that a quotient is exact
_DAY_S = 86_400.0

_NOT_SCALAR = {dict: "an object", list: "a list", bool: "true or false"}


class CsvReader(Protocol):
    """What csv.reader makes."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


Scalar = str | int | float
Record = tuple[int, Sequence[Any] | None]
"""The row number and the cells; no cells where the row could not be taken apart."""


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


def read_table(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str],
    columns: Mapping[str, str],
    *,
    nested: Sequence[str] = (),
) -> Table:
    """The named columns of a file, at least one row of them.

    `columns` maps our names to the file's; names that are not in it are the same in the file. Columns in `nested` may
    hold lists, objects, and true or false (JSON, Parquet), which are read as JSON text. Gzip is recognised by content,
    the format by the name's ending. A LogError where the file, its header or its columns are wrong.
    """
    [table] = _tables(path, needed, optional, columns, nested, None)
    if len(table.rows) == 0:
        lost = table.lost
        raise LogError(f"{path}: " + (f"every row is bad; the first is {lost[0]}" if lost else "holds no rows of data"))
    return table


def read_pieces(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str],
    columns: Mapping[str, str],
    piece_rows: int,
    *,
    nested: Sequence[str] = (),
) -> Iterator[Table]:
    """As `read_table`, for a file larger than memory: tables of at most so many rows, in the file's order."""
    return _tables(path, needed, optional, columns, nested, piece_rows)


def _tables(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str],
    columns: Mapping[str, str],
    nested: Sequence[str],
    piece_rows: int | None,
) -> Iterator[Table]:
    _require_known(columns, (*needed, *optional))
    _require_file(path)
    wanted = {name: columns.get(name, name) for name in (*needed, *optional)}
    own_texts = {wanted[name]: _json_text for name in nested}
    for found, cells, rows, lost, share in _reader(path)(
        path, list(dict.fromkeys(wanted.values())), own_texts, piece_rows
    ):
        if len(rows) > 0:
            _require_columns(path, wanted, found, needed, columns)
        present = {name: cells[file_name] for name, file_name in wanted.items() if file_name in found}
        yield Table(path, present, rows, lost, share)


def read_ids(column: Column, faults: Faults) -> tuple[list[str], NDArray[np.int32]]:
    """A column's distinct ids and (N,) their codes: whole numbers become digits, text stays as it is."""
    faults.mark_values(column, [_id_fault(value) for value in column.values])
    index: defaultdict[str, int] = _index()
    merged = np.array([index[id_text(value)] for value in column.values], dtype=np.int32)
    return list(index), merged[column.codes]


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}…{text[-10:]}"


def id_text(value: Scalar | None) -> str:
    """An id as text: a whole number becomes digits, nothing the empty text."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _id_fault(value: Scalar | None) -> str | None:
    if value is None or value != value:  # a NaN is how data frames write a missing number
        return "is missing"
    if isinstance(value, float) and not value.is_integer():
        return f"{value!r} is not an id: a number must be whole"
    fault = id_violation("", id_text(value))
    return fault.reason if fault else None


def _text_faults(column: Column) -> list[str | None]:
    """For each value of a column, what is wrong with its bytes."""
    return [f"{shown(v)} is not UTF-8 text" if isinstance(v, str) and _torn(v) else None for v in column.values]


def _torn(text: str) -> bool:
    # Bytes that are not UTF-8 were read as lone surrogates, which no UTF-8 text holds.
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _require_known(columns: Mapping[str, str], known: Sequence[str]) -> None:
    for name in columns:
        if name not in known:
            raise LogError(f"--columns: there is no column {name} to map; the names are {', '.join(known)}")


def _require_file(path: Path) -> None:
    if not path.exists():
        raise LogError(f"{path}: no such file")
    if path.is_dir():
        raise LogError(f"{path}: is a directory, not a file")


def _require_columns(
    path: Path, wanted: Mapping[str, str], found: Sequence[str], needed: Sequence[str], columns: Mapping[str, str]
) -> None:
    have = ", ".join(found) or "none"
    for name, file_name in wanted.items():
        if file_name in found:
            continue
        if name in columns:
            raise LogError(f"{path}: has no column {file_name}, which --columns names as {name}; it has {have}")
        if name in needed:
            raise LogError(
                f"{path}: has no column {name}; it has {have}; "
                f"if one of these is meant, say so with --columns {name}=ITS_NAME"
            )


def _require_distinct(path: Path, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if name and count > 1:
            raise LogError(f"{path}: has {count} columns named {name}; a name must occur once")


Texts = Callable[[Any], Any]
"""Turns a cell that is no text and no number into one, where it can."""
Read = tuple[list[str], dict[str, Column], NDArray[np.int64], list[BadRow], float]
"""The names found in a file; the wanted columns of a piece of it; (N,) row numbers; the rows that could not be taken
apart; how much of the file has been read."""


def _reader(path: Path) -> Callable[[Path, list[str], Mapping[str, Texts], int | None], Iterator[Read]]:
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers = {"csv": _read_csv, "jsonl": _read_jsonl, "ndjson": _read_jsonl, "parquet": _read_parquet}
    if ending not in readers:
        raise LogError(
            f"{path}: is of no known format; the name must end in .csv, .jsonl, .ndjson or .parquet (or .gz)"
        )
    return readers[ending]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """The bytes of a file, unzipped where they are zipped, and what tells how much of it is read.

    What goes wrong in reading them is a LogError.
    """
    try:
        with path.open("rb") as raw:
            size = max(path.stat().st_size, 1)

            def share() -> float:
                return min(raw.tell() / size, 1.0)

            if raw.peek(2)[:2] == _GZIP_MAGIC:
                with gzip.open(raw) as unzipped:
                    yield unzipped, share  # type: ignore[misc]  # GzipFile is a BinaryIO in all but name
            else:
                yield raw, share
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise LogError(f"{path}: its gzip data is cut short or damaged ({exc})") from exc
    except OSError as exc:
        raise LogError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def _read_csv(path: Path, wanted: list[str], _texts: Mapping[str, Texts], piece_rows: int | None) -> Iterator[Read]:
    lost: list[BadRow] = []
    with _opened(path) as (stream, share):
        # surrogateescape: bytes that are not UTF-8 spoil their own cell, not the file.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header = _csv_header(path, reader)
        places = [(name, header.index(name)) for name in wanted if name in header]
        records = _csv_records(path, reader, len(header), lost)
        for cells, rows, bad in _encoded(records, places, lost, piece_rows):
            yield header, cells, rows, bad, share()


def _csv_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as exc:
        raise LogError(f"{path}: row 1: is not a CSV header: {exc}") from exc
    if not any(header):
        raise LogError(f"{path}: is empty, or its first row is; a CSV starts with a row of column names")
    if any(map(_torn, header)):
        raise LogError(f"{path}: row 1: the column names are not UTF-8 text")
    _require_distinct(path, header)
    return header


def _csv_records(path: Path, reader: CsvReader, width: int, lost: list[BadRow]) -> Iterator[Record]:
    row = 1
    while True:
        row += 1
        lines = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            bad, swallowed = BadRow(row, "", _csv_fault(exc)), reader.line_num - lines - 1
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


def _csv_fault(exc: csv.Error) -> str:
    if "end of data" in str(exc):
        return "a quote opens in it and never closes"
    return f"is not well-formed CSV: {exc}"


def _read_jsonl(path: Path, wanted: list[str], texts: Mapping[str, Texts], piece_rows: int | None) -> Iterator[Read]:
    lost: list[BadRow] = []
    found: dict[str, None] = {}
    if piece_rows is not None:  # a column may first occur far from the beginning
        found.update(dict.fromkeys(_json_names(path)))
    with _opened(path) as (stream, share):
        records = _json_records(stream, wanted, texts, found, lost)
        places = [(name, place) for place, name in enumerate(wanted)]
        for cells, rows, bad in _encoded(records, places, lost, piece_rows):
            yield list(found), cells, rows, bad, share()


def _json_names(path: Path) -> Iterator[str]:
    """The names in the objects of a file, in order of appearance, some of them more than once."""
    known: frozenset[str] = frozenset()
    with _opened(path) as (stream, _):
        for row, line in enumerate(stream, start=1):
            with suppress(ValueError):
                names = _json_object(line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line).keys()
                if not names <= known:
                    yield from names
                    known |= names


def _json_records(
    lines: BinaryIO, wanted: list[str], texts: Mapping[str, Texts], found: dict[str, None], lost: list[BadRow]
) -> Iterator[Record]:
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _json_object(line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line)
        except ValueError as exc:
            lost.append(BadRow(row, "", str(exc)))
            yield row, None
            continue
        if not record.keys() <= found.keys():
            found.update(dict.fromkeys(record))
        cells = [texts[name](record.get(name)) if name in texts else record.get(name) for name in wanted]
        if _NOT_SCALAR.keys().isdisjoint(map(type, cells)):
            yield row, cells
        else:
            lost.append(_nested_fault(row, wanted, cells))
            yield row, None


def _nested_fault(row: int, names: list[str], cells: list[Any]) -> BadRow:
    name, kind = next((n, type(c)) for n, c in zip(names, cells, strict=True) if type(c) in _NOT_SCALAR)
    return BadRow(row, name, f"is {_NOT_SCALAR[kind]}, not text or a number")


def _json_object(line: bytes) -> dict[str, Any]:
    """The object on a line; a ValueError, in words, where there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ValueError("is not UTF-8 text") from exc
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"is not JSON: {exc}") from exc
    if not isinstance(record, dict):
        raise ValueError(f"{shown(record)} is not a JSON object")
    return record


def _json_text(cell: Any) -> Any:  # noqa: ANN401  # whatever JSON holds
    if isinstance(cell, (list, dict, bool)):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return cell


def _encoded(
    records: Iterator[Record], places: Sequence[tuple[str, int]], lost: list[BadRow], piece_rows: int | None
) -> Iterator[tuple[dict[str, Column], NDArray[np.int64], list[BadRow]]]:
    """Pieces of columns, each with the rows that were lost meanwhile; at least one, be it empty."""
    first = True
    while True:
        cells, rows = _encode(islice(records, piece_rows), places)
        bad, lost[:] = list(lost), []
        if not first and len(rows) == 0 and not bad:
            return
        yield cells, rows, bad
        if piece_rows is None:
            return
        first = False


def _encode(
    records: Iterator[Record], places: Sequence[tuple[str, int]]
) -> tuple[dict[str, Column], NDArray[np.int64]]:
    """Columns from records: `places` says under which name and where in a record each column is."""
    indexes: list[defaultdict[Any, int]] = [_index() for _ in places]
    codes: list[list[NDArray[np.int32]]] = [[] for _ in places]
    rows: list[NDArray[np.int64]] = []
    while read := list(islice(records, _BATCH_ROWS)):
        batch = [(row, cells) for row, cells in read if cells is not None]
        rows.append(np.fromiter((row for row, _ in batch), np.int64, len(batch)))
        for index, parts, (_, place) in zip(indexes, codes, places, strict=True):
            parts.append(
                np.fromiter(map(index.__getitem__, (cells[place] for _, cells in batch)), np.int32, len(batch))
            )
    columns = {
        name: Column(name, list(index), np.concatenate([*parts, np.empty(0, np.int32)]))
        for (name, _), index, parts in zip(places, indexes, codes, strict=True)
    }
    return columns, np.concatenate([*rows, np.empty(0, np.int64)])


def _index() -> defaultdict[Any, int]:
    """Numbers its keys in order of first appearance."""
    index: defaultdict[Any, int] = defaultdict()
    index.default_factory = index.__len__
    return index


def _read_parquet(path: Path, wanted: list[str], texts: Mapping[str, Texts], piece_rows: int | None) -> Iterator[Read]:
    try:
        with pq.ParquetFile(path) as file:
            found: list[str] = file.schema_arrow.names
            _require_distinct(path, found)
            names = [name for name in wanted if name in found]
            done, total = 0, file.metadata.num_rows
            for table in [file.read(columns=names)] if piece_rows is None else _parquet_pieces(file, names, piece_rows):
                cells = {
                    name: _parquet_column(path, name, table.column(name), texts.get(name))
                    for name in table.column_names
                }
                rows = np.arange(done + 1, done + table.num_rows + 1, dtype=np.int64)
                done += table.num_rows
                yield found, cells, rows, [], done / max(total, 1)
    except LogError:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError) as exc:
        raise LogError(f"{path}: cannot be read as Parquet: {str(exc).splitlines()[0] if str(exc) else exc!r}") from exc


def _parquet_pieces(file: Any, names: list[str], piece_rows: int) -> Iterator[Any]:  # noqa: ANN401
    for batch in file.iter_batches(batch_size=piece_rows, columns=names):
        yield pa.Table.from_batches([batch])


def _parquet_column(path: Path, name: str, column: Any, texts: Texts | None) -> Column:  # noqa: ANN401
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if str(column.type) in ("string_view", "binary_view"):  # as Polars writes text; Arrow cannot encode these
        column = column.cast(pa.large_binary())
    if texts is not None and (pa.types.is_nested(column.type) or pa.types.is_boolean(column.type)):
        cells = [texts(cell) for cell in column.to_pylist()]
        if all(cell is None or isinstance(cell, str) for cell in cells):
            column = pa.chunked_array([pa.array(cells, pa.string())])
    coded = column.dictionary_encode(null_encoding="encode") if _is_plain(column.type) else None
    if coded is None:
        raise LogError(f"{path}: column {name} is of type {column.type}; text, numbers or times are needed")
    coded = coded.unify_dictionaries()
    codes = [chunk.indices.to_numpy().astype(np.int32, copy=False) for chunk in coded.chunks]
    values = _scalars(coded.chunk(0).dictionary) if coded.num_chunks else []
    return Column(name, values, np.concatenate([*codes, np.empty(0, np.int32)]))


def _is_plain(kind: Any) -> bool:  # noqa: ANN401
    types = pa.types
    return any(
        test(kind)
        for test in (
            types.is_null,
            types.is_string,
            types.is_large_string,
            types.is_binary,
            types.is_large_binary,
            types.is_integer,
            types.is_floating,
            types.is_decimal,
            types.is_timestamp,
            types.is_date,
        )
    )


def _scalars(values: Any) -> list[Scalar | None]:  # noqa: ANN401
    """Plain values of an Arrow array: times become seconds since 1970, decimals numbers, bytes text, NaN nothing."""
    kind = values.type
    if pa.types.is_timestamp(kind):
        ticks = values.cast(pa.int64()).to_pylist()
        return [None if tick is None else tick / _TICKS_PER_S[kind.unit] for tick in ticks]
    if pa.types.is_date(kind):
        days = values.cast(pa.date32()).cast(pa.int32()).to_pylist()
        return [None if day is None else day * _DAY_S for day in days]
    if pa.types.is_decimal(kind):  # ids of more digits than a float has are among them
        return [None if n is None else int(n) if n == n.to_integral_value() else float(n) for n in values.to_pylist()]
    if pa.types.is_floating(kind):
        return [None if number != number else number for number in values.to_pylist()]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [None if raw is None else raw.decode("utf-8", "surrogateescape") for raw in values.to_pylist()]
    scalars: list[Scalar | None] = values.to_pylist()
    return scalars
