"""Everything durable behind one URL: the events, and the items beside them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from longtide_server.catalog_store import CatalogStore
from longtide_server.catalog_store.redis import RedisCatalogStore
from longtide_server.catalog_store.sqlite import SqliteCatalogStore
from longtide_server.event_store import EventStore
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.event_store.urls import open_store


@dataclass(frozen=True, slots=True)
class Stores:
    """Two stores over one file or one connection, which the first of them closes."""

    events: EventStore
    items: CatalogStore


async def open_stores(url: str, *, writes: bool = True, shared: bool = False) -> Stores:
    """The stores behind a URL; see `event_store.urls.open_store`."""
    events = await open_store(url, writes=writes, shared=shared)
    if not isinstance(events, SqliteEventStore):
        return Stores(events, RedisCatalogStore(events.commands))
    try:
        return Stores(events, await asyncio.to_thread(SqliteCatalogStore, events.file))
    except BaseException:
        await events.close()
        raise
