"""Keeps account of the messages of a `recommend_many` that wait for their answers."""

from __future__ import annotations

from collections import deque

from longtide import _convert
from longtide._answers import Recommendations
from longtide._batches import Batch
from longtide._errors import InternalError
from longtide.v1 import recommendation_pb2

MAX_IN_FLIGHT_MESSAGES = 8


class Rows:
    """How many rows each message on its way holds, the oldest first."""

    def __init__(self) -> None:
        self._counts: deque[int] = deque()

    @property
    def in_flight(self) -> bool:
        """Whether a message waits for its answer."""
        return bool(self._counts)

    def must_wait(self, answer_ready: bool) -> bool:
        """Whether an answer should be taken before the next message goes: one is there, or too many are awaited."""
        return len(self._counts) >= MAX_IN_FLIGHT_MESSAGES or (answer_ready and self.in_flight)

    def send(self, batch: Batch[recommendation_pb2.RecommendRequest]) -> recommendation_pb2.StreamRecommendRequest:
        """Enters a batch; returns the message to send."""
        self._counts.append(len(batch.messages))
        return recommendation_pb2.StreamRecommendRequest(requests=batch.messages)

    def receive(self, response: recommendation_pb2.StreamRecommendResponse) -> list[Recommendations]:
        """The answers for the oldest message."""
        count = self._counts.popleft()
        if len(response.results) != count:
            raise InternalError(f"the server answered {len(response.results)} rows for a message of {count}")
        return [_convert.row(result) for result in response.results]
