"""The durable catalogue: what was written of each item, and what has changed since a moment.

Every change has a revision, and a later change a greater one. Of an item the store keeps the last change alone: whoever
follows the changes gets each item as it is now, once, however often it was written meanwhile. A deleted item leaves a
change behind too, so that a copy that knows the item learns that it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from longtide_server.errors import FieldViolation
from longtide_server.items.item import Item
from longtide_server.items.item_fields import Fields

PIECE_BYTES = 4_000_000
"""A page, or a piece of the changes, ends once its records are so many bytes together, be it short by then."""


class Revision(NamedTuple):
    """How far the catalogue has come; later revisions are greater, as long as the store loses nothing."""

    number: int = 0
    last: str = ""
    """The item whose change it is, where a store may lose changes."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An item of a batch that was not written."""

    index: int
    """Its place in the batch, from 0."""
    violation: FieldViolation


@dataclass(frozen=True, slots=True)
class Upserted:
    """What became of a batch of items."""

    written: int
    """How many are durable."""
    refused: Sequence[Refused] = ()
    """The others, by ascending index."""


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some items, by ascending id (in the order of its bytes). Those whose record is damaged are left out."""

    items: Sequence[Item]
    more: bool
    """Whether others follow. A page may be short and still have others after it, but it is not empty then."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What has become of items since a revision: each once, as it is now."""

    items: Sequence[Item]
    """Those that are there, by ascending revision."""
    deleted: Sequence[str]
    """The ids of those that are not, or whose record is damaged, by ascending revision."""
    revision: Revision
    """Where these changes end, and the next ones begin."""
    more: bool
    """Whether there are further ones. A piece may be short and still have others after it."""
    restarted: bool = False
    """True when the store has lost what it was asked to go on from: these are the first changes of all."""


class CatalogStore(Protocol):
    """Keeps items. Everything here may raise Unavailable."""

    @property
    def shared(self) -> bool:
        """Whether others may write to it, so that a copy of it has to ask for changes."""
        ...

    def stamp(self) -> object:
        """Of a shared store, at once: no item has changed, by whomever, between two that are equal.

        None where that cannot be told without asking for the changes.
        """
        ...

    async def upsert(self, items: Sequence[Item], fields: Fields | None, now_s: float) -> Upserted:
        """Write valid items, each whole or not at all, or of each only some fields; return when they are durable.

        `now_s` becomes their update time. Refused alone is an item that with the fields it keeps breaks a rule, that is
        too large, of whose fields some are to be kept though its record is damaged, or one of whose vectors is not of
        the size of all others; the first vector written declares it, until no item is left.
        Overloaded when too much waits. After Unavailable some may be written: to call it again is safe.
        """
        ...

    async def get(self, item_id: str) -> Item | None:
        """An item; none when it was never written, or was deleted. Unavailable when its record is damaged."""
        ...

    async def page(self, size: int, after: str = "") -> ItemPage:
        """At most `size` items whose ids follow an id; of no id, the first."""
        ...

    async def delete(self, item_ids: Sequence[str]) -> int:
        """Delete items, and remember that they are deleted, unknown ones too; how many there were."""
        ...

    async def changes(self, since: Revision, limit: int) -> Changes:
        """What has become of at most `limit` items since a revision. Since `Revision()`, it is of all there ever were.

        Who goes on from the revision of each answer misses no change, whoever writes meanwhile.
        """
        ...

    async def revision(self) -> Revision:
        """How far the catalogue has come; cheap."""
        ...
