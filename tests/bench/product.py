"""The product's own commands on real logs, piece by piece: what a benchmark trains, asks and scores.

Every log is cut by the scorer, so nothing that trains can have seen a target.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench.figures import machine
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


BY_ITSELF = (Source.ENCODER, Source.NEIGHBORS, Source.TRANSITIONS, Source.POPULARITY)
ONE_EPOCH = ("--set", "train.epochs=1", "--set", "train.refit_epochs=0")
MORE_FOR_PEERS = 0.2
"""The share by which what is compared at equal time may have been trained longer than Longtide."""
MOST_FOR_PEERS = 10.0
"""A peer's own training is stopped when it has taken so many times as long as Longtide's."""
EVENTS_A_CALL = 1000


class Bench(Pieces):
    """Cuts, trains, predicts and scores."""

    def __init__(self, data: Path, scorer: Path, work: Path, own: Sequence[Path] = ()) -> None:
        """`own`: code of the benchmark that pieces depend on, beside this."""
        super().__init__(work, (Path(__file__), *own))
        self.data, self.scorer = data, scorer

    def raw(self, log: Log) -> Path:
        """The whole log."""
        return self.data / log.folder / "interactions.csv.gz"

    def files(self, log: Log) -> list[Path]:
        """What a log's figures depend on beside code: the log, and the scorer that cuts it and judges."""
        return [self.raw(log), self.scorer]

    def cut(self, log: Log) -> tuple[Path, Path]:
        """The training log and the targets."""
        train, targets = self.work / f"{log.folder}.train.csv.gz", self.work / f"{log.folder}.targets.csv"

        def do() -> dict[str, Any]:
            told = output(sys.executable, self.scorer, "split", self.raw(log), "--train", train, "--targets", targets)
            return dict(json.loads(told))

        self.piece(f"{log.folder}.split", do, read=self.files(log), ours=False)
        return train, targets

    def request_times(self, log: Log) -> Path:
        """When the targets happened: everyone's last time in the log."""
        path = self.work / f"{log.folder}.times.csv"

        def do() -> dict[str, Any]:
            last: dict[str, float] = {}
            for row in rows_of(self.raw(log)):
                last[row["user_id"]] = max(float(row["timestamp"]), last.get(row["user_id"], 0.0))
            lines = (f"{user},{time_s}\n" for user, time_s in last.items())
            path.write_text("user_id,timestamp\n" + "".join(lines))
            return {"users": len(last)}

        self.piece(f"{log.folder}.times", do, read=self.files(log), ours=False)
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
        """`longtide train`, `longtide predict`, score; with `alone`, of a training that had this machine to itself."""
        train, _ = self.cut(log)
        name = f"{log.folder}.{label}.{seed}"
        snapshot, recs = self.work / name, self.work / f"{name}.jsonl"
        files = {part: self.data / log.folder / part for part in options if part.startswith("items")}
        words = [files.get(part, part) for part in options]

        def do() -> dict[str, Any]:
            trained = trained_anew(train, snapshot, "--seed", seed, *words)
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

        def fits(kept: dict[str, Any]) -> bool:
            return not alone or (kept["alone"] and kept["machine"] == machine())

        return self.piece(name, do, options, [*self.files(log), *files.values()], fits)

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

        return self.piece(f"{name}.by-source", do, [lists], self.files(log))

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

        return self.piece(name, do, read=self.files(log))

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

        return self._peer(log, "default", do, fits)

    def rectools_sampled(self, log: Log, python: Path) -> dict[str, Any]:
        """The same with a sampled softmax: far faster where there are many items."""

        def do() -> dict[str, Any]:
            return self._rectools(log, python, "sampled", "--sampled")

        return self._peer(log, "sampled", do)

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

        return self._peer(log, "as-long", do, fits)

    def _peer(
        self,
        log: Log,
        label: str,
        do: Callable[[], dict[str, Any]],
        fits: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any]:
        """A piece of a peer's, made on this machine, as what it stands beside."""
        given = [digest_of([HERE / "rectools_sasrec.py"])]
        name = f"{log.folder}.rectools-sasrec.{label}"
        return self.piece(
            name, do, given, self.files(log), lambda kept: kept["machine"] == machine() and fits(kept), ours=False
        )

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

        return self.piece(f"{log.folder}.served.{seed}", do, [lists, serving_code()], self.files(log))


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
