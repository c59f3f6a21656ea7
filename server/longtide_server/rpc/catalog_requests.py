"""Reads requests about the catalogue into domain values, and says what is wrong when that cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from longtide.v1 import catalog_pb2
from longtide_server.catalog_store import Refused
from longtide_server.errors import FieldViolation, InvalidInput
from longtide_server.events import MAX_ID_BYTES, id_violation
from longtide_server.items.item import MAX_BATCH_ITEMS, Item, violation
from longtide_server.items.item_fields import FIELDS, Fields
from longtide_server.rpc.item_messages import read_item
from longtide_server.rpc.requests import raise_for

MAX_DELETED_ITEMS = 10_000
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
SHOWN_LETTERS = 60
MAX_VIOLATIONS = 10


def read_fields(message: catalog_pb2.UpsertItemsRequest) -> Fields | None:
    """Which fields a batch changes; none when every field is replaced. InvalidInput when the mask is wrong."""
    if not message.HasField("update_mask"):
        return None
    paths = message.update_mask.paths
    if list(paths) == ["*"]:
        return None
    if not paths:
        raise InvalidInput.of("update_mask", "names no field; leave it out to replace every field")
    for path in paths:
        if path not in FIELDS:
            raise InvalidInput.of(
                "update_mask",
                f"{path[:SHOWN_LETTERS]!r} cannot be changed; name some of {', '.join(FIELDS)}, or * alone",
            )
    return frozenset(paths)


def check_batch(message: catalog_pb2.UpsertItemsRequest) -> None:
    """A batch holds 1 to 1,000 items."""
    if not 1 <= len(message.items) <= MAX_BATCH_ITEMS:
        raise InvalidInput.of("items", f"holds {len(message.items)} items; 1 to {MAX_BATCH_ITEMS} are allowed")


class Batch:
    """The items of a request, read one by one: the good ones, and what is wrong with the others."""

    def __init__(self, fields: Fields | None) -> None:
        self.items: list[Item] = []
        """The good ones."""
        self._fields = fields
        self._ids: list[str] = []
        self._seen: set[str] = set()
        self._places: list[int] = []
        """Of the good ones."""
        self._wrong: dict[int, FieldViolation] = {}

    def read(self, message: catalog_pb2.Item) -> None:
        """Read the next item."""
        place = len(self._ids)
        self._ids.append(message.item_id)
        try:
            item = read_item(message, self._fields)
            wrong = violation(item) or self._repeated(item.item_id)
        except InvalidInput as exc:
            wrong = exc.violations[0]
        if wrong is not None:
            self._wrong[place] = wrong
        else:
            self.items.append(item)
            self._places.append(place)

    def errors(self, refused: Iterable[Refused]) -> list[catalog_pb2.ItemError]:
        """What is wrong, that included for which good items were refused after all, by ascending index.

        InvalidInput when no item is left.
        """
        wrong = self._wrong | {self._places[one.index]: one.violation for one in refused}
        if len(wrong) == len(self._ids):
            raise InvalidInput(
                f"none of the {len(wrong)} items can be written",
                tuple(
                    FieldViolation(f"items[{place}].{one.field}".removesuffix("."), one.reason)
                    for place, one in sorted(wrong.items())
                ),
            )
        return [
            catalog_pb2.ItemError(
                index=place, item_id=self._ids[place][:MAX_ID_BYTES], field=one.field, reason=one.reason
            )
            for place, one in sorted(wrong.items())
        ]

    def _repeated(self, item_id: str) -> FieldViolation | None:
        if item_id in self._seen:
            return FieldViolation("item_id", "is that of an item before it in the batch")
        self._seen.add(item_id)
        return None


def read_item_id(message: catalog_pb2.GetItemRequest) -> str:
    """Which item is asked for."""
    raise_for([id_violation("item_id", message.item_id)])
    return message.item_id


def read_deleted(message: catalog_pb2.DeleteItemsRequest) -> list[str]:
    """Which items are to go, each once."""
    ids = message.item_ids
    if not 1 <= len(ids) <= MAX_DELETED_ITEMS:
        raise InvalidInput.of("item_ids", f"holds {len(ids)} ids; 1 to {MAX_DELETED_ITEMS} are allowed")
    wrong = (id_violation(f"item_ids[{index}]", item_id) for index, item_id in enumerate(ids))
    raise_for(islice((violation for violation in wrong if violation is not None), MAX_VIOLATIONS))
    return list(dict.fromkeys(ids))


def read_page(message: catalog_pb2.ListItemsRequest) -> tuple[int, str]:
    """The size of a page, and the id after which it begins; InvalidInput names the field that is wrong."""
    size = message.page_size if message.HasField("page_size") else DEFAULT_PAGE_SIZE
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise InvalidInput.of("page_size", f"is {size}; 1 to {MAX_PAGE_SIZE} are allowed")
    if not message.page_token:
        return size, ""
    try:
        after = bytes.fromhex(message.page_token).decode()
    except ValueError as exc:
        raise InvalidInput.of("page_token", "is not one that this service has given") from exc
    if id_violation("page_token", after) is not None:
        raise InvalidInput.of("page_token", "is not one that this service has given")
    return size, after


def page_token(item_id: str) -> str:
    """Says after which item the next page begins."""
    return item_id.encode().hex()
