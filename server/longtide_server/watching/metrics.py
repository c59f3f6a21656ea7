"""Every metric of the server: its name, what it means, and how what an observer is told becomes a number.

A server has a registry of its own, so that several in one process do not count for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector

from longtide_server.errors import DeadlineExceeded, LongtideError, Overloaded, Unavailable
from longtide_server.observer import Activated, Gauges, Lookup, Missing, Observer, Stage
from longtide_server.watching.counting import Counter, Histogram

Kind = Literal["unavailable", "deadline_exceeded", "overloaded", "refused", "unexpected"]
"""Of failures: a refused call is one that the caller should not have made."""

DURATIONS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAGS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)
BATCH_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCH_EVENTS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536)


class Metrics(Observer):
    """An observer that counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._watched: tuple[Gauges, ...] = ()
        counter = partial(Counter, self.registry)
        histogram = partial(Histogram, self.registry)
        durations = partial(histogram, bounds=DURATIONS_S)
        gauge = partial(Gauge, registry=self.registry)

        self._requests = counter("longtide_requests", "RPCs that have ended, by gRPC status.", "rpc", "code")
        self._request_durations = durations(
            "longtide_request_duration_seconds", "How long RPCs took; what streams from the client is left out.", "rpc"
        )
        self._rows = counter(
            "longtide_stream_recommend_rows", "Rows of StreamRecommend.", "outcome", known=("answered", "failed")
        )
        self._stages = durations(
            "longtide_stage_duration_seconds",
            "How long the stages of an answer took, where there was something to do; a kept answer has none.",
            "stage",
            known=get_args(Stage),
        )
        self._degraded = counter(
            "longtide_degraded_answers", "Answers that had to do without something.", "missing", known=get_args(Missing)
        )
        self._answer_lookups = counter(
            "longtide_kept_answer_lookups",
            "Recommendations, by whether a kept answer was sent; bypass is a request whose answer is never kept.",
            "result",
            known=get_args(Lookup),
        )
        gauge("longtide_kept_answers", "Answers in memory.").set_function(self._sum(lambda one: one.answers()))
        self._state_lookups = counter(
            "longtide_user_state_lookups", "User states, by whether memory had them.", "result", known=("hit", "miss")
        )
        gauge("longtide_user_states", "User states in memory.").set_function(self._sum(lambda one: one.users()))

        self._encoder_users = histogram(
            "longtide_encoder_batch_users", "Users in a call to the encoder.", bounds=BATCH_USERS
        )
        self._encoder_events = histogram(
            "longtide_encoder_batch_events", "Events in a call to the encoder.", bounds=BATCH_EVENTS
        )
        self._encoder_durations = durations(
            "longtide_encoder_call_duration_seconds", "How long calls to the encoder took that did not fail."
        )
        kinds = ("unavailable", "deadline_exceeded", "overloaded", "unexpected")
        self._encoder_errors = counter(
            "longtide_encoder_errors", "Calls to the encoder that failed.", "kind", known=kinds
        )
        gauge("longtide_encoder_queue_users", "Users who wait for the next call to the encoder.").set_function(
            self._sum(lambda one: one.waiting())
        )
        gauge("longtide_encoder_breaker_open", "1 while a failing encoder is left alone.").set_function(
            self._sum(lambda one: one.left_alone())
        )

        self._store_durations = durations(
            "longtide_store_call_duration_seconds",
            "How long calls to the event store took that did not fail, or until nobody waited for them any longer.",
            "operation",
        )
        self._store_errors = counter(
            "longtide_store_errors",
            "Calls to the event store that failed; deadline_exceeded: nobody waited for them any longer.",
            "operation",
            "kind",
        )
        self._store_up = gauge("longtide_store_up", "1 when the event store worked the last time it was tried.")
        self._events = counter(
            "longtide_events", "Events that were sent.", "outcome", known=("new", "duplicate", "refused")
        )
        self._lags = histogram(
            "longtide_event_lag_seconds", "How long ago new events had happened when they were written.", bounds=LAGS_S
        )

        self._snapshot = Info("longtide_snapshot", "The snapshot that is served.", registry=self.registry)
        self._snapshot_created = gauge(
            "longtide_snapshot_created_timestamp_seconds", "When the snapshot that is served was made, since 1970."
        )
        self._activations = counter(
            "longtide_activations", "Activations of snapshots that have ended.", "outcome", known=get_args(Activated)
        )
        ProcessCollector(registry=self.registry)

    def stage(self, stage: Stage, begun_s: float) -> None:
        """See Observer."""
        self._stages.observe(time.perf_counter() - begun_s, stage)

    def degraded(self, missing: Missing) -> None:
        """See Observer."""
        self._degraded.add(missing)

    def call(self, rpc: str, code: str, begun_s: float | None) -> None:
        """See Observer."""
        self._requests.add(rpc, code)
        if begun_s is not None:
            self._request_durations.observe(time.perf_counter() - begun_s, rpc)

    def rows(self, answered: int, failed: int) -> None:
        """See Observer."""
        self._rows.add("answered", count=answered)
        self._rows.add("failed", count=failed)

    def state_lookup(self, result: Lookup) -> None:
        """See Observer."""
        self._state_lookups.add(result)

    def answer_lookup(self, result: Lookup) -> None:
        """See Observer."""
        self._answer_lookups.add(result)

    def encoder_call(self, users: int, events: int, begun_s: float, error: Exception | None) -> None:
        """See Observer."""
        self._encoder_users.observe(users)
        self._encoder_events.observe(events)
        if error is None:
            self._encoder_durations.observe(time.perf_counter() - begun_s)
        else:
            self._encoder_errors.add(kind_of(error))

    def store_call(self, operation: str, begun_s: float, error: Exception | None) -> None:
        """See Observer."""
        if error is None or isinstance(error, DeadlineExceeded):
            self._store_durations.observe(time.perf_counter() - begun_s, operation)
        if error is not None:
            self._store_errors.add(operation, kind_of(error))

    def store_works(self, works: bool) -> None:
        """See Observer."""
        self._store_up.set(works)

    def events(self, new: int, duplicates: int, refused: int, lags_s: Iterable[float]) -> None:
        """See Observer."""
        self._events.add("new", count=new)
        self._events.add("duplicate", count=duplicates)
        self._events.add("refused", count=refused)
        for lag_s in lags_s:
            self._lags.observe(max(lag_s, 0.0))  # the sender's clock may be ahead

    def serving(self, snapshot_id: str, created_s: float) -> None:
        """See Observer."""
        self._snapshot.info({"snapshot_id": snapshot_id})
        self._snapshot_created.set(created_s)

    def activation(self, result: Activated) -> None:
        """See Observer."""
        self._activations.add(result)

    def watch(self, gauges: Gauges) -> None:
        """See Observer."""
        self._watched = (*self._watched, gauges)

    def unwatch(self, gauges: Gauges) -> None:
        """See Observer."""
        self._watched = tuple(one for one in self._watched if one is not gauges)

    def _sum(self, read: Callable[[Gauges], float]) -> Callable[[], float]:
        """Reads something of all snapshots at work."""
        return lambda: sum(map(read, self._watched))


def kind_of(error: Exception) -> Kind:
    """What kind of failure an error is."""
    match error:
        case Unavailable():
            return "unavailable"
        case DeadlineExceeded():
            return "deadline_exceeded"
        case Overloaded():
            return "overloaded"
        case LongtideError():
            return "refused"
    return "unexpected"
