"""Keeps account of written items: how many the server took, and why it refused the others."""

from __future__ import annotations

from longtide._batches import Batch
from longtide._errors import InvalidArgumentError, violations_by_index
from longtide._items import ItemError, UpsertResult
from longtide.v1 import catalog_pb2


class ItemTally:
    """Adds up what became of batches of items."""

    def __init__(self) -> None:
        self._written = 0
        self._errors: list[ItemError] = []

    def add(self, batch: Batch[catalog_pb2.Item], response: catalog_pb2.UpsertItemsResponse) -> None:
        """Adds what the server answered for a batch."""
        self._written += response.written_count
        self._errors += (
            ItemError(batch.first_index + error.index, error.item_id, error.field, error.reason)
            for error in response.errors
        )

    def refuse_all(self, batch: Batch[catalog_pb2.Item], cause: InvalidArgumentError) -> None:
        """Adds a batch without one good item; raises `cause` again when it is not about items."""
        found = violations_by_index(cause, "items")
        if not found:
            raise cause
        # The server may name only the first violations, but a batch that fails as a whole holds no good item.
        for position, item in enumerate(batch.messages):
            field, reason = found.get(position, ("", cause.message))
            self._errors.append(ItemError(batch.first_index + position, item.item_id, field, reason))

    def result(self) -> UpsertResult:
        """What became of everything."""
        return UpsertResult(self._written, tuple(self._errors))
