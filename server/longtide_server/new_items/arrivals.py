"""Has new items placed as they are written: the content tower makes vectors of what they say.

What needs no text places an item at once. Its text is read in another line, and it is placed again then. Only ids wait
in memory: an item is read from the catalogue when its turn comes, as it is then. Where there are too many, those are
left out that may not be recommended any more, then those that were written first, until there is room for them.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.catalog.catalog import Catalog
from longtide_server.catalog.content import ContentTower, info_of, item_text
from longtide_server.items.item import Item
from longtide_server.new_items.newcomers import MAX_NEWCOMERS, Claim, Newcomers
from longtide_server.new_items.waiting_line import WaitingLine
from longtide_server.turns import Turns

READ_TIMEOUT_S = 60.0
LOOK_FOR_ROOM_EVERY_S = 60.0

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
        clock: Callable[[], float],
    ) -> None:
        """`read` gives an item as the catalogue has it; `clock` gives seconds since 1970."""
        self._catalog = catalog
        self._tower = tower
        self._newcomers = newcomers
        self._read = read
        self._texts = texts
        self._placing = WaitingLine("placed", self._place)
        self._reading = WaitingLine("text read", self._place_by_text)
        self._clock = clock
        self._left_out: OrderedDict[str, None] = OrderedDict()
        """Ids, at most MAX_NEWCOMERS; who was left out first was written first, but for a few."""
        self._looking: asyncio.Task[None] | None = None

    def apply(self, items: Sequence[Item], deleted: Sequence[str]) -> None:
        """Have items that the snapshot does not know placed soon, and let those go that are deleted."""
        for item in items:
            if not self._catalog.number(item.item_id):
                self._take(item)
        for item_id in deleted:
            self._let_go(item_id)

    async def close(self) -> None:
        """Place no more items."""
        await self._placing.close()
        await self._reading.close()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))

    def _take(self, item: Item) -> None:
        """Have an item placed that was written, unless it has expired."""
        if self._expired(item):
            self._let_go(item.item_id)
            return
        self._reading.remove(item.item_id)  # it may say something else now
        self._left_out.pop(item.item_id, None)
        self._newcomers.renew(item.item_id, claim_of(item))
        self._wait(item.item_id, self._placing)

    def _let_go(self, item_id: str) -> None:
        self._placing.remove(item_id)
        self._reading.remove(item_id)
        self._left_out.pop(item_id, None)
        self._newcomers.remove(item_id)

    def _wait(self, item_id: str, line: WaitingLine) -> None:
        """Let an item wait in a line, and leave out the first one where there are too many."""
        line.add(item_id)
        if len(line) > MAX_NEWCOMERS:
            self._leave_out(line.remove_first())

    async def _place(self, ids: Sequence[str]) -> None:
        """Place items by what needs no text, and have their texts read; who has a place keeps it until then."""
        for item_id in ids:
            item = await self._read(item_id)
            if item is None or not self._placing.is_turn_of(item_id) or not self._may_have_place(item):
                continue
            has_text = bool(self._text(item))
            vector = self._tower.item_vector(item, None)
            if not has_text or (vector is not None and item_id not in self._newcomers):
                self._put(item, vector)
            if has_text:
                self._wait(item_id, self._reading)

    async def _place_by_text(self, ids: Sequence[str]) -> None:
        """Place items by everything that they say."""
        found = [await self._read(item_id) for item_id in ids]
        there = [item for item in found if item is not None and self._reading.is_turn_of(item.item_id)]
        items = [item for item in there if self._may_have_place(item)]
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
        elif self._may_have_place(item):
            if not self._newcomers.has_room_for(item.item_id):
                self._make_room()
            self._newcomers.put(item.item_id, vector, claim_of(item))

    def _may_have_place(self, item: Item) -> bool:
        """Whether there is room for an item, or can be made; if not, it is left out until there is."""
        if self._expired(item) or self._newcomers.has_room_for(item.item_id):
            return not self._expired(item)
        now_s = self._clock()
        _, weakest = self._newcomers.weakest(now_s)
        stronger = weakest.at(now_s) < claim_of(item).at(now_s)
        if not stronger and item.available:  # else it is written again before it may appear
            self._leave_out(item.item_id)
        return stronger

    def _expired(self, item: Item) -> bool:
        return item.expire_time_s is not None and item.expire_time_s <= self._clock()

    def _make_room(self) -> None:
        """Take its place from whoever needs it least."""
        now_s = self._clock()
        item_id, claim = self._newcomers.weakest(now_s)
        self._newcomers.give_up(item_id)
        if claim.until_s > now_s:
            self._leave_out(item_id)

    def _leave_out(self, item_id: str) -> None:
        """Remember an item for when there is room, until too many others are to be remembered."""
        if not self._left_out:
            log.warning("too_many_new_items", most=MAX_NEWCOMERS)
        self._left_out[item_id] = None
        self._left_out.move_to_end(item_id)
        if len(self._left_out) > MAX_NEWCOMERS:
            self._left_out.popitem(last=False)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking_for_room(), name="room for new items")

    async def _keep_looking_for_room(self) -> None:
        """Place items that were left out, the newest first, as others expire, go or cannot be had; until none is."""
        while self._left_out:
            await asyncio.sleep(LOOK_FOR_ROOM_EVERY_S)
            room = MAX_NEWCOMERS - self._newcomers.in_need(self._clock()) - len(self._placing)
            for _ in range(min(room, len(self._left_out))):
                item_id, _ = self._left_out.popitem()
                self._wait(item_id, self._placing)


def claim_of(item: Item) -> Claim:
    """What gives an item a place before others."""
    if not item.available:
        return Claim(item.update_time_s, -math.inf)
    return Claim(item.update_time_s, math.inf if item.expire_time_s is None else item.expire_time_s)
