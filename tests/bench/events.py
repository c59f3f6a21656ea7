"""`make bench-events`: what events cost, side by side with the plain parts that they are built on.

    python -m tests.bench.events --data DIR [--kills 100] [--work DIR] [--json FILE]

The server is a process of its own with the real TorchServe; the client runs beside it on the same cores. What is
compared is measured in turns, in one run; medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import json
import os
import random
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import redis
from tests.bench.figures import Figure, at_least, at_most, plain, publish
from tests.bench.product import LONGTIDE, measured, output
from tests.killing import killed_again_and_again
from tests.redis_servers import cli, redis_server

from longtide import AsyncClient, Client, ResourceExhaustedError
from longtide import Event as SentEvent
from longtide_server.event_store import sqlite_log
from longtide_server.event_store.redis import _by_owner
from longtide_server.event_store.redis_commands import call
from longtide_server.event_store.redis_log import write_arguments
from longtide_server.event_store.redis_scripts import WRITE
from longtide_server.event_store.rows import to_row
from longtide_server.events import Event

BATCH = 500
INGESTED = 100_000
ROUNDS = 3
FLOOD_CALLS = 64
TRIES = 1_000
LONG, SHORT = 100_000, 10
HISTORY_TRIES = 300


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--work", type=Path, default=Path(".longtide/bench-events"), help="emptied first")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    shutil.rmtree(asked.work, ignore_errors=True)
    asked.work.mkdir(parents=True)
    snapshot = small_snapshot(asked.data, asked.work)
    events = interleaved(asked.data / "movielens-1m" / "interactions.csv.gz", INGESTED)
    steps: list[Callable[[], Iterator[Figure]]] = [
        lambda: sqlite_ingest(snapshot, asked.work, events),
        lambda: redis_ingest(snapshot, asked.work, events),
        lambda: flood(snapshot, asked.work, events),
        lambda: read_your_writes(snapshot, asked.work),
        lambda: long_history(snapshot, asked.work),
        lambda: importing(asked.data, asked.work),
        lambda: killing(snapshot, asked.work, asked.kills),
    ]
    figures = []
    for step in steps:
        for figure in step():
            print(
                f"{time.strftime('%H:%M:%S')} {figure.name}: {figure.value:g} {figure.unit} ({figure.note})", flush=True
            )
            figures.append(figure)
    publish(figures, asked.json)


# Ingest


def sqlite_ingest(snapshot: Path, work: Path, events: Sequence[Event]) -> Iterator[Figure]:
    """Through the SDK's stream into SQLite, and the same rows inserted by plain sqlite3."""
    ours, theirs, growth = [], [], 0.0
    for turn in range(ROUNDS):
        with serving(snapshot, work / f"sqlite-{turn}") as (address, server):
            before = resident_mib(server)
            ours.append(streamed_per_s(address, events))
            growth = max(growth, resident_mib(server) - before)
        theirs.append(plain_sqlite_per_s(work / f"plain-{turn}.db", events))
    rate, bare = statistics.median(ours), statistics.median(theirs)
    note = f"median of {ROUNDS} x {len(events):,} events in batches of {BATCH}, fsync before every acknowledgement"
    yield at_least("durable ingest into SQLite", round(rate), 20_000, "events/s", note)
    note = f"plain sqlite3, the same pragmas, indexes and batches: {bare:,.0f} rows/s"
    yield at_least("durable ingest into SQLite against plain sqlite3", round(rate / bare, 3), 0.25, "ratio", note)
    yield plain("memory of the server that this took", round(growth, 1), "MiB", "largest of the rounds")


def redis_ingest(snapshot: Path, work: Path, events: Sequence[Event]) -> Iterator[Figure]:
    """Through the SDK's stream into Redis, and the same commands pipelined by plain redis-py."""
    ours, theirs = [], []
    with redis_server(work / "redis") as (port, _):
        for turn in range(ROUNDS):
            cli(port, "flushall")
            with serving(snapshot, work / f"redis-{turn}", "--store", f"redis://127.0.0.1:{port}") as (address, _):
                ours.append(streamed_per_s(address, events))
            cli(port, "flushall")
            theirs.append(plain_redis_per_s(port, events))
    rate, bare = statistics.median(ours), statistics.median(theirs)
    note = f"{rate:,.0f} against {bare:,.0f} events/s; appendfsync always, batches of {BATCH}"
    yield at_least("durable ingest into Redis against plain redis-py", round(rate / bare, 3), 1 / 3, "ratio", note)


