"""What the readers of all formats share: opening a file, and making columns of records."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import LogError
from longtide_server.training.files.tables.columns import BadRow, Column, numbering

BATCH_ROWS = 512  # few enough that a batch dies young: more, and the garbage collector takes most of the time
GZIP_MAGIC = b"\x1f\x8b"

Record = tuple[int, Sequence[Any] | None]
"""The row number and the cells; no cells where the row could not be taken apart."""

Texts = Callable[[Any], Any]
"""Turns a cell that is no text and no number into one, where it can."""

Read = tuple[list[str], dict[str, Column], NDArray[np.int64], list[BadRow], float]
"""The names found in a file; the wanted columns of a piece of it; (N,) row numbers; the rows that could not be taken
apart; how much of the file has been read."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """The bytes of a file, unzipped where they are zipped, and what tells how much of it is read.

    What goes wrong in reading them is a LogError.
    """
    try:
        with path.open("rb") as raw:
            size = max(path.stat().st_size, 1)

            def share() -> float:
                return min(raw.tell() / size, 1.0)

            if raw.peek(2)[:2] == GZIP_MAGIC:
                with gzip.open(raw) as unzipped:
                    yield unzipped, share  # type: ignore[misc]  # GzipFile is a BinaryIO in all but name
            else:
                yield raw, share
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise LogError(f"{path}: its gzip data is cut short or damaged ({exc})") from exc
    except OSError as exc:
        raise LogError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def require_distinct(path: Path, names: Sequence[str]) -> None:
    """A LogError where two columns have one name."""
    for name, count in Counter(names).items():
        if name and count > 1:
            raise LogError(f"{path}: has {count} columns named {name}; a name must occur once")


def json_text(cell: Any) -> Any:  # noqa: ANN401  # whatever JSON holds
    """Lists, objects, and true or false, as JSON text; the rest as it is."""
    if isinstance(cell, (list, dict, bool)):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return cell


def encoded(
    records: Iterator[Record], places: Sequence[tuple[str, int]], lost: list[BadRow], piece_rows: int | None
) -> Iterator[tuple[dict[str, Column], NDArray[np.int64], list[BadRow]]]:
    """Pieces of columns, each with the rows that were lost meanwhile; at least one, be it empty."""
    first = True
    while True:
        cells, rows = _columns_of(islice(records, piece_rows), places)
        bad, lost[:] = list(lost), []
        if not first and len(rows) == 0 and not bad:
            return
        yield cells, rows, bad
        if piece_rows is None:
            return
        first = False


def _columns_of(
    records: Iterator[Record], places: Sequence[tuple[str, int]]
) -> tuple[dict[str, Column], NDArray[np.int64]]:
    """Columns from records: `places` says under which name and where in a record each column is."""
    indexes: list[defaultdict[Any, int]] = [numbering() for _ in places]
    codes: list[list[NDArray[np.int32]]] = [[] for _ in places]
    rows: list[NDArray[np.int64]] = []
    while read := list(islice(records, BATCH_ROWS)):
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
