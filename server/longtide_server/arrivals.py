"""Has new items placed as they are written: the content tower makes vectors of what they say.

What needs no text places an item at once. Its text is read in another line, and it is placed again then. Only ids wait
in memory: an item is read from the catalogue when its turn comes, as it is then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.catalog import Catalog
from longtide_server.content import ContentTower, info_of, item_text
from longtide_server.event_store import Written
from longtide_server.events import EventType
from longtide_server.item import Item
from longtide_server.newcomers import MAX_NEWCOMERS, Newcomers
from longtide_server.turns import Turns
from longtide_server.user_state import UserState
from longtide_server.waiting_line import WaitingLine

READ_TIMEOUT_S = 60.0

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
        self._placing = WaitingLine("placed", self._place)
        self._reading = WaitingLine("text read", self._place_by_text)
        self._full = False

    def apply(self, items: Sequence[Item], deleted: Sequence[str]) -> None:
        """Have items that the snapshot does not know placed soon, and let those go that are deleted."""
        for item in items:
            if not self._catalog.number(item.item_id):
                self._wait(item.item_id)
        for item_id in deleted:
            self._placing.remove(item_id)
            self._reading.remove(item_id)
            self._newcomers.remove(item_id)

    async def close(self) -> None:
        """Place no more items."""
        await self._placing.close()
        await self._reading.close()

    def _wait(self, item_id: str) -> None:
        """Have an item placed, as long as there is room for it."""
        self._reading.remove(item_id)  # it may say something else now
        if len(self._placing) < MAX_NEWCOMERS and self._newcomers.has_room_for(item_id):
            self._placing.add(item_id)
        elif not self._full:
            self._full = True
            log.warning("too_many_new_items", most=MAX_NEWCOMERS)

    async def _place(self, ids: Sequence[str]) -> None:
        """Place items by what needs no text, and have their texts read; who has a place keeps it until then."""
        for item_id in ids:
            item = await self._read(item_id)
            if item is None or not self._placing.is_turn_of(item_id):
                continue
            has_text = bool(self._text(item))
            vector = self._tower.item_vector(item, None)
            if not has_text or (vector is not None and item_id not in self._newcomers):
                self._put(item, vector)
            if has_text:
                self._reading.add(item_id)

    async def _place_by_text(self, ids: Sequence[str]) -> None:
        """Place items by everything that they say."""
        items = [item for item_id in ids if (item := await self._read(item_id)) is not None]
        texts = [self._text(item) for item in items]
        wanted = [text for text in dict.fromkeys(texts) if text]
        read = dict(zip(wanted, await self._texts.encode(wanted, READ_TIMEOUT_S), strict=True)) if wanted else {}
        turns = Turns()
        for item, text in zip(items, texts, strict=True):
            if self._reading.is_turn_of(item.item_id):
                self._put(item, self._tower.item_vector(item, read.get(text)))
            await turns.pause()

    def _text(self, item: Item) -> str:
        """What the language model reads of an item; empty where nothing, or where there is none."""
        return item_text(info_of(item)) if self._tower.text_model else ""

    def _put(self, item: Item, vector: NDArray[np.float32] | None) -> None:
        """Place an item; of which nothing is known has no place."""
        if vector is None:
            self._newcomers.remove(item.item_id)
        else:
            self._newcomers.put(item.item_id, vector)


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
