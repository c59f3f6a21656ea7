"""How many fresh-state `Recommend` a second a server answers, by its number of processes.

    python -m tests.bench.workers --snapshot DIR --log FILE [--workers 1 2] [--rounds 3] [--connections 16]

The load comes from a process of its own, over several connections, since the kernel spreads connections over workers
and not calls. It needs a core or more itself: on a machine with few cores it takes from the server what it measures;
the processor time of an answer, of all the server's processes, then says more of what more cores would give.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import psutil
from tests.bench.events import serving
from tests.bench.load import Caller, Load, closed, event_request, recommend_request, turns
from tests.bench.product import LONGTIDE, output

CALLERS = 64
ROUND_S = 6.0
WARM_S = 2.0
USERS = 500
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


def main() -> None:
    """Measure, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True, help="CSV, zipped: user_id, item_id, timestamp")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = {workers: Path(folder) / str(workers) for workers in asked.workers}
        users = shortened(asked.log, Path(folder) / "log.csv")
        for one in data.values():
            output(*LONGTIDE, "import", Path(folder) / "log.csv", "--store", f"sqlite:///{one / 'events.db'}")
        found: dict[int, list[dict[str, float]]] = {workers: [] for workers in asked.workers}
        for turn, workers in itertools.product(range(asked.rounds), asked.workers):
            with serving(asked.snapshot, data[workers], "--workers", str(workers)) as (address, server):
                found[workers].append(loaded(address, server.pid, users, asked.connections))
            print(f"round {turn + 1}, {workers} workers: {found[workers][-1]}", file=sys.stderr, flush=True)
    print(f"{os.cpu_count()} cores, {CALLERS} callers over {asked.connections} connections, medians of {asked.rounds}")
    for workers, rounds in found.items():
        figures = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
        print(f"{workers} workers: {figures}")


def shortened(log: Path, target: Path) -> list[str]:
    """Write the events of the first users of a log; who they are."""
    with gzip.open(log, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        first: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if row["user_id"] in first or len(first) < USERS:
                first.setdefault(row["user_id"], []).append(row)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("user_id", "item_id", "timestamp"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(itertools.chain.from_iterable(first.values()))
    return list(first)


def loaded(address: str, server: int, users: Sequence[str], connections: int) -> dict[str, float]:
    """What a process of its own measures."""
    command = (sys.executable, "-m", "tests.bench.workers", "load", address, str(server), str(connections))
    done = subprocess.run(command, input="\n".join(users), check=True, stdout=-1, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


async def load(address: str, server: int, users: Sequence[str], connections: int) -> dict[str, float]:
    """Answers a second and their latencies: for people who did nothing new, and for people who just did."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=OWN_CONNECTION))
            for _ in range(connections)
        ]
        callers = itertools.cycle([Caller(channel) for channel in channels])
        for caller in itertools.islice(callers, connections):  # every process has seen everybody
            for user in users:
                await caller.recommend(recommend_request(user), timeout=60.0)
        request, number = turns([recommend_request(user) for user in users]), itertools.count()

        async def ask() -> bytes:
            answer: bytes = await next(callers).recommend(request(), timeout=10.0)
            return answer

        async def write_and_ask() -> bytes:
            turn = next(number)
            user = users[turn % len(users)]
            await next(callers).write_events(
                event_request(user, "1", f"{time.time()}-{turn}", time.time()), timeout=10.0
            )
            answer: bytes = await next(callers).recommend(recommend_request(user), timeout=10.0)
            return answer

        await closed(ask, CALLERS, WARM_S)
        spent = [processor_s(server)]
        fresh = await closed(ask, CALLERS, ROUND_S)
        spent.append(processor_s(server))
        await closed(write_and_ask, CALLERS, WARM_S)
        spent.append(processor_s(server))
        news = await closed(write_and_ask, CALLERS, ROUND_S)
        spent.append(processor_s(server))
    return shown("fresh", fresh, spent[1] - spent[0]) | shown("after an event", news, spent[3] - spent[2])


def processor_s(server: int) -> float:
    """What a process and those that it started have used of the processors."""
    root = psutil.Process(server)
    return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))


def shown(name: str, load: Load, spent_s: float) -> dict[str, float]:
    """A load's figures."""
    if load.failures or load.degraded:
        raise SystemExit(f"{len(load.failures)} failed, {load.degraded} degraded: {load.failures[:1]}")
    return {
        f"{name}, answers/s": load.per_s,
        f"{name}, p50 ms": load.p50_ms,
        f"{name}, p99 ms": load.percentile_ms(99),
        f"{name}, processor ms an answer": 1e3 * spent_s / len(load.latency_ms),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        measured = load(sys.argv[2], int(sys.argv[3]), sys.stdin.read().split("\n"), int(sys.argv[4]))
        print(json.dumps(asyncio.run(measured)))
    else:
        main()
