"""`make bench-accuracy`: measures the accuracy figures of the README with the product's own commands on real logs.

    python -m tests.bench.accuracy --data DIR --scorer score.py [--only LOG] [--seeds 3] [--jobs N]
        [--work DIR] [--json FILE]

Every log is cut by the scorer, so nothing that trains can have seen a target; `longtide train` runs without `--set`. A
piece of work that is done is kept in the work folder, so a run that was interrupted goes on. What is compared by its
time has the machine to itself; of the rest, as many trainings run side by side as there are cores, a thread each,
unless `--jobs` says otherwise: that is faster than one training on all.

The logs are `DIR/movielens-1m/interactions.csv.gz` and so on, in columns as `longtide train` reads them, and beside
those that have texts lies what `Log.items` names. The scorer is a script: `score.py split LOG --train FILE --targets
FILE` cuts off each user's last event, and `score.py score LISTS --targets FILE --train FILE` prints JSON with `hr@10`,
`ndcg@10`, `lists_with_seen_items` and what else it measures.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench.figures import Figure, at_least, at_most, options, plain, publish
from tests.bench.pieces import Pieces, digest_of

import longtide
import longtide_handlers
import longtide_server
from longtide_server.events import user_of
from longtide_server.ranking import Fusion
from longtide_server.snapshot import load_snapshot
from longtide_server.sources.candidates import Source, TransitionSettings
from longtide_server.training.dataset import to_sequences
from longtide_server.training.files.log import read_log
from longtide_server.training.judging.baselines import transition_lists
from longtide_server.training.offline import OfflineRecommender, query_of
from longtide_server.training.pipeline import TRANSITIONS_TRIED

HERE = Path(__file__).parent
LONGTIDE = (sys.executable, "-m", "longtide_server")
GIBIBYTE = 1 << 20  # of what the kernel counts, kibibytes


@dataclass(frozen=True)
class Log:
    """A log with its bars."""

    folder: str
    hit_rate: float
    ndcg: float
    train_minutes: float | None = None
    items: tuple[str, ...] = ()
    """Options that bring in the items' texts; empty where their effect is not measured."""
    has_times: bool = True
    """Whether the times are times, so that the time of a request can be told."""


PEER = (digest_of([HERE / "rectools_sasrec.py"]),)
"""What a peer's figures depend on."""
BY_ITSELF = (Source.ENCODER, Source.NEIGHBORS, Source.TRANSITIONS, Source.POPULARITY)
ONE_EPOCH = ("--set", "train.epochs=1", "--set", "train.refit_epochs=0")
LOGS = (
    Log("movielens-1m", 0.340, 0.200, 60, ("--items", "items.csv"), has_times=False),
    Log("amazon-beauty", 0.104, 0.064, 20, ("--items", "items.csv.gz")),
    Log("amazon-sports", 0.065, 0.040),
)
PEAK_GIB = 5.59
"""6 GB."""
MORE_FOR_PEERS = 0.2
"""The share by which what is compared at equal time may have been trained longer than Longtide."""
MOST_FOR_PEERS = 10.0
"""A peer's own training is stopped when it has taken so many times as long as Longtide's."""
EVENTS_A_CALL = 1000


