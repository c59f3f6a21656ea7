"""The metrics of all workers as one page."""

import pytest
from prometheus_client import generate_latest

from longtide_server.watching.metrics import Metrics
from longtide_server.workers.messages import Sample, decode, encode
from longtide_server.workers.totals import Totals, families_of


def worker(calls, lags, works):
    metrics = Metrics()
    for _ in range(calls):
        metrics.call("Recommend", "OK", None)
    metrics.events(len(lags), 0, 0, lags)
    metrics.store_works(works)
    metrics.serving("s1", 1_700_000_000.0)
    return decode(encode(Sample(families_of(metrics.registry))), Sample)  # as it comes from the worker


def page(totals):
    lines = [line for line in generate_latest(totals.registry).decode().splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.fixture
def own():
    return Metrics()


@pytest.fixture
def totals(own):
    made = Totals(2, own.registry)
    made.looked(0, worker(3, [0.2, 2.0], works=True))
    made.looked(1, worker(4, [0.3], works=True))
    return made


CALLS = 'longtide_requests_total{code="OK",rpc="Recommend"}'


def test_what_is_counted_adds_up(totals):
    found = page(totals)
    assert found[CALLS] == 7
    assert found["longtide_event_lag_seconds_count"] == 3
    assert found["longtide_event_lag_seconds_sum"] == pytest.approx(2.5)
    assert found['longtide_event_lag_seconds_bucket{le="0.5"}'] == 2
    assert found['longtide_event_lag_seconds_bucket{le="+Inf"}'] == 3


def test_what_is_counted_never_falls_when_a_worker_ends_and_is_there_again(totals):
    totals.ended(0)
    assert page(totals)[CALLS] == 7
    totals.looked(0, worker(1, [], works=True))
    assert page(totals)[CALLS] == 8
    totals.ended(0)
    totals.ended(0)  # it ended before it was looked at
    assert page(totals)[CALLS] == 8


def test_a_gauge_is_of_those_that_are_there(totals):
    assert page(totals)["longtide_workers"] == 2
    totals.ended(1)
    totals.restarted()
    found = page(totals)
    assert (found["longtide_workers"], found["longtide_workers_wanted"]) == (1, 2)
    assert found["longtide_worker_restarts_total"] == 1
    assert 'process_resident_memory_bytes{worker="1"}' not in found


def test_what_cannot_be_added_up_is_not(totals):
    found = page(totals)
    assert found["longtide_store_up"] == 1
    assert found["longtide_snapshot_created_timestamp_seconds"] == 1_700_000_000.0
    assert found['longtide_snapshot_info{snapshot_id="s1"}'] == 1
    for process in ("0", "1", "supervisor"):
        assert found[f'process_resident_memory_bytes{{worker="{process}"}}'] > 1e6
    totals.looked(1, worker(4, [0.3], works=False))
    assert page(totals)["longtide_store_up"] == 0


def test_what_the_supervisor_does_is_counted_too(totals, own):
    own.activation("activated")
    assert page(totals)['longtide_activations_total{outcome="activated"}'] == 1


def test_every_metric_of_a_server_is_on_the_page(totals):
    def names(registry):
        return {one.name for one in registry.collect()}

    assert names(totals.registry) - names(Metrics().registry) == {
        "longtide_workers", "longtide_workers_wanted", "longtide_worker_restarts",
    }  # fmt: skip
    assert names(Metrics().registry) <= names(totals.registry)
