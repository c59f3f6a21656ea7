"""Items in Redis or Valkey, one server or a cluster, beside the events.

The whole catalogue is in one hash slot, so on one server of a cluster, and moves as a whole when that slot does. That
gives every change its revision from one place: who follows the changes sees them in one order and misses none, and each
script changes an item and its revision at once. A catalogue spread over slots would need a revision for each of them,
and its pages would have to be merged. It would spread little: each server of Longtide keeps what it recommends by in
memory too, and a million items of 2 kB are some gigabytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from longtide_server.catalog_store import PIECE_BYTES, Changes, ItemPage, Refused, Revision, Upserted
from longtide_server.catalog_store.records import from_record, told_apart
from longtide_server.catalog_store.redis_scripts import CHANGES, DELETE, PAGE, READ, UPSERT
from longtide_server.catalog_store.writes import Sent, Write, bytes_of, merged, stamped, vector_violation, whole
from longtide_server.errors import Unavailable
from longtide_server.event_store.backlog import Backlog
from longtide_server.event_store.redis_commands import PREFIX, Commands, text
from longtide_server.items.item import Item
from longtide_server.items.item_fields import Fields

MAX_WAITING_BYTES = 64_000_000
# So much goes in one script, since Redis does nothing else meanwhile:
SCRIPT_BYTES = 1_000_000
SCRIPT_ITEMS = 500
SCRIPT_MERGED_ITEMS = 100  # whatever is stored of them already
SCRIPT_IDS = 1_000
MAX_TRIES = 50
"""How often the change of an item is tried anew because others were faster: those that only begin."""

# No owner of events is named so: theirs begin with `user:` or `session:`.
KEYS = tuple(f"{PREFIX}{{catalog}}:{name}" for name in ("items", "ids", "changes", "meta"))
ITEMS, _, _, META = KEYS
OVERTAKEN = f"{PREFIX}{{catalog}}:overtaken"
"""Whoever's write was too late holds this while trying again."""
ANY = b""
"""As the revision that an item must have: whichever it has."""
WRONG_VECTOR = (2, 3)
"""As UPSERT answers."""

Stored = tuple[bytes, bytes]
"""The revision of an item's last change, and its record or nothing."""
Change = tuple[int, bytes, Sent]
"""The place in a batch, the revision that the item must have, and what becomes of it."""


