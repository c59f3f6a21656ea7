"""What a process has that answers calls."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from longtide_server.app.background import cancelled
from longtide_server.app.encoders import Encoders
from longtide_server.app.observers import Watching
from longtide_server.app.opener import Opener
from longtide_server.catalog.catalog_writer import CatalogWriter, keep_refreshing
from longtide_server.catalog.freshness import Freshness
from longtide_server.catalog.live_catalogs import LiveCatalogs
from longtide_server.catalog_store import CatalogStore
from longtide_server.config import ServerConfig
from longtide_server.event_store import EventStore
from longtide_server.feedback import Feedback
from longtide_server.serving.canary import Bars
from longtide_server.serving.servings import Servings
from longtide_server.snapshot import Snapshot
from longtide_server.stores import Stores
from longtide_server.users.history_writer import HistoryWriter
from longtide_server.watching.observed import ObservedCatalogStore, ObservedStore


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a process has that answers calls."""

    store: EventStore
    items: CatalogStore
    writer: HistoryWriter
    catalog: CatalogWriter
    feedback: Feedback
    servings: Servings
    watching: Watching


async def build_parts(
    config: ServerConfig,
    snapshot: Snapshot,
    stores: Stores,
    encoders: Encoders,
    states: Path,
    watching: Watching,
    stack: AsyncExitStack,
) -> Parts:
    """Build what answers calls, over opened stores. `states`: the folder where this process saves encoder states."""
    observer = watching.observer
    store, items = ObservedStore(stores.events, observer), ObservedCatalogStore(stores.items, observer)
    stack.push_async_callback(store.close)
    writer, feedback, catalog = HistoryWriter(store), Feedback(store, time.time), CatalogWriter(items)
    live_catalogs, freshness = LiveCatalogs(catalog.everything), Freshness()
    await catalog.add(live_catalogs)

    def stale() -> str:
        return freshness.stale_reason() or catalog.behind_reason()

    opener = Opener(config, store, items, writer, feedback, live_catalogs, stale, encoders, states, watching)
    first = await opener.serve(snapshot)
    servings = Servings(first, opener.open, Bars(latency_s=config.canary_latency_s), observer)
    stack.push_async_callback(servings.close)
    stack.push_async_callback(writer.close)
    stack.push_async_callback(catalog.close)
    if items.shared:
        refreshing = asyncio.create_task(keep_refreshing(catalog, config.catalog_refresh_every_s, freshness))
        stack.push_async_callback(cancelled, refreshing)
    stack.push_async_callback(feedback.flush)
    stack.push_async_callback(cancelled, asyncio.create_task(feedback.keep_flushing()))
    return Parts(store, items, writer, catalog, feedback, servings, watching)
