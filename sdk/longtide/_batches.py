"""Cuts a stream of messages into batches that the server takes: none too long, none too large to send."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

MAX_BATCH_EVENTS = 10_000
MAX_BATCH_ITEMS = 1_000
IDS_PER_MESSAGE = 5_000  # of at most 512 bytes
MAX_BATCH_BYTES = 3_500_000  # any gRPC server takes 4 MiB, unless it was told otherwise
ROWS_PER_MESSAGE = 64

_FRAME_BYTES = 6  # at most: the tag and the length of a repeated message

T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Batch(Generic[M]):
    """Messages that go together."""

    first_index: int
    """The position of the first message in the caller's iterable."""
    messages: list[M]
    """The messages, in the caller's order."""
    size_bytes: int
    """How large they are together on the wire."""


class Packer(Generic[M]):
    """Collects messages until a batch is full. A message too large for any batch travels alone."""

    def __init__(self, max_count: int) -> None:
        self._max_count = max_count
        self._next_index = 0
        self._messages: list[M] = []
        self._size_bytes = 0

    def add(self, message: M) -> Iterator[Batch[M]]:
        """Takes a message; yields the batches that this completes."""
        size = message.ByteSize() + _FRAME_BYTES
        if self._size_bytes + size > MAX_BATCH_BYTES:
            yield from self.rest()
        self._messages.append(message)
        self._size_bytes += size
        if len(self._messages) == self._max_count:
            yield from self.rest()

    def rest(self) -> Iterator[Batch[M]]:
        """Yields the batch collected so far, if any."""
        if not self._messages:
            return
        batch = Batch(self._next_index, self._messages, self._size_bytes)
        self._next_index += len(self._messages)
        self._messages, self._size_bytes = [], 0
        yield batch


def checked_batch_size(batch_size: int) -> int:
    """The size, if the server takes batches of it."""
    if not 1 <= batch_size <= MAX_BATCH_EVENTS:
        raise ValueError(f"batch_size must be 1 to {MAX_BATCH_EVENTS}, not {batch_size}")
    return batch_size


def batches(items: Iterable[T], message: Callable[[T], M], max_count: int) -> Iterator[Batch[M]]:
    """The items as batches of messages, read no further than each batch needs."""
    packer: Packer[M] = Packer(max_count)
    for item in items:
        yield from packer.add(message(item))
    yield from packer.rest()


async def async_batches(
    items: Iterable[T] | AsyncIterable[T], message: Callable[[T], M], max_count: int
) -> AsyncIterator[Batch[M]]:
    """As `batches`, for an iterable of either kind."""
    packer: Packer[M] = Packer(max_count)
    async for item in _each(items):
        for batch in packer.add(message(item)):
            yield batch
    for batch in packer.rest():
        yield batch


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
