"""The fields of an item that a change may name, and the item that such a change makes of another. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from longtide_server.items.item import Item

FIELDS: Mapping[str, str] = {
    "title": "title",
    "description": "description",
    "categories": "categories",
    "tags": "tags",
    "brand": "brand",
    "price": "price",
    "publish_time": "publish_time_s",
    "expire_time": "expire_time_s",
    "availability": "available",
    "language": "language",
    "text_vector": "text_vector",
    "image_vector": "image_vector",
    "attributes": "attributes",
    "domain": "domain",
}
"""The contract's names of the fields that can be changed, each with the attribute of Item that holds it."""

Fields = frozenset[str]
"""Some of the contract's names."""


def changed(known: Item | None, sent: Item, fields: Fields | None) -> Item:
    """The item after a change: all of what was sent, or only those fields of it.

    The fields that are not named stay as they are known, or empty where the item is new.
    """
    if fields is None:
        return sent
    before = Item(sent.item_id, unwritten=frozenset(FIELDS)) if known is None else known
    return replace(
        _with_fields(before, sent, fields), update_time_s=sent.update_time_s, unwritten=before.unwritten - fields
    )


def laid_over(item: Item, below: Item) -> Item:
    """The item, and what another source says of it where nobody has written a field."""
    return _with_fields(item, below, item.unwritten)


def _with_fields(item: Item, other: Item, fields: Fields) -> Item:
    return replace(item, **{FIELDS[name]: getattr(other, FIELDS[name]) for name in fields})
