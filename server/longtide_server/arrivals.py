"""Has new items placed as they are written: their texts are read, and the content tower makes vectors of what they say.

Only ids wait in memory: an item is read from the catalogue when its turn comes, as it is then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.catalog import Catalog
from longtide_server.content import ContentTower, info_of, item_text
from longtide_server.errors import LongtideError
from longtide_server.event_store import Written
from longtide_server.events import EventType
from longtide_server.item import Item
from longtide_server.newcomers import MAX_NEWCOMERS, Newcomers
from longtide_server.user_state import UserState

ITEMS_AT_ONCE = 32
READ_TIMEOUT_S = 60.0
TRY_AGAIN_S = 5.0
LONGEST_PAUSE_S = 300.0

log = structlog.get_logger(__name__)


class TextReader(Protocol):
    """Turns texts into vectors."""

    async def encode(self, texts: Sequence[str], timeout_s: float) -> NDArray[np.float32]:
        """(n, E) for n texts that are not empty."""
        ...


class Arrivals:
    """Follows the catalogue, for the new items of one snapshot."""

    def __init__(
        self,
        catalog: Catalog,
        tower: ContentTower,
        newcomers: Newcomers,
        read: Callable[[str], Awaitable[Item | None]],
        texts: TextReader,
    ) -> None:
        """`read` gives an item as the catalogue has it."""
        self._catalog = catalog
        self._tower = tower
        self._newcomers = newcomers
        self._read = read
        self._texts = texts
        self._due: dict[str, None] = {}
        """Ids, in the order in which they were written."""
        self._current: set[str] = set()
        """Ids whose turn it is, less those that are deleted meanwhile."""
        self._full = False
        self._placing: asyncio.Task[None] | None = None

    def apply(self, items: Sequence[Item], deleted: Sequence[str]) -> None:
        """Have items that the snapshot does not know placed soon, and let those go that are deleted."""
        for item in items:
            if not self._catalog.number(item.item_id):
                self._wait(item.item_id)
        for item_id in deleted:
            self._due.pop(item_id, None)
            self._current.discard(item_id)
            self._newcomers.remove(item_id)
        if self._due and (self._placing is None or self._placing.done()):
            self._placing = asyncio.create_task(self._place(), name="arrivals")

    async def close(self) -> None:
        """Place no more items."""
        if self._placing is not None:
            self._placing.cancel()
            await asyncio.wait((self._placing,))

    def _wait(self, item_id: str) -> None:
        """Have an item placed, as long as there is room for it."""
        if len(self._due) < MAX_NEWCOMERS and self._newcomers.has_room_for(item_id):
            self._due[item_id] = None
        elif not self._full:
            self._full = True
            log.warning("too_many_new_items", most=MAX_NEWCOMERS)

    async def _place(self) -> None:
        pause_s = TRY_AGAIN_S
        while self._due:
            ids = [*self._due][:ITEMS_AT_ONCE]
            for item_id in ids:
                del self._due[item_id]
            self._current = set(ids)
            try:
                items = [item for item_id in ids if (item := await self._read(item_id)) is not None]
            except LongtideError as exc:
                await self._try_again(ids, pause_s, exc)
                continue
            try:
                self._put(items, await self._vectors(items))
                pause_s = TRY_AGAIN_S
            except LongtideError as exc:
                # What else is known of them places some; the others wait for somebody who can read.
                self._put(items, [self._tower.item_vector(item, None) for item in items])
                await self._try_again(ids, pause_s, exc)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _put(self, items: Sequence[Item], vectors: Sequence[NDArray[np.float32] | None]) -> None:
        """Place items; those of which nothing is known have no place, and those that were deleted meanwhile neither."""
        for item, vector in zip(items, vectors, strict=True):
            if item.item_id not in self._current:
                continue
            if vector is None:
                self._newcomers.remove(item.item_id)
            else:
                self._newcomers.put(item.item_id, vector)

    async def _try_again(self, ids: Sequence[str], pause_s: float, exc: LongtideError) -> None:
        log.warning("new_items_not_read", waiting=len(ids) + len(self._due), again_in_s=pause_s, reason=str(exc))
        self._due |= dict.fromkeys(item_id for item_id in ids if item_id in self._current)
        await asyncio.sleep(pause_s)

    async def _vectors(self, items: Sequence[Item]) -> list[NDArray[np.float32] | None]:
        """What the tower makes of each item."""
        texts = [item_text(info_of(item)) if self._tower.text_model else "" for item in items]
        wanted = [text for text in dict.fromkeys(texts) if text]
        read = dict(zip(wanted, await self._texts.encode(wanted, READ_TIMEOUT_S), strict=True)) if wanted else {}
        return [self._tower.item_vector(item, read.get(text)) for item, text in zip(items, texts, strict=True)]


class Pulls:
    """Follows the events: whoever turns to a new item pulls it towards what they wanted at that moment."""

    def __init__(self, newcomers: Newcomers, remembered: Callable[[str], UserState]) -> None:
        """`remembered` gives what is known of the owner of a history, without the events that are told here."""
        self._newcomers = newcomers
        self._remembered = remembered

    def apply(self, written: Written) -> None:
        """Let what is new be felt."""
        for owner, appended in written.appended.items():
            items = dict.fromkeys(event.item_id for event in appended.events if event.type != EventType.DISLIKE)
            pleasing = [item_id for item_id in items if item_id in self._newcomers]
            user = self._remembered(owner) if pleasing else None
            if user is None or user.encoded is None:
                continue
            for item_id in pleasing:
                if item_id not in user.unknown:  # whoever comes back does not count again
                    self._newcomers.please(item_id, user.encoded.query)

    def forget(self, names: Iterable[str]) -> None:
        """Sums hold no names: there is nothing to forget."""
