"""Reads Parquet: numbers stay numbers, times become seconds since 1970, and the first row is row 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longtide_server.errors import LogError
from longtide_server.training.files.tables.columns import Column, Scalar
from longtide_server.training.files.tables.formats import Read, Texts, require_distinct

TICKS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # whole, so that a quotient is exact
DAY_S = 86_400.0


def read_parquet(path: Path, wanted: list[str], texts: Mapping[str, Texts], piece_rows: int | None) -> Iterator[Read]:
    """The wanted columns of a file, all rows at once or so many at a time."""
    try:
        with pq.ParquetFile(path) as file:
            found: list[str] = file.schema_arrow.names
            require_distinct(path, found)
            names = [name for name in wanted if name in found]
            done, total = 0, file.metadata.num_rows
            for table in [file.read(columns=names)] if piece_rows is None else _pieces(file, names, piece_rows):
                cells = {name: _column(path, name, table.column(name), texts.get(name)) for name in table.column_names}
                rows = np.arange(done + 1, done + table.num_rows + 1, dtype=np.int64)
                done += table.num_rows
                yield found, cells, rows, [], done / max(total, 1)
    except LogError:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError) as exc:
        raise LogError(f"{path}: cannot be read as Parquet: {str(exc).splitlines()[0] if str(exc) else exc!r}") from exc


def _pieces(file: Any, names: list[str], piece_rows: int) -> Iterator[Any]:  # noqa: ANN401
    for batch in file.iter_batches(batch_size=piece_rows, columns=names):
        yield pa.Table.from_batches([batch])


def _column(path: Path, name: str, column: Any, texts: Texts | None) -> Column:  # noqa: ANN401
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
        return [None if tick is None else tick / TICKS_PER_S[kind.unit] for tick in ticks]
    if pa.types.is_date(kind):
        days = values.cast(pa.date32()).cast(pa.int32()).to_pylist()
        return [None if day is None else day * DAY_S for day in days]
    if pa.types.is_decimal(kind):  # ids of more digits than a float has are among them
        return [None if n is None else int(n) if n == n.to_integral_value() else float(n) for n in values.to_pylist()]
    if pa.types.is_floating(kind):
        return [None if number != number else number for number in values.to_pylist()]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [None if raw is None else raw.decode("utf-8", "surrogateescape") for raw in values.to_pylist()]
    scalars: list[Scalar | None] = values.to_pylist()
    return scalars
