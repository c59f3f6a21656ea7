"""Changes the catalogue, and has every copy that is kept of it feel each change before the change is answered.

Copies are told what the store's feed of changes says, and nothing else. So they are told in the order in which the
store made the changes, by whichever server, and a server over a shared store follows the others in the same way as
itself: now and then, and before each answer where the store says at once that there is something to follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import structlog

from longtide_server.catalog.freshness import Freshness
from longtide_server.catalog_store import CatalogStore, Changes, Revision, Upserted
from longtide_server.errors import LongtideError
from longtide_server.items.item import Item
from longtide_server.items.item_fields import Fields
from longtide_server.turns import Turns
from longtide_server.under_way import UnderWay

PIECE_ITEMS = 200
"""Changes that are read at once."""

CATCH_UP_S = 0.05
"""So long an answer waits for what others have changed. They may be writing a million items."""

BEHIND = "more of the catalogue has changed than could be taken up at once"

T = TypeVar("T")
Piece = tuple[Sequence[Item], Sequence[str]]
"""Items as they are, and ids of items that are deleted. No id is in it twice."""

log = structlog.get_logger(__name__)


class ItemCopies(Protocol):
    """Copies of items in memory."""

    def apply(self, items: Sequence[Item], deleted: Sequence[str]) -> None:
        """Let items be felt as they are from now on, and that others are deleted."""
        ...


class CatalogWriter:
    """The one way to the catalogue for whoever changes it. A change goes on when its caller gives up."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._copies: list[ItemCopies] = []
        self._known = Revision()
        """What the copies have been told."""
        self._stamp: object = None
        """Of the store, before it was asked for changes the last time."""
        self._telling = asyncio.Lock()
        self._asked = self._told = 0
        """How often it was asked to tell the copies, and which of these times are answered."""
        self._given_up = 0
        """The last of these times for whose answer somebody did not wait."""
        self._under_way = UnderWay()

    async def add(self, copies: ItemCopies) -> None:
        """From now on these copies feel changes. What is stored before, they may read from `everything`."""
        async with self._telling:
            if not self._copies:
                self._known = await self._store.revision()
            self._copies.append(copies)

    def remove(self, copies: ItemCopies) -> None:
        """These copies are no longer used."""
        self._copies.remove(copies)

    async def everything(self) -> AsyncIterator[Piece]:
        """All that was stored before this began, deletions included, in pieces that fit into memory.

        An item that is changed meanwhile may come twice, later as it was later. What copies that were added before are
        told meanwhile may be older or newer than what they read; the last that they are told is true.
        """
        until, reached = await self._store.revision(), Revision()
        while reached.number < until.number:
            found = await self._store.changes(reached, PIECE_ITEMS)
            yield found.items, found.deleted
            if not found.more:
                return
            reached = found.revision

    async def upsert(self, items: Sequence[Item], fields: Fields | None, now_s: float) -> Upserted:
        """Write items, then let it be felt. See CatalogStore."""
        return await self._under_way.done(self._felt(self._store.upsert(items, fields, now_s)))

    async def delete(self, item_ids: Sequence[str]) -> int:
        """Delete items, then let it be felt. See CatalogStore."""
        return await self._under_way.done(self._felt(self._store.delete(item_ids)))

    async def refresh(self) -> None:
        """Let the copies feel what has changed since, other servers' changes included; cheap when there is nothing.

        Unavailable when the store does not say; then they may feel some of it.
        """
        if not self._copies:
            return
        self._asked += 1
        asked = self._asked
        async with self._telling:
            if self._told >= asked:
                return  # told to somebody who asked later
            answered, stamp = self._asked, self._store.stamp()
            more = True
            while more:
                more = await self._tell(await self._store.changes(self._known, PIECE_ITEMS))
            self._told, self._stamp = answered, stamp

    async def catch_up(self) -> None:
        """Let the copies feel what others have changed, as far as that is quick: costs nothing when nothing is new.

        Where it is not, `behind_reason` says so until it is done.
        """
        stamp = self._store.stamp()
        if stamp is None or stamp == self._stamp:
            return
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._under_way.done(self.refresh())
        except (TimeoutError, LongtideError):
            self._given_up = self._asked

    def behind_reason(self) -> str:
        """Why the copies may lack what somebody could not wait for; empty once they have been told of it."""
        return BEHIND if self._told < self._given_up else ""

    async def close(self) -> None:
        """Finish what callers have given up on."""
        await self._under_way.close()

    async def _felt(self, change: Awaitable[T]) -> T:
        try:
            found = await change
        except LongtideError:
            with suppress(LongtideError):
                await self.refresh()  # a part of it may be stored
            raise
        await self.refresh()
        return found

    async def _tell(self, changes: Changes) -> bool:
        """Tell all copies; whether there is more to tell."""
        if changes.restarted:
            log.warning("catalogue_changes_lost", known=self._known.number)
        turns = Turns()
        for items, deleted in one_by_one(changes.items, changes.deleted):
            for copies in tuple(self._copies):
                copies.apply(items, deleted)
            await turns.pause()
        self._known = changes.revision
        return changes.more


def one_by_one(items: Sequence[Item], deleted: Sequence[str]) -> Iterator[Piece]:
    """A piece in the smallest ones that there are. An item may hold thousands of words, and take milliseconds."""
    for item in items:
        yield (item,), ()
    for item_id in deleted:
        yield (), (item_id,)


async def keep_refreshing(writer: CatalogWriter, every_s: float, freshness: Freshness) -> None:
    """Follow what other servers change, until it is cancelled; a store that fails is asked again the next time."""
    reason = ""
    while True:
        before, reason = reason, ""
        freshness.asking()
        try:
            await writer.refresh()
        except LongtideError as exc:
            reason = str(exc)
        except Exception as exc:
            log.exception("catalogue_followed_oddly")
            reason = repr(exc)
        freshness.asked(reason)
        if reason and reason != before:
            log.warning("catalogue_not_followed", reason=reason)
        await asyncio.sleep(every_s)
