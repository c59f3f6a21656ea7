"""Keeps account of written events: what is on its way, and what became of the rest."""

from __future__ import annotations

import sys

from longtide._batches import Batch
from longtide._errors import InternalError, InvalidArgumentError, InvalidEventsError, violations_by_index
from longtide._types import EventError, WriteResult
from longtide.v1 import events_pb2

MAX_STREAM_ERRORS = 1_000
MAX_IN_FLIGHT_BATCHES = 64
MAX_IN_FLIGHT_BYTES = 16_000_000


class Tally:
    """Adds up what became of batches of events."""

    def __init__(self, max_errors: int = sys.maxsize) -> None:
        self._max_errors = max_errors
        self._written = self._duplicates = self._refused = 0
        self._errors: list[EventError] = []

    def add(self, batch: Batch[events_pb2.Event], response: events_pb2.WriteEventsResponse) -> None:
        """Adds what the server answered for a batch."""
        self.count(response.written_count, response.duplicate_count)
        for error in response.errors:
            self.refuse(batch, error)

    def count(self, written: int, duplicates: int) -> None:
        """Adds events that the server took."""
        self._written += written
        self._duplicates += duplicates

    def refuse(self, batch: Batch[events_pb2.Event], error: events_pb2.EventError) -> None:
        """Adds an event of the batch that the server refused."""
        self._refuse(EventError(batch.first_index + error.index, error.event_id, error.field, error.reason))

    def refuse_all(self, batch: Batch[events_pb2.Event], cause: InvalidArgumentError) -> None:
        """Adds a batch without one good event; raises `cause` again when it is not about events."""
        found = violations_by_index(cause, "events")
        if not found:
            raise cause
        # The server may name only the first violations, but a batch that fails as a whole holds no good event.
        for position, event in enumerate(batch.messages):
            field, reason = found.get(position, ("", cause.message))
            self._refuse(EventError(batch.first_index + position, event.event_id, field, reason))

    def result(self) -> WriteResult:
        """What became of everything; raises InvalidEventsError when some of it was refused."""
        result = WriteResult(self._written, self._duplicates, self._refused, tuple(self._errors))
        if result.refused_count:
            raise InvalidEventsError(result)
        return result

    def _refuse(self, error: EventError) -> None:
        self._refused += 1
        if len(self._errors) < self._max_errors:
            self._errors.append(error)


class Ledger:
    """The batches of one `stream_events`: numbered from 1, kept until acknowledged."""

    def __init__(self) -> None:
        self.acknowledged = 0
        """The number of the last acknowledged batch."""
        self._sent = 0
        self._in_flight: dict[int, Batch[events_pb2.Event]] = {}
        self._in_flight_bytes = 0
        self._tally = Tally(MAX_STREAM_ERRORS)

    @property
    def in_flight(self) -> bool:
        """Whether a batch waits for its acknowledgement."""
        return bool(self._in_flight)

    def must_wait(self, answer_ready: bool) -> bool:
        """Whether an answer should be taken before the next batch goes: one is there, or too much is on its way."""
        full = len(self._in_flight) >= MAX_IN_FLIGHT_BATCHES or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES
        return full or (answer_ready and self.in_flight)

    def send(self, batch: Batch[events_pb2.Event]) -> events_pb2.StreamEventsRequest:
        """Enters a batch; returns the message to send."""
        self._sent += 1
        self._in_flight[self._sent] = batch
        self._in_flight_bytes += batch.size_bytes
        return _stream_request(self._sent, batch)

    def unacknowledged(self) -> list[events_pb2.StreamEventsRequest]:
        """The messages to send again on a new stream, in order, under their old numbers."""
        return [_stream_request(number, batch) for number, batch in self._in_flight.items()]

    def acknowledge(self, response: events_pb2.StreamEventsResponse) -> None:
        """Enters an answer."""
        self._tally.count(response.written_count, response.duplicate_count)
        for refusal in response.errors:
            self._tally.refuse(self._batch(refusal.sequence_number), refusal.error)
        for number in range(self.acknowledged + 1, response.acknowledged_sequence_number + 1):
            self._in_flight_bytes -= self._batch(number).size_bytes
            del self._in_flight[number]
            self.acknowledged = number

    def result(self) -> WriteResult:
        """What became of everything acknowledged; raises InvalidEventsError when some of it was refused."""
        return self._tally.result()

    def _batch(self, number: int) -> Batch[events_pb2.Event]:
        if number not in self._in_flight:
            raise InternalError(f"the server answered for batch {number}, which is not on its way")
        return self._in_flight[number]


def _stream_request(number: int, batch: Batch[events_pb2.Event]) -> events_pb2.StreamEventsRequest:
    return events_pb2.StreamEventsRequest(sequence_number=number, events=batch.messages)