class Bench(Pieces):
    """Cuts, trains, predicts and scores."""

    def __init__(self, data: Path, scorer: Path, work: Path) -> None:
        super().__init__(work)
        self.data, self.scorer = data, scorer

    def cut(self, log: Log) -> tuple[Path, Path]:
        """The training log and the targets."""
        train, targets = self.work / f"{log.folder}.train.csv.gz", self.work / f"{log.folder}.targets.csv"

        def do() -> dict[str, Any]:
            raw = self.data / log.folder / "interactions.csv.gz"
            return dict(
                json.loads(output(sys.executable, self.scorer, "split", raw, "--train", train, "--targets", targets))
            )

        self.piece(f"{log.folder}.split", do, ours=False)
        return train, targets

    def request_times(self, log: Log) -> Path:
        """When the targets happened: everyone's last time in the log."""
        path = self.work / f"{log.folder}.times.csv"

        def do() -> dict[str, Any]:
            last: dict[str, float] = {}
            for row in rows_of(self.data / log.folder / "interactions.csv.gz"):
                last[row["user_id"]] = max(float(row["timestamp"]), last.get(row["user_id"], 0.0))
            lines = (f"{user},{time_s}\n" for user, time_s in last.items())
            path.write_text("user_id,timestamp\n" + "".join(lines))
            return {"users": len(last)}

        self.piece(f"{log.folder}.times", do, ours=False)
        return path

    def score(self, recs: Path, log: Log) -> dict[str, Any]:
        """What the scorer says of a file of recommendations."""
        train, targets = self.cut(log)
        return dict(
            json.loads(output(sys.executable, self.scorer, "score", recs, "--targets", targets, "--train", train))
        )

    def longtide(
        self, log: Log, seed: int, options: tuple[str, ...] = (), label: str = "longtide", *, alone: bool = False
    ) -> dict[str, Any]:
        """`longtide train`, `longtide predict`, score; `alone` says whether it has the machine to itself."""
        train, _ = self.cut(log)
        name = f"{log.folder}.{label}.{seed}"
        snapshot, recs = self.work / name, self.work / f"{name}.jsonl"
        paths = tuple(str(self.data / log.folder / part) if part.startswith("items") else part for part in options)

        def do() -> dict[str, Any]:
            trained = trained_anew(train, snapshot, "--seed", seed, *paths)
            predicted = measured(*LONGTIDE, "predict", snapshot, train, "--out", recs, "--k", 20)
            timed: dict[str, Any] = {}
            if log.has_times:
                told = recs.with_suffix(".timed.jsonl")
                times = self.request_times(log)
                measured(*LONGTIDE, "predict", snapshot, train, "--out", told, "--k", 20, "--request-times", times)
                timed = self.score(told, log)
            manifest = json.loads(output(*LONGTIDE, "info", snapshot, "--json"))
            return {
                **self.score(recs, log),
                "lists": hashlib.sha256(recs.read_bytes()).hexdigest(),
                "timed": timed,
                "alone": alone,
                "train_s": trained.seconds,
                "train_cpu_s": trained.cpu_seconds,
                "train_peak_gib": trained.peak_gib,
                "predict_s": predicted.seconds,
                "validation": manifest["metrics"],
                "fusion": manifest["fusion"],
            }

        return self.piece(name, do, fits=lambda kept: kept["alone"] or not alone)

    def by_source(
        self, log: Log, seed: int, sources: Sequence[Source] = BY_ITSELF, label: str = "longtide"
    ) -> dict[str, Any]:
        """What each source reaches by itself: the lists of a trained snapshot when no other one has a say."""
        train, _ = self.cut(log)
        lists = self.longtide(log, seed, log.items if label == "texts" else (), label)["lists"]
        name = f"{log.folder}.{label}.{seed}"
        recs = self.work / f"{name}.by-source.jsonl"

        def do() -> dict[str, Any]:
            found = {}
            for source in sources:
                asyncio.run(write_lists(self.work / name, train, recs, source))
                found[source.name.lower()] = self.score(recs, log)
            return found

        return self.piece(f"{name}.by-source", do, [lists])

    def transitions(self, log: Log) -> dict[str, Any]:
        """The baseline that learns nothing, on the same targets: the better of the ways to count that Longtide has."""
        train, _ = self.cut(log)
        name = f"{log.folder}.transitions"

        def do() -> dict[str, Any]:
            recs = self.work / f"{name}.jsonl"
            found = []
            for way in TRANSITIONS_TRIED:
                write_transitions(train, recs, way)
                found.append(self.score(recs, log))
            return max(found, key=lambda one: float(one["ndcg@10"]))

        return self.piece(name, do)

    def rectools(self, log: Log, python: Path) -> dict[str, Any]:
        """RecTools' SASRec as it is, on the same cut; only `stopped_s` where that takes far longer than Longtide."""
        limit_s = round(MOST_FOR_PEERS * float(self.longtide(log, 0)["train_s"]), 1)

        def do() -> dict[str, Any]:
            try:
                return self._rectools(log, python, "default", limit_s=limit_s)
            except subprocess.TimeoutExpired:
                return {"stopped_s": limit_s}

        def fits(kept: dict[str, Any]) -> bool:
            return "stopped_s" not in kept or bool(kept["stopped_s"] >= limit_s)

        return self.piece(f"{log.folder}.rectools-sasrec.default", do, PEER, fits, ours=False)

    def rectools_sampled(self, log: Log, python: Path) -> dict[str, Any]:
        """The same with a sampled softmax: far faster where there are many items."""

        def do() -> dict[str, Any]:
            return self._rectools(log, python, "sampled", "--sampled")

        return self.piece(f"{log.folder}.rectools-sasrec.sampled", do, PEER, ours=False)

    def rectools_as_long(self, log: Log, python: Path) -> dict[str, Any] | None:
        """Its default, trained for at least as many seconds as Longtide, and at its best epoch; None where its own
        training takes as long."""
        if self.rectools(log, python).get("train_s", math.inf) >= self.longtide(log, 0)["train_s"]:
            return None
        seconds = math.ceil(self.longtide(log, 0)["train_s"])

        def do() -> dict[str, Any]:
            return self._rectools(log, python, "as-long", "--seconds", seconds)

        def fits(kept: dict[str, Any]) -> bool:
            return bool(1.0 <= kept["train_s"] / seconds <= 1.0 + MORE_FOR_PEERS)

        return self.piece(f"{log.folder}.rectools-sasrec.as-long", do, PEER, fits, ours=False)

    def _rectools(
        self, log: Log, python: Path, label: str, *options: object, limit_s: float | None = None
    ) -> dict[str, Any]:
        train, _ = self.cut(log)
        recs = self.work / f"{log.folder}.rectools-sasrec.{label}.jsonl"
        told = output(python, HERE / "rectools_sasrec.py", train, recs, *options, limit_s=limit_s)
        return {**self.score(recs, log), **json.loads(told.splitlines()[-1])}

    def one_epoch(self, log: Log) -> dict[str, Any]:
        """The least that can be trained, alone on the machine."""
        return self.longtide(log, 0, ONE_EPOCH, "one-epoch", alone=True)

    def served(self, log: Log, seed: int) -> dict[str, Any]:
        """How many of the lists of a running server, TorchServe and SDK included, are those of `predict`."""
        train, _ = self.cut(log)
        lists = self.longtide(log, seed)["lists"]  # those of a later training are others
        name = f"{log.folder}.longtide.{seed}"

        def do() -> dict[str, Any]:
            return asyncio.run(compare_with_server(self.work / name, train, self.work / f"{name}.jsonl"))

        return self.piece(f"{log.folder}.served.{seed}", do, [lists, serving_code()])


