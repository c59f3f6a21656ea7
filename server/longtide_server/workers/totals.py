"""The metrics of all workers as one page: what is counted adds up, also what workers counted that have ended.

Gauges add up too, except where a sum would say nothing: those are the least or the greatest of the workers', and what
the operating system says of a process comes once for each, with a label. A worker is looked at every two seconds, so
the page may be as old as that, and what a worker counted in its last two seconds may be missing after it was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from longtide_server.watching.counting import Counter
from longtide_server.workers.messages import Family, Sample

ADDING_UP = ("counter", "histogram")
LEAST = ("longtide_store_up",)
GREATEST = ("longtide_encoder_breaker_open", "longtide_snapshot", "longtide_snapshot_created_timestamp_seconds")
OF_A_PROCESS = "process_"
SUPERVISOR = "supervisor"

Key = tuple[str, tuple[tuple[str, str], ...]]
"""The name and the labels of a sample."""


def families_of(registry: CollectorRegistry) -> list[Family]:
    """What a registry holds now."""
    return [
        Family(
            one.name,
            one.documentation,
            one.type,
            [(sample.name, sample.labels, sample.value) for sample in one.samples],
        )
        for one in registry.collect()
    ]


class Totals(Collector):
    """Adds up what workers say. Read by the thread that shows it; each change is one assignment."""

    def __init__(self, workers: int, own: CollectorRegistry) -> None:
        """What the supervisor itself counts, its `own`, is added to the rest."""
        self._own = own
        self._workers = CollectorRegistry()
        self.registry = CollectorRegistry()
        self._now: Mapping[str, Sequence[Family]] = {}
        """By worker."""
        self._past: Sequence[Family] = ()
        """What workers had counted that have ended."""
        gauge = partial(Gauge, registry=self._workers)
        gauge("longtide_workers", "Server processes that answer calls.").set_function(lambda: len(self._now))
        gauge("longtide_workers_wanted", "Server processes that there should be.").set(workers)
        self._restarts = Counter(self._workers, "longtide_worker_restarts", "Server processes that were started again.")
        self._restarts.add(count=0)
        self.registry.register(self)

    def looked(self, number: int, sample: Sample) -> None:
        """What a worker has counted until now."""
        self._now = {**self._now, str(number): sample.families}

    def ended(self, number: int) -> None:
        """A worker has ended: it will count from nothing when it is there again."""
        counted = [one for one in self._now.get(str(number), ()) if one.kind in ADDING_UP and not of_a_process(one)]
        self._past = tuple(merged({"": self._past, str(number): counted}))
        self._now = {name: families for name, families in self._now.items() if name != str(number)}

    def restarted(self) -> None:
        """A worker has been started again."""
        self._restarts.add()

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        own = [one for one in families_of(self._own) if one.kind in ADDING_UP or of_a_process(one)]
        for one in merged({"": self._past, **self._now, SUPERVISOR: [*own, *families_of(self._workers)]}):
            family = Metric(one.name, one.meaning, one.kind)
            for name, labels, value in one.samples:
                family.add_sample(name, labels, value)
            yield family


@dataclass(slots=True)
class _Merging:
    meaning: str
    kind: str
    samples: dict[Key, list[float]] = field(default_factory=dict)


def merged(sources: Mapping[str, Iterable[Family]]) -> list[Family]:
    """Families of several sources as one of each, in the order of their first appearance."""
    found: dict[str, _Merging] = {}
    for source, families in sources.items():
        for one in families:
            merging = found.setdefault(one.name, _Merging(one.meaning, one.kind))
            for name, labels, value in one.samples:
                whose = {"worker": source} if of_a_process(one) else {}
                key = (name, tuple({**labels, **whose}.items()))
                merging.samples.setdefault(key, []).append(value)
    return [
        Family(
            name, one.meaning, one.kind,
            [(sample, dict(labels), joined(name)(values)) for (sample, labels), values in one.samples.items()],
        )
        for name, one in found.items()
    ]  # fmt: skip


def joined(family: str) -> Callable[[Sequence[float]], float]:
    """How the values of one sample become one."""
    if family in LEAST:
        return min
    return max if family in GREATEST else partial(sum, start=0.0)


def of_a_process(family: Family) -> bool:
    """Whether it is about a process, and not about what it does."""
    return family.name.startswith(OF_A_PROCESS)
