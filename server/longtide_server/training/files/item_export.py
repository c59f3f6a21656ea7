"""Writes items into files that can be imported again: JSON lines, or Parquet."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longtide import Item

ROW_GROUP_ITEMS = 10_000
ENDINGS = (".jsonl", ".ndjson", ".parquet")

_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("categories", pa.list_(pa.list_(pa.string()))),
        ("tags", pa.list_(pa.string())),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("publish_time", pa.timestamp("us", "UTC")),
        ("expire_time", pa.timestamp("us", "UTC")),
        ("available", pa.bool_()),
        ("language", pa.string()),
        ("text_vector", pa.list_(pa.float32())),
        ("image_vector", pa.list_(pa.float32())),
        ("attributes", pa.string()),  # as JSON: Parquet has no column of several kinds
        ("domain", pa.string()),
        ("update_time", pa.timestamp("us", "UTC")),
    ]
)


async def export_items(items: AsyncIterator[Item], path: Path, report: Callable[[int], None]) -> int:
    """Write items into a JSON-lines or a Parquet file, whole or not at all; how many there were."""
    partial = path.with_name(f"{path.name}.partial")
    count = 0
    waiting: list[dict[str, Any]] = []
    try:
        with ExitStack() as stack:
            write = _parquet_writer(partial, stack) if path.suffix == ".parquet" else _json_writer(partial, stack)
            async for item in items:
                waiting.append(_row(item))
                count += 1
                if len(waiting) == ROW_GROUP_ITEMS:
                    write(waiting)
                    waiting.clear()
                    report(count)
            write(waiting)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _row(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "description": item.description,
        "categories": item.categories,
        "tags": item.tags,
        "brand": item.brand,
        "price": item.price,
        "publish_time": item.publish_time,
        "expire_time": item.expire_time,
        "available": item.available,
        "language": item.language,
        "text_vector": item.text_vector,
        "image_vector": item.image_vector,
        "attributes": item.attributes,
        "domain": item.domain,
        "update_time": item.update_time,
    }


def _parquet_writer(path: Path, stack: ExitStack) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    writer = stack.enter_context(pq.ParquetWriter(path, _SCHEMA))

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        packed = ({**row, "attributes": json.dumps(row["attributes"], ensure_ascii=False)} for row in rows)
        writer.write_table(pa.Table.from_pylist(list(packed), _SCHEMA))

    return write


def _json_writer(path: Path, stack: ExitStack) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """What is empty is left out; a file says of an item what any of its lines says of one."""
    file = stack.enter_context(path.open("w", encoding="utf-8"))

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            said = {name: value for name, value in row.items() if value not in ("", (), {}, None)}
            file.write(json.dumps(said, ensure_ascii=False, default=datetime.isoformat) + "\n")

    return write