def flood(snapshot: Path, work: Path, events: Sequence[Event]) -> Iterator[Figure]:
    """More callers with more events than the server may hold: what is not taken is refused, and nothing is lost."""
    calls = [
        [event._replace(event_id=f"{n}-{event.event_id}") for event in events[:10_000]] for n in range(FLOOD_CALLS)
    ]

    async def all_at_once(address: str) -> tuple[int, int]:
        async def one(call: list[Event]) -> int:
            try:
                return (await client.write_events(map(sent, call))).written_count
            except ResourceExhaustedError as exc:
                assert exc.retry_delay_s is not None
                return 0

        async with AsyncClient(address, timeout=120.0) as client:
            written = await asyncio.gather(*map(one, calls))
        return sum(written), written.count(0)

    with serving(snapshot, work / "flood") as (address, server):
        before = resident_mib(server)
        written, refused = asyncio.run(all_at_once(address))
        growth = resident_mib(server) - before
    with closing(sqlite3.connect(work / "flood" / "events.db")) as connection:
        [kept] = connection.execute("SELECT count(*) FROM events").fetchone()
    note = f"{FLOOD_CALLS} calls of 10,000 events at once; {refused} refused with RESOURCE_EXHAUSTED and a delay"
    yield at_most("acknowledged events lost in a flood", written - kept, 0, "events", note)
    yield plain("memory of the server that the flood took", round(growth, 1), "MiB", "")


def streamed_per_s(address: str, events: Sequence[Event]) -> float:
    """Events a second that one client streams; the events are made as they are sent, as a caller's are."""
    with Client(address, timeout=60.0) as client:
        begun = time.perf_counter()
        result = client.stream_events(map(sent, events), batch_size=BATCH)
        seconds = time.perf_counter() - begun
    assert result.written_count == len(events), result
    return len(events) / seconds


def plain_sqlite_per_s(path: Path, events: Sequence[Event]) -> float:
    """Rows a second of executemany alone, a transaction a batch: no checks, no owners, one process."""
    owners = {owner: number for number, owner in enumerate(dict.fromkeys(event.owner for event in events), 1)}
    rows = [(owners[event.owner], *to_row(event)) for event in events]
    with closing(sqlite_log.connect(path)) as connection:
        sqlite_log.prepare(connection, path)
        begun = time.perf_counter()
        for at in range(0, len(rows), BATCH):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(sqlite_log.INSERT, rows[at : at + BATCH])
            connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - begun)


def plain_redis_per_s(port: int, events: Sequence[Event]) -> float:
    """Events a second of the store's own commands, made before, a pipeline a batch."""
    batches = [
        [call(WRITE, owner, write_arguments(some)) for owner, some in _by_owner(events[at : at + BATCH]).items()]
        for at in range(0, len(events), BATCH)
    ]
    with closing(redis.Redis(port=port)) as client:
        client.script_load(WRITE.text)
        begun = time.perf_counter()
        for commands in batches:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            pipeline.execute()
        return len(events) / (time.perf_counter() - begun)


# Felt at once


def read_your_writes(snapshot: Path, work: Path) -> Iterator[Figure]:
    """Write an event on the best item, ask again as soon as it is acknowledged: the item must be gone."""
    felt, taken_ms = 0, []
    with serving(snapshot, work / "felt") as (address, _), Client(address, timeout=30.0) as client:
        best = {user: client.recommend(user, 1)[0].item_id for user in (f"user-{n}" for n in range(50))}
        for turn in range(TRIES):
            user = f"user-{turn % 50}"
            client.write_events([SentEvent(user, best[user])])
            begun = time.perf_counter()
            answer = client.recommend(user, 10)
            taken_ms.append(1_000 * (time.perf_counter() - begun))
            felt += not answer.degraded and best[user] not in [item.item_id for item in answer]
            best[user] = answer[0].item_id
    yield at_least("read your writes", felt, TRIES, f"of {TRIES}", "the event is in the next answer, encoded")
    note = "from the acknowledgement of an event to an answer that reflects it, one caller, TorchServe"
    yield plain("felt after, p50", round(statistics.median(taken_ms), 2), "ms", note)
    p99_ms = round(statistics.quantiles(taken_ms, n=100)[98], 2)
    yield at_most("felt after, p99", p99_ms, 50.0, "ms", f"{note}; the bar is our own")


