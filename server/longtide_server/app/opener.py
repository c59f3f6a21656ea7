"""Builds everything that belongs to one snapshot, when it is activated."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog

from longtide_server.app.background import cancelled
from longtide_server.app.encoders import Encoders
from longtide_server.app.observers import Watching
from longtide_server.app.saving import STATES, keep_saving, save_everything, saved_states
from longtide_server.catalog.catalog_writer import ItemCopies
from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.catalog.live_catalogs import LiveCatalogs, Together
from longtide_server.catalog_store import CatalogStore
from longtide_server.config import ServerConfig
from longtide_server.encoder.breaking import BreakingEncoder
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.event_store import EventStore
from longtide_server.feedback import Feedback
from longtide_server.items.text_cache import TextCache, cache_folder
from longtide_server.new_items.arrivals import Arrivals
from longtide_server.new_items.new_items import NewItems
from longtide_server.new_items.newcomers import Newcomers
from longtide_server.new_items.pulls import Pulls
from longtide_server.new_items.text_encoder import TextEncoder
from longtide_server.observer import Gauges
from longtide_server.recommender import Recommender
from longtide_server.serving.item_finder import ItemFinder
from longtide_server.serving.responses import Responses
from longtide_server.serving.serving import Serving
from longtide_server.serving.signals_file import read_signals
from longtide_server.snapshot import Snapshot, load_snapshot
from longtide_server.sources.similar_items import SimilarItems, spaces_of
from longtide_server.sources.trending import Trending
from longtide_server.users.history_writer import HistoryWriter
from longtide_server.users.stepping import Stepper
from longtide_server.users.user_states import UserStates
from longtide_server.watching.observed import ObservedEncoder

TEXTS_PATIENCE_S = 30.0

log = structlog.get_logger(__name__)


class Opener:
    """Opens servings: everything that belongs to one snapshot."""

    def __init__(
        self,
        config: ServerConfig,
        store: EventStore,
        items: CatalogStore,
        writer: HistoryWriter,
        feedback: Feedback,
        catalogs: LiveCatalogs,
        stale_catalog: Callable[[], str],
        encoders: Encoders,
        states: Path,
        watching: Watching,
    ) -> None:
        self._config = config
        self._observer = watching.observer
        self._stages = watching.stages
        self._store = store
        self._items = items
        self._writer = writer
        self._feedback = feedback
        self._catalogs = catalogs
        self._stale_catalog = stale_catalog
        self._encoders = encoders
        self._states = states
        self._counting: list[Trending] = []
        """Of the servings that are open."""

    async def open(self, folder: Path) -> Serving:
        """The serving of a folder's snapshot. SnapshotError when it is damaged, else as `serve`."""
        return await self.serve(await asyncio.to_thread(load_snapshot, folder))

    async def serve(self, snapshot: Snapshot) -> Serving:
        """The serving of a loaded snapshot. Unavailable when its encoder does not start, or a store cannot be read."""
        config, root = self._config, self._config.data_dir / STATES
        async with AsyncExitStack() as stack:
            texts, texts_started = self._texts(snapshot, stack)  # first, for it takes as long as TorchServe
            hosted, batches = await self._encoders(snapshot, stack)
            hosted = ObservedEncoder(hosted, self._observer)
            breaker = BreakingEncoder(hosted, snapshot.manifest.encoder.state_size)
            encoder = CoalescingEncoder(breaker, config.encoder_timeout_s, batches)
            stack.push_async_callback(encoder.close)
            snapshot_id, log_id = snapshot.snapshot_id, await self._store.identity()
            saved = await asyncio.to_thread(saved_states, root, snapshot_id, log_id)
            states = UserStates(
                snapshot, self._store, encoder, config.cached_users, config.encoder_timeout_s, saved, self._observer
            )
            live = await asyncio.to_thread(LiveCatalog, snapshot.catalog)
            signals = await asyncio.to_thread(read_signals, self._states, snapshot_id)
            newcomers = Newcomers(len(snapshot.catalog) + 1, snapshot.manifest.encoder.dim, signals.pulled)
            copies_of_items: ItemCopies = live
            if snapshot.content is not None:
                arrivals = Arrivals(snapshot.catalog, snapshot.content, newcomers, self._items.get, texts, time.time)
                stack.push_async_callback(arrivals.close)
                copies_of_items = Together(live, arrivals)
            pulls = Pulls(newcomers, states)
            # Whoever counts already has heard of every event until now; the file, of those before it was written.
            counts = self._counting[-1].counts() if self._counting else signals.counts
            trending = Trending(snapshot.catalog, time.time, before=counts)
            self._counting.append(trending)
            stack.callback(self._counting.remove, trending)
            save = partial(save_everything, root, self._states, snapshot_id, log_id, states, newcomers, trending)
            stack.push_async_callback(save)
            stack.push_async_callback(cancelled, asyncio.create_task(keep_saving(save)))
            stepper = Stepper(states)
            stack.push_async_callback(stepper.close)
            stack.push_async_callback(pulls.close)
            # In this order: a pull is by whom they were before, and who follows what was written must know of it.
            for copies in (pulls, states, stepper, trending):
                self._writer.add(copies)
                stack.callback(self._writer.remove, copies)
            self._writer.tell(stepper)
            stack.callback(self._writer.tell_no_more, stepper)
            await self._catalogs.add(copies_of_items)
            stack.callback(self._catalogs.remove, copies_of_items)
            shown = partial(self._feedback.shown, snapshot_id)
            new = NewItems(newcomers, live, snapshot.manifest.encoder.temperature, time.time)
            share, stale = config.explore_share, self._stale_catalog
            recommender = Recommender(snapshot, states, self._stages, live, time.time, trending, new, share, stale)
            spaces = await asyncio.to_thread(spaces_of, snapshot.embeddings, snapshot.content_vectors)
            similar = SimilarItems(spaces)
            stack.push_async_callback(cancelled, asyncio.create_task(similar.build()))
            finder = ItemFinder(snapshot, similar, live, new, time.time, stale)
            responses = Responses(recommender, shown, config.cached_users, self._observer)
            self._writer.add(responses)
            stack.callback(self._writer.remove, responses)
            gauges = Gauges(
                users=lambda: states.count,
                answers=lambda: responses.count,
                waiting=lambda: encoder.waiting,
                left_alone=lambda: breaker.is_open,
            )
            self._observer.watch(gauges)
            stack.callback(self._observer.unwatch, gauges)
            await asyncio.wait((texts_started,), timeout=TEXTS_PATIENCE_S)  # then the first new item waits for nothing
            return Serving(snapshot, states, responses, finder, stack.pop_all().aclose)

    def _texts(self, snapshot: Snapshot, stack: AsyncExitStack) -> tuple[TextEncoder, asyncio.Task[None]]:
        """What reads the texts of new items, and its start, which is over at once where no text is to be read."""
        model = "" if snapshot.content is None else snapshot.content.text_model
        cache = TextCache(cache_folder(os.environ), lambda text: log.warning("text_cache", reason=text))
        texts = TextEncoder(model, cache, self._config.text_model)
        stack.push_async_callback(texts.close)
        started = asyncio.create_task(texts.start() if model else asyncio.sleep(0))
        stack.push_async_callback(cancelled, started)
        return texts, started
