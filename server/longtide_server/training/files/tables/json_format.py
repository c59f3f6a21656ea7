"""Reads JSON lines: numbers stay numbers, and the first line is row 1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from longtide_server.training.files.tables.columns import BadRow, shown
from longtide_server.training.files.tables.formats import Read, Record, Texts, encoded, opened

NOT_SCALAR = {dict: "an object", list: "a list", bool: "true or false"}


def read_jsonl(path: Path, wanted: list[str], texts: Mapping[str, Texts], piece_rows: int | None) -> Iterator[Read]:
    """The wanted columns of a file, all rows at once or so many at a time."""
    lost: list[BadRow] = []
    found: dict[str, None] = {}
    if piece_rows is not None:  # a column may first occur far from the beginning
        found.update(dict.fromkeys(_names(path)))
    with opened(path) as (stream, share):
        records = _records(stream, wanted, texts, found, lost)
        places = [(name, place) for place, name in enumerate(wanted)]
        for cells, rows, bad in encoded(records, places, lost, piece_rows):
            yield list(found), cells, rows, bad, share()


def _names(path: Path) -> Iterator[str]:
    """The names in the objects of a file, in order of appearance, some of them more than once."""
    known: frozenset[str] = frozenset()
    with opened(path) as (stream, _):
        for row, line in enumerate(stream, start=1):
            with suppress(ValueError):
                names = _object(line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line).keys()
                if not names <= known:
                    yield from names
                    known |= names


def _records(
    lines: BinaryIO, wanted: list[str], texts: Mapping[str, Texts], found: dict[str, None], lost: list[BadRow]
) -> Iterator[Record]:
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _object(line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line)
        except ValueError as exc:
            lost.append(BadRow(row, "", str(exc)))
            yield row, None
            continue
        if not record.keys() <= found.keys():
            found.update(dict.fromkeys(record))
        cells = [texts[name](record.get(name)) if name in texts else record.get(name) for name in wanted]
        if NOT_SCALAR.keys().isdisjoint(map(type, cells)):
            yield row, cells
        else:
            lost.append(_nested_fault(row, wanted, cells))
            yield row, None


def _nested_fault(row: int, names: list[str], cells: list[Any]) -> BadRow:
    name, kind = next((n, type(c)) for n, c in zip(names, cells, strict=True) if type(c) in NOT_SCALAR)
    return BadRow(row, name, f"is {NOT_SCALAR[kind]}, not text or a number")


def _object(line: bytes) -> dict[str, Any]:
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
