"""The encoder and the stores as they are, with an observer who is told of every call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from longtide_server.attribution import Shown
from longtide_server.catalog_store import CatalogStore, Changes, ItemPage, Revision, Upserted
from longtide_server.encoder import Encoded, Encoder, Steps
from longtide_server.errors import DeadlineExceeded
from longtide_server.event_store import Deleted, EventStore, History, Known, Merged, Place, Written
from longtide_server.events import Event
from longtide_server.items.item import Item
from longtide_server.items.item_fields import Fields
from longtide_server.observer import Observer


class ObservedEncoder:
    """An Encoder; the observer is told of the calls that reach the one behind it."""

    def __init__(self, encoder: Encoder, observer: Observer) -> None:
        self._encoder = encoder
        self._observer = observer

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """See Encoder."""
        begun_s, events = time.perf_counter(), sum(len(steps.items) for steps in batch)
        try:
            found = await self._encoder.encode(batch, timeout_s)
        except Exception as exc:
            self._observer.encoder_call(len(batch), events, begun_s, exc)
            raise
        self._observer.encoder_call(len(batch), events, begun_s, None)
        return found

    async def close(self) -> None:
        """See Encoder."""
        await self._encoder.close()


class ObservedStore:
    """An EventStore; the observer is told of each call to the one behind it."""

    def __init__(self, store: EventStore, observer: Observer) -> None:
        self._store = store
        self._observer = observer
        self.shared = store.shared

    def stamp(self) -> object:
        """See EventStore. A matter of microseconds, which nobody is told of."""
        return self._store.stamp()

    async def identity(self) -> str:
        """See EventStore."""
        with _told(self._observer, "identity"):
            return await self._store.identity()

    async def write(self, events: Sequence[Event]) -> Written:
        """See EventStore."""
        with _told(self._observer, "write"):
            return await self._store.write(events)

    async def history(self, owner: str, known: Known | None = None) -> History:
        """See EventStore."""
        with _told(self._observer, "history"):
            return await self._store.history(owner, known)

    async def merge(self, source: str, target: str) -> Merged:
        """See EventStore."""
        with _told(self._observer, "merge"):
            return await self._store.merge(source, target)

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """See EventStore."""
        with _told(self._observer, "delete"):
            return await self._store.delete(owner, now_s)

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """See EventStore."""
        with _told(self._observer, "page"):
            return await self._store.page(owner, size, before)

    async def expire(self, kept_from_s: Mapping[int, float]) -> AsyncIterator[Mapping[str, int]]:
        """See EventStore."""
        with _told(self._observer, "expire"):
            async for piece in self._store.expire(kept_from_s):
                yield piece

    async def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """See EventStore."""
        with _told(self._observer, "everything"):
            async for piece in self._store.everything():
                yield piece

    async def add_shown(self, counts: Mapping[Shown, int], flush_id: str) -> None:
        """See EventStore."""
        with _told(self._observer, "add_shown"):
            await self._store.add_shown(counts, flush_id)

    async def shown(self) -> Mapping[Shown, int]:
        """See EventStore."""
        with _told(self._observer, "shown"):
            return await self._store.shown()

    async def probe(self) -> None:
        """See EventStore."""
        with _told(self._observer, "probe"):
            await self._store.probe()

    async def close(self) -> None:
        """See EventStore."""
        await self._store.close()


class ObservedCatalogStore:
    """A CatalogStore; the observer is told of each call to the one behind it."""

    def __init__(self, store: CatalogStore, observer: Observer) -> None:
        self._store = store
        self._observer = observer
        self.shared = store.shared

    def stamp(self) -> object:
        """See CatalogStore. A matter of microseconds, which nobody is told of."""
        return self._store.stamp()

    async def upsert(self, items: Sequence[Item], fields: Fields | None, now_s: float) -> Upserted:
        """See CatalogStore."""
        with _told(self._observer, "upsert_items"):
            return await self._store.upsert(items, fields, now_s)

    async def get(self, item_id: str) -> Item | None:
        """See CatalogStore."""
        with _told(self._observer, "get_item"):
            return await self._store.get(item_id)

    async def page(self, size: int, after: str = "") -> ItemPage:
        """See CatalogStore."""
        with _told(self._observer, "page_items"):
            return await self._store.page(size, after)

    async def delete(self, item_ids: Sequence[str]) -> int:
        """See CatalogStore."""
        with _told(self._observer, "delete_items"):
            return await self._store.delete(item_ids)

    async def changes(self, since: Revision, limit: int) -> Changes:
        """See CatalogStore."""
        with _told(self._observer, "item_changes"):
            return await self._store.changes(since, limit)

    async def revision(self) -> Revision:
        """See CatalogStore."""
        with _told(self._observer, "item_revision"):
            return await self._store.revision()


@contextmanager
def _told(observer: Observer, operation: str) -> Iterator[None]:
    begun_s = time.perf_counter()
    try:
        yield
    except Exception as exc:
        observer.store_call(operation, begun_s, exc)
        raise
    except asyncio.CancelledError:  # of a store that hangs, nothing else is ever heard
        observer.store_call(operation, begun_s, DeadlineExceeded("nobody waits for the answer any longer"))
        raise
    observer.store_call(operation, begun_s, None)
