"""Events in one SQLite file: embedded, durable, nothing to install."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from longtide_server.attribution import Shown
from longtide_server.event_store import Deleted, History, Known, Merged, Place, Written, sqlite_log
from longtide_server.event_store.backlog import MAX_WAITING_EVENTS, Backlog
from longtide_server.event_store.sqlite_file import SqliteFile
from longtide_server.events import Event

PIECE_EVENTS = 10_000


class SqliteEventStore:
    """An EventStore in the file `path`, which is made when it is not there."""

    def __init__(self, path: Path, *, writes: bool = True, shared: bool = False) -> None:
        """See SqliteFile."""
        self.file = SqliteFile(path, writes=writes, shared=shared)
        self.shared = shared
        self._watch = self.file.watch(sqlite_log.STAMP) if shared else None
        self._backlog = Backlog(MAX_WAITING_EVENTS, "events")

    def stamp(self) -> object:
        """See EventStore."""
        return None if self._watch is None else self._watch.stamp()

    async def identity(self) -> str:
        """See EventStore."""
        return await self.file.read(sqlite_log.identity)

    async def write(self, events: Sequence[Event]) -> Written:
        """See EventStore."""
        count = len(events)
        return await self.file.change(
            lambda connection: sqlite_log.append(connection, events), count, self._backlog, count
        )

    async def history(self, owner: str, known: Known | None = None) -> History:
        """See EventStore."""
        return await self.file.read(lambda connection: sqlite_log.read_history(connection, owner, known))

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """See EventStore."""
        return await self.file.read(lambda connection: sqlite_log.read_page(connection, owner, size, before))

    async def merge(self, source: str, target: str) -> Merged:
        """See EventStore."""
        return await self.file.change(lambda connection: sqlite_log.merge(connection, source, target))

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """See EventStore. Nothing is left of the events in the files, as soon as nobody reads them any more."""
        return await self.file.change(lambda connection: sqlite_log.delete(connection, owner, now_s), erases=True)

    async def expire(self, kept_from_s: Mapping[int, float]) -> AsyncIterator[Mapping[str, int]]:
        """See EventStore. A piece is a transaction, so that writers have their turn between the pieces."""
        after = 0
        while True:
            expire = partial(sqlite_log.expire, kept_from_s=kept_from_s, after=after, size=PIECE_EVENTS)
            last, gone = await self.file.change(expire)
            if last == after:
                return
            after = last
            yield gone

    async def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """See EventStore."""
        after = 0
        while True:
            after, piece = await self.file.read(partial(sqlite_log.read_piece, after=after, size=PIECE_EVENTS))
            if not piece:
                return
            yield piece

    async def add_shown(self, counts: Mapping[Shown, int], flush_id: str) -> None:
        """See EventStore."""
        await self.file.change(lambda connection: sqlite_log.add_shown(connection, counts, flush_id))

    async def shown(self) -> Mapping[Shown, int]:
        """See EventStore."""
        return await self.file.read(sqlite_log.read_shown)

    async def probe(self) -> None:
        """See EventStore. The write is durable as that of an event is: a full disk is no less full for a reader."""
        await self.file.change(sqlite_log.touch)
        await self.file.read(sqlite_log.look)

    async def close(self) -> None:
        """See EventStore."""
        await self.file.close()
