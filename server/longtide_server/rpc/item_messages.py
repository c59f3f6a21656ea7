"""An item as a message of the contract and back: the one reverses the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from longtide.v1 import catalog_pb2
from longtide_server.errors import InvalidInput
from longtide_server.items.item import MAX_TIME_S, AttributeValue, CategoryPath, Item
from longtide_server.items.item_fields import FIELDS, Fields

_LAST_S = math.nextafter(MAX_TIME_S, 0.0)
_AVAILABLE = {
    catalog_pb2.AVAILABILITY_UNSPECIFIED: True,
    catalog_pb2.AVAILABILITY_AVAILABLE: True,
    catalog_pb2.AVAILABILITY_UNAVAILABLE: False,
}


def read_item(message: catalog_pb2.Item, fields: Fields | None = None) -> Item:
    """What was sent of an item, or only some fields of it; `item.violation` says whether it is valid.

    InvalidInput names a field that no item can have so.
    """
    read = {FIELDS[name]: reader(message) for name, reader in _READERS.items() if fields is None or name in fields}
    return Item(message.item_id, **read)


def write_item(item: Item) -> catalog_pb2.Item:
    """An item as a message."""
    return catalog_pb2.Item(
        item_id=item.item_id,
        title=item.title,
        description=item.description,
        categories=[catalog_pb2.CategoryPath(names=path) for path in item.categories],
        tags=item.tags,
        brand=item.brand,
        price=item.price,
        publish_time=_timestamp(item.publish_time_s),
        expire_time=_timestamp(item.expire_time_s),
        availability=catalog_pb2.AVAILABILITY_AVAILABLE if item.available else catalog_pb2.AVAILABILITY_UNAVAILABLE,
        language=item.language,
        text_vector=_vector(item.text_vector),
        image_vector=_vector(item.image_vector),
        attributes=[_attribute(name, value) for name, value in item.attributes.items()],
        domain=item.domain,
        update_time=_timestamp(item.update_time_s),
    )


def _read_categories(message: catalog_pb2.Item) -> tuple[CategoryPath, ...]:
    return tuple(tuple(path.names) for path in message.categories)


def _read_price(message: catalog_pb2.Item) -> float | None:
    return message.price if message.HasField("price") else None


def _read_availability(message: catalog_pb2.Item) -> bool:
    available = _AVAILABLE.get(message.availability)
    if available is None:
        raise InvalidInput.of("availability", f"{message.availability} is no availability; use 1 or 2")
    return available


def _read_attributes(message: catalog_pb2.Item) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    for index, attribute in enumerate(message.attributes):
        kind = attribute.WhichOneof("value")
        if kind is None:
            raise InvalidInput.of(f"attributes[{index}]", "must have a text, a number or a flag")
        if attribute.name in found:
            raise InvalidInput.of(f"attributes[{index}].name", "is that of an attribute before it")
        found[attribute.name] = getattr(attribute, kind)
    return found


def _time_reader(field: str) -> Callable[[catalog_pb2.Item], float | None]:
    def read(message: catalog_pb2.Item) -> float | None:
        if not message.HasField(field):  # type: ignore[arg-type]  # one of its fields
            return None
        time: Timestamp = getattr(message, field)
        if not 0 <= time.nanos < 1_000_000_000:
            raise InvalidInput.of(field, f"has {time.nanos} nanos; 0 to 999999999 are allowed")
        time_s = time.seconds + time.nanos / 1e9
        # The last microseconds of the year 9999 are nearer to the year 10000 than to any other float.
        return _LAST_S if time.seconds < MAX_TIME_S <= time_s else time_s

    return read


def _vector_reader(field: str) -> Callable[[catalog_pb2.Item], NDArray[np.float32] | None]:
    def read(message: catalog_pb2.Item) -> NDArray[np.float32] | None:
        if not message.HasField(field):  # type: ignore[arg-type]
            return None
        return np.array(getattr(message, field).values[:], np.float32)  # of a list: three times as fast

    return read


_READERS: Mapping[str, Callable[[catalog_pb2.Item], Any]] = {
    "title": lambda message: message.title,
    "description": lambda message: message.description,
    "categories": _read_categories,
    "tags": lambda message: tuple(message.tags),
    "brand": lambda message: message.brand,
    "price": _read_price,
    "publish_time": _time_reader("publish_time"),
    "expire_time": _time_reader("expire_time"),
    "availability": _read_availability,
    "language": lambda message: message.language,
    "text_vector": _vector_reader("text_vector"),
    "image_vector": _vector_reader("image_vector"),
    "attributes": _read_attributes,
    "domain": lambda message: message.domain,
}


def _timestamp(time_s: float | None) -> Timestamp | None:
    if time_s is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(round(time_s * 1e6))
    return message


def _vector(vector: NDArray[np.float32] | None) -> catalog_pb2.Vector | None:
    return None if vector is None else catalog_pb2.Vector(values=vector.tolist())


def _attribute(name: str, value: AttributeValue) -> catalog_pb2.Attribute:
    if isinstance(value, bool):
        return catalog_pb2.Attribute(name=name, flag=value)
    if isinstance(value, str):
        return catalog_pb2.Attribute(name=name, text=value)
    return catalog_pb2.Attribute(name=name, number=value)
