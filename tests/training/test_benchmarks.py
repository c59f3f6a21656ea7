"""Benchmarks measure what they say: nothing of an earlier run shortens one, and made-up logs are what they claim."""

import asyncio
import csv
import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.bench import accuracy, pieces, product
from tests.bench.figures import at_least, at_most, plain, publish
from tests.bench.pieces import fingerprint
from tests.bench.product import Bench, Log, Measured
from tests.bench.wanted import make_up

from longtide_server.events import user_of
from longtide_server.snapshot import load_snapshot
from longtide_server.sources.candidates import Source
from longtide_server.training.dataset import to_sequences
from longtide_server.training.files.log import read_log


@pytest.fixture
def log(tmp_path):
    """A log whose training is 99.5 s long."""
    (tmp_path / "a-log").mkdir()
    (tmp_path / "a-log" / "interactions.csv.gz").write_bytes(b"a log")
    (tmp_path / "score.py").write_text("a scorer")
    return Log("a-log", 0.0, 0.0, has_times=False)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    bench = Bench(tmp_path, tmp_path / "score.py", tmp_path / "work")
    monkeypatch.setattr(bench, "cut", lambda _: (tmp_path / "train", tmp_path / "targets"))
    return bench


def test_training_begins_in_an_empty_folder(tmp_path, monkeypatch):
    """What a killed run left would be taken up, and the rest be told as the whole; so would texts that were read."""
    snapshot = tmp_path / "snapshot"
    (snapshot / ".training-1").mkdir(parents=True)
    found = []

    def measured(*command, LONGTIDE_CACHE):
        found.append((snapshot.exists(), list(Path(LONGTIDE_CACHE).iterdir())))
        return Measured(1.0, 1.0, 1.0)

    monkeypatch.setattr(product, "measured", measured)
    assert product.trained_anew(tmp_path / "log.csv", snapshot, "--seed", 1).seconds == 1.0
    assert found == [(False, [])]


def test_a_command_is_measured_with_the_variables_it_is_given():
    script = "import os, sys; sys.exit(os.environ['WHERE'] != 'here')"
    assert product.measured(sys.executable, "-c", script, WHERE="here").peak_gib < 1.0
    with pytest.raises(SystemExit):
        product.measured(sys.executable, "-c", script, WHERE="there")


def test_lists_of_a_later_training_are_compared_with_the_server_anew(bench, log, monkeypatch):
    asked = []
    trained = iter(["first", "first", "second"])
    monkeypatch.setattr(bench, "longtide", lambda *_: {"lists": next(trained)})

    async def compare(*arguments):
        asked.append(arguments)
        return {"identical": 9}

    monkeypatch.setattr(product, "compare_with_server", compare)
    for _ in range(3):
        bench.served(log, 0)
    assert len(asked) == 2
    monkeypatch.setattr(product, "serving_code", lambda: "another")
    monkeypatch.setattr(bench, "longtide", lambda *_: {"lists": "second"})
    bench.served(log, 0)
    assert len(asked) == 3


def test_one_list_in_many_that_differs_is_told(bench, log, monkeypatch):
    monkeypatch.setattr(bench, "served", lambda *_: {"identical": 22_362, "users": 22_363, "recommend_s": 1.0})
    (figure,) = accuracy.served(bench, log)
    assert 0.9999 < figure.value < 1
    assert figure.holds
    assert "22362 of 22363 users" in figure.note


