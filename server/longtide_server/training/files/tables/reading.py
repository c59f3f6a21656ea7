"""Reads the named columns of a table file, whichever format it has: at once, or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from longtide_server.errors import LogError
from longtide_server.training.files.tables.columns import Table
from longtide_server.training.files.tables.csv_format import read_csv
from longtide_server.training.files.tables.formats import Read, Texts, json_text
from longtide_server.training.files.tables.json_format import read_jsonl
from longtide_server.training.files.tables.parquet_format import read_parquet


def read_table(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str],
    columns: Mapping[str, str],
    *,
    option: str = "",
    nested: Sequence[str] = (),
) -> Table:
    """The named columns of a file, at least one row of them.

    `columns` maps our names to the file's; names that are not in it are the same in the file. `option` is the one that
    they are given with, for errors to name; empty where there is none. Columns in `nested` may hold lists, objects, and
    true or false (JSON, Parquet), which are read as JSON text. Gzip is recognised by content, the format by the name's
    ending. A LogError where the file, its header or its columns are wrong.
    """
    [table] = _tables(path, needed, optional, columns, option, nested, None)
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
    option: str = "",
    nested: Sequence[str] = (),
) -> Iterator[Table]:
    """As `read_table`, for a file larger than memory: tables of at most so many rows, in the file's order."""
    return _tables(path, needed, optional, columns, option, nested, piece_rows)


def _tables(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str],
    columns: Mapping[str, str],
    option: str,
    nested: Sequence[str],
    piece_rows: int | None,
) -> Iterator[Table]:
    _require_known(columns, option, (*needed, *optional))
    _require_file(path)
    wanted = {name: columns.get(name, name) for name in (*needed, *optional)}
    own_texts = {wanted[name]: json_text for name in nested}
    for found, cells, rows, lost, share in _reader(path)(
        path, list(dict.fromkeys(wanted.values())), own_texts, piece_rows
    ):
        if len(rows) > 0:
            _require_columns(path, wanted, found, needed, columns, option)
        present = {name: cells[file_name] for name, file_name in wanted.items() if file_name in found}
        yield Table(path, present, rows, lost, share)


def _reader(path: Path) -> Callable[[Path, list[str], Mapping[str, Texts], int | None], Iterator[Read]]:
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers = {"csv": read_csv, "jsonl": read_jsonl, "ndjson": read_jsonl, "parquet": read_parquet}
    if ending not in readers:
        raise LogError(
            f"{path}: is of no known format; the name must end in .csv, .jsonl, .ndjson or .parquet (or .gz)"
        )
    return readers[ending]


def _require_known(columns: Mapping[str, str], option: str, known: Sequence[str]) -> None:
    for name in columns:
        if name not in known:
            raise LogError(f"{option}: there is no column {name} to map; the names are {', '.join(known)}")


def _require_file(path: Path) -> None:
    if not path.exists():
        raise LogError(f"{path}: no such file")
    if path.is_dir():
        raise LogError(f"{path}: is a directory, not a file")


def _require_columns(
    path: Path,
    wanted: Mapping[str, str],
    found: Sequence[str],
    needed: Sequence[str],
    columns: Mapping[str, str],
    option: str,
) -> None:
    have = ", ".join(found) or "none"
    for name, file_name in wanted.items():
        if file_name in found:
            continue
        if name in columns:
            raise LogError(f"{path}: has no column {file_name}, which {option} names as {name}; it has {have}")
        if name in needed:
            help = f"; if one of these is meant, say so with {option} {name}=ITS_NAME" if option else ""
            raise LogError(f"{path}: has no column {name}; it has {have}{help}")