class RedisCatalogStore:
    """A CatalogStore over a connection that others close."""

    shared = True

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._backlog = Backlog(MAX_WAITING_BYTES, "bytes of items")
        self._overtaken = asyncio.Lock()
        """So that of one server only one write at a time asks for OVERTAKEN, in the order in which they came."""

    def stamp(self) -> None:
        """See CatalogStore: Redis is asked for the changes."""

    async def upsert(self, items: Sequence[Item], fields: Fields | None, now_s: float) -> Upserted:
        """See CatalogStore."""
        written = stamped(items, now_s)
        sent = [whole(item) for item in written]
        refused: list[Refused] = []
        with self._waiting(bytes_of(sent)):
            for places in _pieces(sent, SCRIPT_ITEMS if fields is None else SCRIPT_MERGED_ITEMS):
                refused += await self._upsert(places, written, sent, fields)
        return Upserted(len(items) - len(refused), sorted(refused, key=lambda one: one.index))

    async def get(self, item_id: str) -> Item | None:
        """See CatalogStore."""
        record = await self._commands.run("HGET", ITEMS, item_id)
        return None if record is None else from_record(item_id, record)

    async def page(self, size: int, after: str = "") -> ItemPage:
        """See CatalogStore."""
        more = True
        while more:
            begin = f"({after}" if after else "-"
            more, *found = await self._commands.evaluate(PAGE, KEYS, begin, size, PIECE_BYTES)
            rows = [(text(item_id), record) for item_id, record in zip(found[::2], found[1::2], strict=True)]
            items, _ = told_apart(rows)
            if items:
                return ItemPage(items, bool(more))
            after = rows[-1][0] if rows else after
        return ItemPage((), False)

    async def delete(self, item_ids: Sequence[str]) -> int:
        """See CatalogStore."""
        deleted = 0
        with self._waiting(sum(map(len, item_ids))):
            for at in range(0, len(item_ids), SCRIPT_IDS):
                deleted += int(await self._commands.evaluate(DELETE, KEYS, *item_ids[at : at + SCRIPT_IDS]))
        return deleted

    async def changes(self, since: Revision, limit: int) -> Changes:
        """See CatalogStore."""
        more, restarted, *found = await self._commands.evaluate(CHANGES, KEYS, *since, limit, PIECE_BYTES)
        rows = [(text(found[at]), int(found[at + 1]), found[at + 2]) for at in range(0, len(found), 3)]
        begin = Revision() if restarted else since
        items, deleted = told_apart((item_id, record) for item_id, _, record in rows)
        return Changes(
            items=items,
            deleted=deleted,
            revision=Revision(rows[-1][1], rows[-1][0]) if rows else begin,
            more=bool(more),
            restarted=bool(restarted),
        )

    async def revision(self) -> Revision:
        """See CatalogStore."""
        number, last = await self._commands.run("HMGET", META, "revision", "last")
        return Revision(int(number or 0), text(last or ""))

    @contextmanager
    def _waiting(self, size: int) -> Iterator[None]:
        self._backlog.enter(size)
        try:
            yield
        finally:
            self._backlog.leave(size)

    async def _upsert(
        self, places: Sequence[int], items: Sequence[Item], sent: Sequence[Sent], fields: Fields | None
    ) -> list[Refused]:
        """Write the items in some places of a batch. Those that others change meanwhile are changed anew.

        Of those who were too late, one at a time tries again, and is told what is stored by then: the next try is one
        way to Redis and back, where a change that begins is two. So each of them is done soon, whoever else begins.
        """
        if fields is None:
            refused, _ = await self._write([(place, ANY, sent[place]) for place in places])
            return refused
        refused, overtaken = await self._write(_merged(await self._stored(places, items), items, fields))
        if not overtaken:
            return refused
        async with self._overtaken, self._commands.alone(OVERTAKEN):
            stored = await self._stored(list(overtaken), items)
            for _ in range(MAX_TRIES):
                found, stored = await self._write(_merged(stored, items, fields))
                refused += found
                if not stored:
                    return refused
        raise Unavailable("other servers change the same items again and again")

    async def _stored(self, places: Sequence[int], items: Sequence[Item]) -> dict[int, Stored]:
        """What is stored of the items in some places of a batch."""
        found = await self._commands.evaluate(READ, KEYS, *(items[place].item_id for place in places))
        return dict(zip(places, zip(found[::2], found[1::2], strict=True), strict=True))

    async def _write(self, changes: Sequence[Change]) -> tuple[list[Refused], dict[int, Stored]]:
        """Write what can be written; what is refused, and what is stored where others were faster."""
        refused = [Refused(place, one) for place, _, one in changes if not isinstance(one, Write)]
        ready = [(place, revision, one) for place, revision, one in changes if isinstance(one, Write)]
        arguments = (
            part for _, revision, one in ready for part in (one.item_id, revision, *one.vector_sizes, one.record)
        )
        text_size, image_size, *outcomes = await self._commands.evaluate(UPSERT, KEYS, *arguments)
        overtaken: dict[int, Stored] = {}
        for (place, _, write), outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, list):
                revision, record = outcome
                overtaken[place] = revision, record
            elif outcome in WRONG_VECTOR:
                index = WRONG_VECTOR.index(outcome)
                declared = (text_size, image_size)[index]
                refused.append(Refused(place, vector_violation(index, write.vector_sizes[index], declared)))
        return refused, overtaken


def _merged(stored: Mapping[int, Stored], items: Sequence[Item], fields: Fields) -> list[Change]:
    """What some fields of the items in those places make of what is stored of them."""
    return [(place, revision, merged(record, items[place], fields)) for place, (revision, record) in stored.items()]


def _pieces(sent: Sequence[Sent], most: int) -> Iterator[list[int]]:
    """The places of a batch, in as many pieces as scripts are needed."""
    piece: list[int] = []
    size = 0
    for place, one in enumerate(sent):
        if piece and (len(piece) == most or size >= SCRIPT_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(place)
        size += len(one.record) if isinstance(one, Write) else 0
    if piece:
        yield piece
