"""An item as the bytes that every store keeps of it, and what makes them too many.

A record is a MessagePack map of short names; what is empty is left out. It carries the number of its format. Names that
a reader does not know are skipped, so later releases may add some; for any other change the number must rise, and the
golden records of the tests must still be read.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.errors import FieldViolation, Unavailable
from longtide_server.items.item import AttributeValue, CategoryPath, Item

FORMAT = 1
MAX_RECORD_BYTES = 262_144
_FLOATS = np.dtype("<f4")

log = structlog.get_logger(__name__)


class DamagedRecord(Unavailable):
    """No release has written these bytes."""


class _Record(msgspec.Struct, omit_defaults=True, gc=False):
    """Format 1. The item's id is the store's key to it."""

    format: int = msgspec.field(name="v")
    update_time_s: float = msgspec.field(name="u")
    title: str = msgspec.field(name="t", default="")
    description: str = msgspec.field(name="d", default="")
    categories: tuple[CategoryPath, ...] = msgspec.field(name="c", default=())
    tags: tuple[str, ...] = msgspec.field(name="g", default=())
    brand: str = msgspec.field(name="b", default="")
    price: float | None = msgspec.field(name="p", default=None)
    publish_time_s: float | None = msgspec.field(name="f", default=None)
    expire_time_s: float | None = msgspec.field(name="x", default=None)
    available: bool = msgspec.field(name="a", default=True)
    language: str = msgspec.field(name="l", default="")
    text_vector: bytes = msgspec.field(name="tv", default=b"")
    """Little-endian 32-bit floats."""
    image_vector: bytes = msgspec.field(name="iv", default=b"")
    """Little-endian 32-bit floats."""
    attributes: dict[str, AttributeValue] = msgspec.field(name="n", default_factory=dict)
    domain: str = msgspec.field(name="o", default="")
    unwritten: tuple[str, ...] = msgspec.field(name="w", default=())


def to_record(item: Item) -> bytes:
    """Everything of an item but its id."""
    return _encode(
        _Record(
            format=FORMAT,
            update_time_s=item.update_time_s,
            title=item.title,
            description=item.description,
            categories=item.categories,
            tags=item.tags,
            brand=item.brand,
            price=item.price,
            publish_time_s=item.publish_time_s,
            expire_time_s=item.expire_time_s,
            available=item.available,
            language=item.language,
            text_vector=_packed(item.text_vector),
            image_vector=_packed(item.image_vector),
            attributes=dict(item.attributes),
            domain=item.domain,
            unwritten=tuple(sorted(item.unwritten)),
        )
    )


def from_record(item_id: str, record: bytes) -> Item:
    """The item of an id. DamagedRecord, or Unavailable when the record is of a later release."""
    try:
        found = _decode(record)
    except msgspec.DecodeError as exc:
        raise DamagedRecord(f"the record of item {item_id!r} cannot be read: {exc}") from exc
    if found.format != FORMAT:
        raise Unavailable(
            f"the record of item {item_id!r} is of format {found.format}; this release reads format {FORMAT}"
        )
    return Item(
        item_id=item_id,
        title=found.title,
        description=found.description,
        categories=found.categories,
        tags=found.tags,
        brand=found.brand,
        price=found.price,
        publish_time_s=found.publish_time_s,
        expire_time_s=found.expire_time_s,
        available=found.available,
        language=found.language,
        text_vector=_unpacked(found.text_vector),
        image_vector=_unpacked(found.image_vector),
        attributes=found.attributes,
        domain=found.domain,
        update_time_s=found.update_time_s,
        unwritten=frozenset(found.unwritten),
    )


def told_apart(records: Iterable[tuple[str, bytes | None]]) -> tuple[list[Item], list[str]]:
    """The items of some records, and the ids of those that are not there: what is damaged must not appear, either.

    Unavailable when one is of a later release.
    """
    items, gone = [], []
    for item_id, record in records:
        try:
            if record:
                items.append(from_record(item_id, record))
            else:
                gone.append(item_id)
        except DamagedRecord as exc:
            log.error("item_left_out", reason=str(exc))
            gone.append(item_id)
    return items, gone


def size_violation(record: bytes) -> FieldViolation | None:
    """Why an item is too large, or none. No field alone is to blame."""
    if len(record) <= MAX_RECORD_BYTES:
        return None
    return FieldViolation("", f"the item is {len(record)} bytes large; at most {MAX_RECORD_BYTES} are allowed")


def _packed(vector: NDArray[np.float32] | None) -> bytes:
    return b"" if vector is None else vector.astype(_FLOATS, copy=False).tobytes()


def _unpacked(packed: bytes) -> NDArray[np.float32] | None:
    return np.frombuffer(packed, _FLOATS).astype(np.float32, copy=False) if packed else None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode
