"""What a change of an item will store, or why it is refused: the same for every store. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from longtide_server.catalog_store.records import DamagedRecord, from_record, size_violation, to_record
from longtide_server.errors import FieldViolation
from longtide_server.items.item import Item, violation
from longtide_server.items.item_fields import Fields, changed

VECTORS = ("text_vector", "image_vector")


@dataclass(frozen=True, slots=True)
class Write:
    """A whole item that is ready to be stored."""

    item_id: str
    record: bytes
    vector_sizes: tuple[int, int]
    """How many numbers the text vector and the image vector have; 0 where there is none."""


Sent = Write | FieldViolation
"""What an item that was sent says on its own."""


def stamped(items: Sequence[Item], now_s: float) -> list[Item]:
    """The items as written at a time."""
    return [replace(item, update_time_s=now_s) for item in items]


def whole(item: Item) -> Sent:
    """The item itself, valid as it is."""
    record = to_record(item)
    sizes = (0 if vector is None else len(vector) for vector in (item.text_vector, item.image_vector))
    text, image = sizes
    return size_violation(record) or Write(item.item_id, record, (text, image))


def merged(record: bytes | None, sent: Item, fields: Fields) -> Sent:
    """What is stored of an item with some fields of what was sent: valid fields that may not go with the others.

    Unavailable when the record is of a later release.
    """
    try:
        known = from_record(sent.item_id, record) if record else None
    except DamagedRecord:
        return FieldViolation("", "what is stored of the item is damaged: write all of it, without an update mask")
    item = changed(known, sent, fields)
    return violation(item) or whole(item)


def vector_violation(index: int, size: int, declared: int) -> FieldViolation:
    """A vector is not of the size that was declared; `index` is that of VECTORS."""
    return FieldViolation(
        VECTORS[index], f"holds {size} numbers; the first one written has declared that each holds {declared}"
    )


def bytes_of(sent: Sequence[Sent]) -> int:
    """How much waits to be written."""
    return sum(len(one.record) for one in sent if isinstance(one, Write))
