"""The fields of an item that a change may name, and the item that such a change makes of another. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from longtide_server.item import Item

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
    before = Item(sent.item_id) if known is None else known
    taken = {FIELDS[name]: getattr(sent, FIELDS[name]) for name in fields}
    return replace(before, update_time_s=sent.update_time_s, **taken)
