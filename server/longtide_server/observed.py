"""The encoder and the event store as they are, with an observer who is told of every call."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from longtide_server.attribution import Shown
from longtide_server.encoder import Encoded, Encoder, Steps
from longtide_server.event_store import Deleted, EventStore, History, Known, Merged, Place, Written
from longtide_server.events import Event
from longtide_server.observer import Observer


class ObservedEncoder:
    """An Encoder; the observer is told of the calls that reach the one behind it."""

    def __init__(self, encoder: Encoder, observer: Observer) -> None:
        self._encoder = encoder
        self._observer = observer

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded]:
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

    async def write(self, events: Sequence[Event]) -> Written:
        """See EventStore."""
        with self._told("write"):
            return await self._store.write(events)

    async def history(self, owner: str, known: Known | None = None) -> History:
        """See EventStore."""
        with self._told("history"):
            return await self._store.history(owner, known)

    async def merge(self, source: str, target: str) -> Merged:
        """See EventStore."""
        with self._told("merge"):
            return await self._store.merge(source, target)

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """See EventStore."""
        with self._told("delete"):
            return await self._store.delete(owner, now_s)

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """See EventStore."""
        with self._told("page"):
            return await self._store.page(owner, size, before)

    async def expire(self, kept_from_s: Mapping[int, float]) -> AsyncIterator[Mapping[str, int]]:
        """See EventStore."""
        with self._told("expire"):
            async for piece in self._store.expire(kept_from_s):
                yield piece

    async def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """See EventStore."""
        with self._told("everything"):
            async for piece in self._store.everything():
                yield piece

    async def add_shown(self, counts: Mapping[Shown, int]) -> None:
        """See EventStore."""
        with self._told("add_shown"):
            await self._store.add_shown(counts)

    async def shown(self) -> Mapping[Shown, int]:
        """See EventStore."""
        with self._told("shown"):
            return await self._store.shown()

    async def probe(self) -> None:
        """See EventStore."""
        with self._told("probe"):
            await self._store.probe()

    async def close(self) -> None:
        """See EventStore."""
        await self._store.close()

    @contextmanager
    def _told(self, operation: str) -> Iterator[None]:
        begun_s = time.perf_counter()
        try:
            yield
        except Exception as exc:
            self._observer.store_call(operation, begun_s, exc)
            raise
        self._observer.store_call(operation, begun_s, None)