def serving_code() -> str:
    """A digest of what answers through a server depend on: the whole product, and not only what trains and ranks."""
    roots = [Path(str(package.__file__)).parent for package in (longtide, longtide_handlers, longtide_server)]
    return digest_of(sorted(path for root in roots for path in root.rglob("*.py")))


@dataclass(frozen=True)
class Measured:
    """What a process took."""

    seconds: float
    cpu_seconds: float
    peak_gib: float


def measured(*command: object, **variables: object) -> Measured:
    """Run a command, with environment variables beside those there are, and measure it."""
    begun = time.monotonic()
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, env=environment)
    peak = 0
    while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
        # Not what wait4 says: that counts the memory of this process as well, of which the other one was forked.
        peak = max(peak, high_water(process.pid))
        time.sleep(0.05)
    _, status, usage = found
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Measured(round(time.monotonic() - begun, 1), round(cpu_s, 1), round(peak / GIBIBYTE, 2))


def trained_anew(log: Path, snapshot: Path, *options: object) -> Measured:
    """Train with nothing left of before: what an interrupted run had reached, or texts that were read already, would
    make this one shorter."""
    with tempfile.TemporaryDirectory(prefix="longtide-cache-") as cache:
        shutil.rmtree(snapshot, ignore_errors=True)
        return measured(*LONGTIDE, "train", log, "--out", snapshot, *options, LONGTIDE_CACHE=cache)


