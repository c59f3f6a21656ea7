"""Items in Redis or Valkey, one server or a cluster, beside the events.

The whole catalogue is in one hash slot, so on one server of a cluster, and moves as a whole when that slot does. That
gives every change its revision from one place: who follows the changes sees them in one order and misses none, and each
script changes an item and its revision at once. A catalogue spread over slots would need a revision for each of them,
and its pages would have to be merged. It would spread little: each server of Longtide keeps what it recommends by in
memory too, and a million items of 2 kB are some gigabytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
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
"""How often the change of an item is tried anew because another server was faster; of those, one succeeds each time."""

# No owner of events is named so: theirs begin with `user:` or `session:`.
KEYS = tuple(f"{PREFIX}{{catalog}}:{name}" for name in ("items", "ids", "changes", "meta"))
ITEMS, _, _, META = KEYS
ANY = b""
"""As the revision that an item must have: whichever it has."""
CHANGED_MEANWHILE, WRONG_VECTOR = 1, (2, 3)  # as UPSERT answers


class RedisCatalogStore:
    """A CatalogStore over a connection that others close."""

    shared = True

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._backlog = Backlog(MAX_WAITING_BYTES, "bytes of items")
        self._overtaken = asyncio.Lock()
        """For writes that others were faster than, so that those of one server are not in each other's way again."""

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
        """Write the items in some places of a batch. Those that others change meanwhile are changed anew."""
        refused, overtaken = await self._try(places, items, sent, fields)
        if not overtaken:
            return refused
        async with self._overtaken:
            for _ in range(MAX_TRIES):
                found, overtaken = await self._try(overtaken, items, sent, fields)
                refused += found
                if not overtaken:
                    return refused
        raise Unavailable("other servers change the same items again and again")

    async def _try(
        self, places: Sequence[int], items: Sequence[Item], sent: Sequence[Sent], fields: Fields | None
    ) -> tuple[list[Refused], list[int]]:
        """Write what can be written; what is refused, and where others were faster."""
        found = [(ANY, sent[place]) for place in places]
        if fields is not None:
            found = await self._merged([items[place] for place in places], fields)
        refused: list[Refused] = []
        overtaken: list[int] = []
        ready: list[tuple[int, bytes, Write]] = []
        for place, (revision, one) in zip(places, found, strict=True):
            if isinstance(one, Write):
                ready.append((place, revision, one))
            else:
                refused.append(Refused(place, one))
        for (place, _, write), (outcome, declared) in zip(ready, await self._written(ready), strict=True):
            if outcome == CHANGED_MEANWHILE:
                overtaken.append(place)
            elif outcome in WRONG_VECTOR:
                index = WRONG_VECTOR.index(outcome)
                refused.append(Refused(place, vector_violation(index, write.vector_sizes[index], declared[index])))
        return refused, overtaken

    async def _written(self, ready: Sequence[tuple[int, bytes, Write]]) -> list[tuple[int, tuple[int, int]]]:
        """What became of each write, with the sizes of vectors that are declared."""
        parts = [(write.item_id, revision, *write.vector_sizes, write.record) for _, revision, write in ready]
        arguments = (part for one in parts for part in one)
        text_size, image_size, *outcomes = await self._commands.evaluate(UPSERT, KEYS, *arguments)
        return [(outcome, (text_size, image_size)) for outcome in outcomes]

    async def _merged(self, items: Sequence[Item], fields: Fields) -> list[tuple[bytes, Sent]]:
        """What some fields of each item make of what is stored of it, and the revision of that."""
        found = await self._commands.evaluate(READ, KEYS, *(item.item_id for item in items))
        rows = zip(items, found[::2], found[1::2], strict=True)
        return [(revision, merged(record, item, fields)) for item, revision, record in rows]


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