def test_figures_are_written_for_machines_and_a_missed_bar_is_shown(tmp_path, capsys):
    found = [
        at_least("a", 0.5, 0.4, "share", "two seeds"),
        at_most("b", 9.0, 8.0, "min", "alone"),
        plain("c", 1.0, "s", ""),
    ]
    publish(found, tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written[0] == {"name": "a", "value": 0.5, "bar": 0.4, "holds": True, "unit": "share", "note": "two seeds"}
    assert [one["holds"] for one in written] == [True, False, None]
    assert "| b | 9 min | 8 | **misses** alone |" in capsys.readouterr().out


def test_a_peer_that_takes_far_longer_is_stopped(bench, log, tmp_path, monkeypatch):
    ours = {"train_s": 0.1, "hr@10": 0.5, "ndcg@10": 0.4}
    monkeypatch.setattr(bench, "longtide", lambda *_: ours)
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    stopped = next(accuracy.of_peer(bench, log, slow))
    assert (stopped.name, stopped.value, stopped.unit) == ("a-log RecTools SASRec, stopped after", 1.0, "s")
    ours["train_s"] = 0.2
    assert bench.rectools(log, slow)["stopped_s"] == 2.0  # a longer training of ours gives it longer, too


def test_a_peer_is_trained_as_long_as_longtide_where_its_own_training_is_shorter(bench, log, tmp_path, monkeypatch):
    asked, ours = [], {"train_s": 99.5, "hr@10": 0.5, "ndcg@10": 0.4}
    monkeypatch.setattr(bench, "longtide", lambda *_: ours)

    def trained(log, python, label, *options, limit_s=None):
        asked.append((label, *options))
        took = {"default": own_s, "sampled": 20.0, "as-long": 100.0}[label]
        return {"train_s": took, "epochs": 3.0, "hr@10": 0.3, "ndcg@10": 0.2}

    monkeypatch.setattr(bench, "_rectools", trained)
    own_s = 30.0
    names = [figure.name for figure in accuracy.of_peer(bench, log, tmp_path)]
    assert asked == [("default",), ("sampled", "--sampled"), ("as-long", "--seconds", 100)]
    assert [name for name in names if name.endswith("hr@10")] == [
        "a-log RecTools SASRec hr@10", "a-log RecTools SASRec, sampled hr@10", "a-log RecTools SASRec, as long hr@10",
    ]  # fmt: skip
    own_s = 300.0
    (tmp_path / "score.py").write_text("another scorer")
    fingerprint.cache_clear()
    assert len(list(accuracy.of_peer(bench, log, tmp_path))) == 4
    del asked[:]
    list(accuracy.of_peer(bench, log, tmp_path))
    assert asked == []
    for module in (product, pieces):
        monkeypatch.setattr(module, "machine", lambda: "another")  # how long it takes there says nothing of here
    for _ in range(2):
        bench.rectools(log, tmp_path)
    assert asked == [("default",)]


def test_a_training_is_made_anew_for_another_log_or_scorer_or_alone_on_another_machine(
    bench, log, tmp_path, monkeypatch
):
    trained = []

    def measured(*command, **_):
        (tmp_path / "work" / "a-log.longtide.0.jsonl").write_text("")
        return Measured(1.0, 1.0, 1.0)

    monkeypatch.setattr(product, "trained_anew", lambda *_: trained.append(1) or Measured(1.0, 1.0, 1.0))
    monkeypatch.setattr(product, "measured", measured)
    monkeypatch.setattr(product, "output", lambda *_: '{"metrics": {}, "fusion": {}}')
    bench.longtide(log, 0)
    bench.longtide(log, 0)
    assert len(trained) == 1
    for changed, times in (("a-log/interactions.csv.gz", 2), ("score.py", 3)):
        (tmp_path / changed).write_text("another")
        fingerprint.cache_clear()
        bench.longtide(log, 0)
        assert len(trained) == times
    bench.longtide(log, 0, alone=True)
    bench.longtide(log, 0, alone=True)
    bench.longtide(log, 0)
    assert len(trained) == 4
    for module in (product, pieces):
        monkeypatch.setattr(module, "machine", lambda: "another")
    bench.longtide(log, 0)
    assert len(trained) == 4
    bench.longtide(log, 0, alone=True)
    bench.longtide(log, 0, alone=True)
    assert len(trained) == 5


def test_a_source_alone_ranks_by_what_it_says_alone(tiny_log, tiny_snapshots, tmp_path):
    """By popularity, people get what they have not had in the order of the catalogue; by the encoder, another."""
    lists = {}
    for source in (Source.POPULARITY, Source.ENCODER):
        asyncio.run(product.write_lists(tiny_snapshots, tiny_log, tmp_path / "recs.jsonl", source))
        rows = map(json.loads, (tmp_path / "recs.jsonl").read_text().splitlines())
        lists[source] = {row["user_id"]: row["items"] for row in rows}
    sequences, catalog = to_sequences(read_log(tiny_log)[0]), load_snapshot(tiny_snapshots).catalog
    by_popularity = [catalog.item_id(number) for number in range(1, len(catalog) + 1)]
    for user, owner in enumerate(sequences.owners):
        had = {sequences.item_ids[item - 1] for item in sequences.items[sequences.of(user)]}
        expected = [item for item in by_popularity if item not in had]
        assert lists[Source.POPULARITY][user_of(owner)] == expected[:20]
    assert lists[Source.ENCODER] != lists[Source.POPULARITY]


def test_made_up_purchases_follow_the_clicks_and_come_of_some_items_more_than_of_others(tmp_path):
    draw = np.random.default_rng(0)
    clicks = [
        (f"s{n}", f"i{item}", 10.0 * n + step) for n in range(2_000) for step, item in enumerate(draw.integers(0, 5, 3))
    ]
    with gzip.open(tmp_path / "clicks.csv.gz", "wt") as file:
        csv.writer(file).writerows([("session_id", "item_id", "timestamp"), *clicks])
    counted = make_up(tmp_path / "clicks.csv.gz", tmp_path / "shop.csv.gz")
    with gzip.open(tmp_path / "shop.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["event_type"] for row in rows) == counted
    assert counted["view"] == len(clicks)

    viewed, bought = Counter(), Counter()
    seen: dict[tuple[str, str], float] = {}
    for row in rows:
        pair = (row["user_id"], row["item_id"])
        if row["event_type"] == "view":
            viewed[row["item_id"]] += pair not in seen
            seen[pair] = float(row["timestamp"])
        else:
            bought[row["item_id"]] += 1
            assert float(row["timestamp"]) > seen[pair]
    shares = [bought[item] / viewed[item] for item in viewed]
    assert max(shares) > 2 * min(shares)
