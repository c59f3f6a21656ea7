"""Gathers a page of the catalogue: as many items as are wanted, as a plain client can take in one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from longtide.v1 import catalog_pb2
from longtide_server.catalog_store import CatalogStore
from longtide_server.items.item import Item
from longtide_server.rpc.item_messages import write_item
from longtide_server.rpc.streams import MAX_ANSWER_BYTES

MAX_LOOKED_AT = 10_000
LEAST_AT_ONCE, MOST_AT_ONCE = 20, 100  # are read, whatever the size of the page


@dataclass(frozen=True, slots=True)
class Listed:
    """A page."""

    messages: list[catalog_pb2.Item]
    """By ascending id."""
    last: str | None
    """The id after which the next page begins; none when there are no further items."""


async def listed(store: CatalogStore, size: int, after: str, passes: Callable[[Item], bool]) -> Listed:
    """The next `size` items that pass, or fewer: where they are large, or after 10,000 items were looked at."""
    messages: list[catalog_pb2.Item] = []
    page_bytes = looked_at = 0
    while True:
        wanted = size - len(messages)
        page = await store.page(min(max(wanted, LEAST_AT_ONCE), MOST_AT_ONCE), after)
        for item in page.items:
            if len(messages) == size:
                return Listed(messages, after)
            if passes(item):
                message = write_item(item)
                page_bytes += message.ByteSize()
                if messages and page_bytes > MAX_ANSWER_BYTES:
                    return Listed(messages, after)
                messages.append(message)
            after = item.item_id
        looked_at += len(page.items)
        if not page.more:
            return Listed(messages, None)
        if len(messages) == size or looked_at >= MAX_LOOKED_AT:
            return Listed(messages, after)
        await asyncio.sleep(0)
