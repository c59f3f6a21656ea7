"""Takes out of a store what training and importing read: the events, as a log or a Parquet file, and the items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longtide_server.catalog_store import CatalogStore
from longtide_server.errors import LogError
from longtide_server.event_store import EventStore
from longtide_server.events import Event, EventType
from longtide_server.items.item import Item
from longtide_server.training.files.log import Cells, Log, log_of
from longtide_server.training.items.known_items import Described, described

ROW_GROUP_EVENTS = 100_000
PAGE_ITEMS = 1_000
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("session_id", pa.string()),
        ("item_id", pa.string()),
        ("event_type", pa.string()),
        ("custom_type", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("value", pa.float64()),
        ("event_id", pa.string()),
        ("attribution_token", pa.string()),
    ]
)


async def read_store(store: EventStore, report: Callable[[int], None]) -> Log:
    """Every event of a store as a log, in the order of arrival; `report` is told how many have been read.

    LogError when there is none.
    """
    owners: defaultdict[str, int] = defaultdict(lambda: len(owners))
    items: defaultdict[str, int] = defaultdict(lambda: len(items))
    pieces = []
    count = 0
    async for piece in store.everything():
        pieces.append(_columns(piece, owners, items))
        count += len(piece)
        report(count)
    if not count:
        raise LogError("the event store holds no events")
    owner, item, time_s, event_type, value = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return log_of(Cells(list(owners), owner, list(items), item, time_s, event_type, value), np.arange(count))


async def read_catalogue(store: CatalogStore, report: Callable[[int], None]) -> Described:
    """What a catalogue says of its items; `report` is told how many have been read."""
    items: list[Item] = []
    more, after = True, ""
    while more:
        page = await store.page(PAGE_ITEMS, after)
        items += page.items
        more, after = page.more, page.items[-1].item_id if page.items else after
        report(len(items))
    return described(items)


async def export(store: EventStore, path: Path, report: Callable[[int], None]) -> int:
    """Write every event of a store into a Parquet file, whole or not at all; how many there were."""
    partial = path.with_name(f"{path.name}.partial")
    waiting: list[Event] = []
    count = 0
    try:
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            async for piece in store.everything():
                waiting.extend(event for _, event in piece)
                count += len(piece)
                if len(waiting) >= ROW_GROUP_EVENTS:
                    writer.write_table(_table(waiting))
                    waiting.clear()
                report(count)
            writer.write_table(_table(waiting))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _columns(
    piece: Iterable[tuple[str, Event]], owners: defaultdict[str, int], items: defaultdict[str, int]
) -> tuple[np.ndarray[Any, Any], ...]:
    rows = [
        (owners[owner], items[event.item_id], event.time_s, event.type, np.nan if event.value is None else event.value)
        for owner, event in piece
    ]
    kinds = (np.int32, np.int32, np.float64, np.uint8, np.float64)
    return tuple(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True))


def _table(events: Sequence[Event]) -> Any:  # noqa: ANN401
    columns = {
        "user_id": [event.user_id for event in events],
        "session_id": [event.session_id for event in events],
        "item_id": [event.item_id for event in events],
        "event_type": [EventType(event.type).name.lower() for event in events],
        "custom_type": [event.custom_type for event in events],
        "timestamp": [round(event.time_s * 1e6) for event in events],
        "value": [event.value for event in events],
        "event_id": [event.event_id for event in events],
        "attribution_token": [event.attribution_token for event in events],
    }
    return pa.table({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}, SCHEMA)