def high_water(pid: int) -> int:
    """The most memory that a process has held so far, kibibytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def output(*command: object, limit_s: float | None = None) -> str:
    """What a command prints. Raises subprocess.TimeoutExpired where it takes longer than it may."""
    words = [str(part) for part in command]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=limit_s).stdout


def write_transitions(train: Path, recs: Path, way: TransitionSettings) -> None:
    """Twenty items for everyone by the product's transition baseline."""
    sequences = to_sequences(read_log(train)[0])
    lists = transition_lists(sequences, np.arange(sequences.user_count), way, 20)
    with recs.open("w", encoding="utf-8") as file:
        for user, row in zip(map(user_of, sequences.owners), lists.tolist(), strict=True):
            file.write(json.dumps({"user_id": user, "items": [sequences.item_ids[n - 1] for n in row if n]}) + "\n")


async def write_lists(snapshot: Path, train: Path, recs: Path, source: Source) -> None:
    """Twenty items for everyone by one source of a snapshot alone; popularity decides between equals."""
    sequences, loaded = to_sequences(read_log(train)[0]), load_snapshot(snapshot)
    weights = tuple((other, float(other == source)) for other in Source if hasattr(Fusion, other.name.lower()))
    queries = [replace(query_of(owner, 20), source_weights=weights) for owner in sequences.owners]
    offline = OfflineRecommender(loaded, sequences)
    try:
        with recs.open("w", encoding="utf-8") as file:
            places = iter(queries)
            async for answer in offline.answers(queries):
                items = [item.item_id for item in answer.recommendations]
                file.write(json.dumps({"user_id": next(places).user_id, "items": items}) + "\n")
    finally:
        await offline.close()