def long_history(snapshot: Path, work: Path) -> Iterator[Figure]:
    """The next event and the next answer of a user with a long and of one with a short history, in turns."""
    items = json.loads(output(*LONGTIDE, "info", snapshot, "--json"))["item_count"]
    known = catalog_items(snapshot)
    write_ms: dict[str, list[float]] = {"long": [], "short": []}
    ask_ms: dict[str, list[float]] = {"long": [], "short": []}
    with serving(snapshot, work / "long") as (address, _), Client(address, timeout=120.0) as client:
        for user, count in (("long", LONG), ("short", SHORT)):
            # All of a few items, so that both have the same items left to be recommended.
            client.stream_events(SentEvent(user, known[n % SHORT], time=1e9 + n) for n in range(count))
            client.recommend(user)
        for turn in range(HISTORY_TRIES):
            for user in ("long", "short"):
                event = SentEvent(user, known[turn % SHORT], time=1.5e9 + turn)
                begun = time.perf_counter()
                client.write_events([event])
                written = time.perf_counter()
                client.recommend(user)
                write_ms[user].append(1_000 * (written - begun))
                ask_ms[user].append(1_000 * (time.perf_counter() - written))
    for name, found in (("writing the next event", write_ms), ("recommending after it", ask_ms)):
        long, short = statistics.median(found["long"]), statistics.median(found["short"])
        note = f"{long:.2f} ms against {short:.2f} ms, medians of {HISTORY_TRIES}; {items:,} items"
        yield at_most(f"{name}: {LONG:,} events of history against {SHORT}", round(long / short, 2), 1.5, "ratio", note)


# Import and kills


def importing(data: Path, work: Path) -> Iterator[Figure]:
    """A million events from a file into SQLite."""
    log = data / "movielens-1m" / "interactions.csv.gz"
    store = f"sqlite:///{work.resolve() / 'imported.db'}"
    found = measured(*LONGTIDE, "import", log, "--store", store, "--bad-rows", work / "bad.csv")
    note = "1,000,209 events from CSV.gz into SQLite; the bar is our own"
    yield at_most("importing movielens-1m", found.seconds, 60.0, "s", note)
    yield at_most("importing movielens-1m, peak memory", found.peak_gib, 0.5, "GiB", "the bar is our own")


def killing(snapshot: Path, work: Path, kills: int) -> Iterator[Figure]:
    """`kill -9` under load, again and again, with one stream that goes on through all of it."""
    survived = killed_again_and_again(snapshot, work / "killed", kills, seed=0)
    with closing(sqlite3.connect(work / "killed" / "events.db")) as connection:
        kept = [name for (name,) in connection.execute("SELECT event_id FROM events ORDER BY position")]
    lost, doubled = len(set(survived.sent) - set(kept)), len(kept) - len(set(kept))
    note = f"{len(survived.sent):,} events acknowledged over {kills} kills of the server"
    yield at_most("acknowledged events lost by kill -9", lost, 0, "events", note)
    yield at_most("events doubled by retries", doubled, 0, "events", note)


# The parts


def small_snapshot(data: Path, work: Path) -> Path:
    """Something to serve: what events cost does not hang on how well it was trained."""
    log = data / "movielens-latest-small" / "ratings.csv.gz"
    columns = ("--columns", "user_id=userId,item_id=movieId")
    quick = ("--set", "train.epochs=1", "--set", "train.fine_tune_epochs=1", "--text-model", "none")
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):  # more threads wait for each other where others work too
        output(*LONGTIDE, "train", log, "--out", work / "snapshot", *columns, *quick)
    return work / "snapshot"


def catalog_items(snapshot: Path) -> tuple[str, ...]:
    """The items of a snapshot."""
    from longtide_server.snapshot import load_snapshot

    return load_snapshot(snapshot).catalog.item_ids


def interleaved(path: Path, count: int) -> list[Event]:
    """Real events in an order in which many users take turns, as they do in life."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    return [
        Event(str(n), row["user_id"], row["item_id"], 1, 1e9 + float(row["timestamp"]))
        for n, row in enumerate(rows[:count])
    ]


def sent(event: Event) -> SentEvent:
    """The event as a caller of the SDK makes it."""
    return SentEvent(event.user_id, event.item_id, "view", time=event.time_s, event_id=event.event_id)


@contextmanager
def serving(snapshot: Path, data_dir: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A real server, TorchServe included; yields its address and its process."""
    command = (*LONGTIDE, "serve", "--snapshot", snapshot, "--data-dir", data_dir, "--listen", "127.0.0.1:0", *options)
    with psutil.Popen([str(part) for part in command], stdout=-1, stderr=-3, text=True) as process:
        try:
            line = process.stdout.readline()
            if not line.startswith("Serving on "):
                raise SystemExit(f"the server did not start: {line}")
            yield line.split()[2], process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def resident_mib(process: psutil.Process) -> float:
    """The memory of a process."""
    return float(process.memory_info().rss / (1 << 20))


if __name__ == "__main__":
    main()
