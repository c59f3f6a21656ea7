"""Counters and histograms that cost less than a microsecond where they count; prometheus_client only shows them.

Its own have a lock for every number, and by the time of the next answer a search through hundreds of megabytes has
pushed them all out of the processor's caches: an observation then takes five microseconds, here one. Only one thread
counts, the event loop's. Whoever scrapes reads what is there, which may be in the middle of an observation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Counter(Collector):
    """Numbers that only rise, one for each combination of label values that was counted."""

    def __init__(
        self, registry: CollectorRegistry, name: str, meaning: str, *labels: str, known: Iterable[str] = ()
    ) -> None:
        """`known` are values of the only label that are shown before they are counted."""
        self._describes = (name, meaning, labels)
        self._values: dict[tuple[str, ...], int] = {(value,): 0 for value in known}
        registry.register(self)

    def add(self, *labels: str, count: int = 1) -> None:
        """Count, 0 or more."""
        self._values[labels] = self._values.get(labels, 0) + count

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See Collector."""
        name, meaning, labels = self._describes
        family = CounterMetricFamily(name, meaning, labels=labels)
        for values, count in list(self._values.items()):  # a copy at one moment: another thread may add to it
            family.add_metric(values, count)
        yield family


class _Buckets:
    """How many values lie up to each bound and above the one before; the last are those above all bounds."""

    __slots__ = ("counts", "sum")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.sum = 0.0


class Histogram(Collector):
    """How values are spread over buckets, for each combination of label values that was observed."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        meaning: str,
        *labels: str,
        bounds: Sequence[float],
        known: Iterable[str] = (),
    ) -> None:
        """`bounds` rise and belong to the bucket below them; `known` is as a Counter's."""
        self._describes = (name, meaning, labels)
        self._bounds = bounds
        self._series: dict[tuple[str, ...], _Buckets] = {}
        for values in ((value,) for value in known) if labels else ((),):
            self._series[values] = _Buckets(len(bounds))
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        """Count a value."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Buckets(len(self._bounds))
        series.counts[bisect_left(self._bounds, value)] += 1
        series.sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See Collector."""
        name, meaning, labels = self._describes
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        family = HistogramMetricFamily(name, meaning, labels=labels)
        for values, series in list(self._series.items()):
            reached = accumulate(list(series.counts))
            family.add_metric(values, list(zip(bounds, reached, strict=True)), series.sum)
        yield family