async def compare_with_server(snapshot: Path, train: Path, predicted: Path) -> dict[str, Any]:
    """Write the log's events through the SDK, ask for everyone, and compare the first ten with the file's."""
    from longtide import AsyncClient, Event

    with predicted.open(encoding="utf-8") as file:
        expected = {line["user_id"]: line["items"][:10] for line in map(json.loads, file)}
    with running_server(snapshot) as target:
        async with AsyncClient(target) as client:
            begun = time.monotonic()
            batch: list[Event] = []
            for number, row in enumerate(rows_of(train)):
                happened = datetime.fromtimestamp(float(row["timestamp"]), UTC)
                batch.append(Event(row["user_id"], row["item_id"], "view", time=happened, event_id=str(number)))
                if len(batch) == EVENTS_A_CALL:
                    await client.write_events(batch)
                    batch = []
            await client.write_events(batch)
            written_s = time.monotonic() - begun
            begun = time.monotonic()
            same = users = 0
            async for answer in client.recommend_many(list(expected), limit=10):
                users += 1
                same += [item.item_id for item in answer] == expected[answer.user_id]
    return {
        "identical": same,
        "users": users,
        "write_s": round(written_s, 1),
        "recommend_s": round(time.monotonic() - begun, 1),
    }


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a zipped CSV file."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@contextmanager
def running_server(snapshot: Path) -> Iterator[str]:
    """A real server that knows no event yet, TorchServe included; yields its address."""
    with (
        tempfile.TemporaryDirectory(prefix="longtide-server-") as data,
        subprocess.Popen(
            [*LONGTIDE, "serve", "--snapshot", str(snapshot), "--data-dir", data, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("Serving on "):
                raise SystemExit(f"the server did not start: {line}")
            yield line.split()[2]
        finally:
            process.terminate()
            process.wait(60)


# The tables


def mean(pieces: list[dict[str, Any]], name: str) -> float:
    """Over seeds."""
    return round(statistics.mean(float(piece[name]) for piece in pieces), 4)


def over(pieces: list[dict[str, Any]], name: str) -> str:
    """Of how many seeds a mean is, and between which of their values it lies."""
    values = [float(piece[name]) for piece in pieces]
    return f"mean of {len(values)} seeds, {min(values):.4f} to {max(values):.4f}"


def accuracy(bench: Bench, log: Log, seeds: int) -> Iterator[Figure]:
    """Plain `longtide train`, beside the transition baseline, against the bars."""
    runs = [bench.longtide(log, seed) for seed in range(seeds)]
    base = bench.transitions(log)
    for name, bar in (("hr@10", log.hit_rate), ("ndcg@10", log.ndcg)):
        value = mean(runs, name)
        note = f"{over(runs, name)}; transitions {base[name]}"
        yield at_least(f"{log.folder} {name}", value, bar, "share", note)
    dirty = sum(run["lists_with_seen_items"] for run in runs)
    yield at_most(f"{log.folder} lists with seen items", dirty, 0, "lists", "over all seeds")
    core_s = [run["train_cpu_s"] for run in runs]
    cores_time = f"{min(core_s) / 60:.0f} to {max(core_s) / 60:.0f} min of a core's time"
    if log.train_minutes is not None:
        minutes = round(runs[0]["train_s"] / 60, 1)
        company = f"alone on {os.cpu_count()} cores" if runs[0].get("alone") else "others beside it"
        note = f"seed 0, {company}; {cores_time}"
        yield at_most(f"{log.folder} training", minutes, log.train_minutes, "min", note)
    else:
        minutes = round(max(run["train_s"] for run in runs) / 60, 1)
        yield plain(f"{log.folder} training", minutes, "min", f"slowest, others beside it; {cores_time}")
    peak = max(run["train_peak_gib"] for run in runs)
    yield at_most(f"{log.folder} training, peak memory", peak, PEAK_GIB, "GiB", "largest")


def timed(bench: Bench, log: Log, seeds: int) -> Iterator[Figure]:
    """The same snapshots, told when the target happened."""
    runs = [bench.longtide(log, seed) for seed in range(seeds)]
    told = [run["timed"] for run in runs]
    for name in ("hr@10", "ndcg@10"):
        note = f"{over(told, name)}; {mean(runs, name)} when the time is not told"
        yield plain(f"{log.folder} at request time {name}", mean(told, name), "share", note)


def sources(bench: Bench, log: Log, seeds: int) -> Iterator[Figure]:
    """Every source alone on the test targets; and on the validation targets of seed 0, which weights were fitted on."""
    runs = [bench.by_source(log, seed) for seed in range(seeds)]
    for source in (source.name.lower() for source in BY_ITSELF):
        found = [run[source] for run in runs]
        for name in ("hr@10", "ndcg@10"):
            yield plain(f"{log.folder} {source} alone, {name}", mean(found, name), "share", over(found, name))
    fitted = bench.longtide(log, 0)
    for source, metrics in fitted["validation"].items():
        for name, value in metrics.items():
            note = f"seed 0; weight {fitted['fusion'].get(source, 1)}, fitted on these targets"
            yield plain(f"{log.folder} validation, {source} {name}", value, "share", note)


def texts(bench: Bench, log: Log) -> Iterator[Figure]:
    """What the items' texts add, and what the nearest items by content are worth by themselves."""
    without, read = bench.longtide(log, 0), bench.longtide(log, 0, log.items, "texts")
    content = bench.by_source(log, 0, (Source.CONTENT,), "texts")["content"]
    for name in ("hr@10", "ndcg@10"):
        note = f"seed 0; {without[name]} without"
        yield plain(f"{log.folder} with item texts {name}", read[name], "share", note)
        yield plain(f"{log.folder} content alone, {name}", content[name], "share", "seed 0, with item texts")
    yield at_most(f"{log.folder} with item texts, peak memory", read["train_peak_gib"], PEAK_GIB, "GiB", "seed 0")


def soon(bench: Bench, log: Log) -> Iterator[Figure]:
    """What Longtide has reached after its first epoch, everything else that makes a snapshot included."""
    first = bench.one_epoch(log)
    for name in ("hr@10", "ndcg@10"):
        note = f"{first['train_s']:.0f} s from log to snapshot, seed 0"
        yield plain(f"{log.folder} after one epoch {name}", first[name], "share", note)


def of_peer(bench: Bench, log: Log, python: Path) -> Iterator[Figure]:
    """RecTools' SASRec on the same cut and machine: its own default training, and others."""
    theirs = bench.rectools(log, python)
    if "stopped_s" in theirs:
        note = f"not done; Longtide took {bench.longtide(log, 0)['train_s']} s from log to snapshot"
        yield plain(f"{log.folder} RecTools SASRec, stopped after", theirs["stopped_s"], "s", note)
    else:
        yield from beside(bench, log, "RecTools SASRec", theirs)
    yield from beside(bench, log, "RecTools SASRec, sampled", bench.rectools_sampled(log, python))
    if (as_long := bench.rectools_as_long(log, python)) is not None:
        yield from beside(bench, log, "RecTools SASRec, as long", as_long)


def beside(bench: Bench, log: Log, name: str, theirs: dict[str, Any]) -> Iterator[Figure]:
    """A peer's figures, with Longtide's."""
    ours = bench.longtide(log, 0)
    took = f"{theirs['epochs']} epochs in {theirs['train_s']:.0f} s"
    for metric in ("hr@10", "ndcg@10"):
        note = f"{took} of fitting; Longtide {ours[metric]} in {ours['train_s']:.0f} s from log to snapshot"
        yield plain(f"{log.folder} {name} {metric}", theirs[metric], "share", note)


def served(bench: Bench, log: Log) -> Iterator[Figure]:
    """The lists of the running server against those of `predict`."""
    found = bench.served(log, 0)
    same, users = found["identical"], found["users"]
    note = f"{same} of {users} users, recommend_many in {found['recommend_s']} s"
    yield at_least(f"{log.folder} served lists equal to predict's", round(same / users, 6), 0.99, "share", note)


def ratings(bench: Bench) -> Iterator[Figure]:
    """The error of predicted ratings."""
    log = bench.data / "movielens-100k" / "interactions.csv.gz"

    def do() -> dict[str, Any]:
        return dict(json.loads(output(*LONGTIDE, "evaluate", log, "--json")))

    behavior = bench.piece("movielens-100k.ratings", do)["behavior"]
    biases, median = behavior["value_mae_biases"], behavior["value_mae_user_median"]
    note = f"each user's last rating; biases of users and items {biases}, the user's median {median}"
    yield plain("movielens-100k rating MAE", behavior["value_mae"], "stars", note)


def train_everything(bench: Bench, logs: Sequence[Log], seeds: int, rectools: Path | None, jobs: int) -> None:
    """The pieces that take long: what is compared by its time alone, then the rest, `jobs` at a time."""
    for log in logs:
        bench.cut(log)
        bench.transitions(log)
        if log.has_times:
            bench.request_times(log)
    for log in logs:
        if log.train_minutes is not None:
            train_alone(bench, log, rectools)
    # Each of those that run side by side has its share of the cores, and the longest come first.
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    with ThreadPoolExecutor(jobs) as pool:
        work = [pool.submit(bench.longtide, log, seed) for log in logs for seed in range(seeds)]
        work += [pool.submit(bench.longtide, log, 0, log.items, "texts") for log in logs if log.items]
        for one in work:
            one.result()


def train_alone(bench: Bench, log: Log, rectools: Path | None) -> None:
    """Longtide and its peers, one after the other, each with the whole machine."""
    bench.longtide(log, 0, alone=True)
    bench.one_epoch(log)
    if rectools is not None:
        bench.rectools(log, rectools)
        bench.rectools_sampled(log, rectools)
        bench.rectools_as_long(log, rectools)


def figures(bench: Bench, logs: Sequence[Log], seeds: int, rectools: Path | None) -> Iterator[Figure]:
    """All of some logs, what a bar is for first."""
    for log in logs:
        yield from accuracy(bench, log, seeds)
    for log in logs:
        if log.has_times:
            yield from timed(bench, log, seeds)
        yield from sources(bench, log, seeds)
        yield from served(bench, log)
        if log.items:
            yield from texts(bench, log)
        if log.train_minutes is not None:
            yield from soon(bench, log)
        if rectools is not None and log.train_minutes is not None:
            yield from of_peer(bench, log, rectools)


def main() -> None:
    """Print a table, and write the figures for machines."""
    parser = options(__doc__)
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--rectools", type=Path, help="the Python of an environment with rectools[torch]")
    parser.add_argument("--only", choices=[log.folder for log in LOGS], help="one log instead of all of them")
    asked = parser.parse_args()
    bench = Bench(asked.data, asked.scorer, asked.work)
    logs = [log for log in LOGS if asked.only in (None, log.folder)]
    train_everything(bench, logs, asked.seeds, asked.rectools, asked.jobs)
    found = list(figures(bench, logs, asked.seeds, asked.rectools))
    found += [] if asked.only else ratings(bench)
    publish([*found, bench.of_other_code()], asked.json)


if __name__ == "__main__":
    main()
