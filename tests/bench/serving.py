"""`make bench-serving`: what an answer costs, beside the plain parts that it is built on, and what it survives.

    python -m tests.bench.serving --data DIR --scorer score.py [--snapshot DIR] [--work DIR] [--only NAME ...]

The snapshot is MovieLens-1M's, trained as `make bench-accuracy` does it unless one is given; the server is a process of
its own with the real TorchServe and a SQLite log that holds everybody's history; the load comes from this process, on
the same cores. What is compared is measured in turns, in one run; medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tests.bench.accuracy import LOGS
from tests.bench.events import resident_mib, serving
from tests.bench.figures import Figure, at_least, at_most, plain, publish
from tests.bench.load import Caller, Load, caller, closed, event_request, is_degraded, offered, recommend_request, turns
from tests.bench.product import LONGTIDE, Bench, output

from longtide import AsyncClient, Client, LongtideError, Recommendations, UnavailableError
from longtide import Event as SentEvent
from longtide_server.snapshot import Snapshot, copy_snapshot, load_snapshot

CALLERS = 64
ROUNDS = 3
ROUND_S = 6.0
WARM_S = 2.0
LONE_CALLS = 2_000
MIXED_PER_S = 1_000.0
MIXED_S = 60.0
MIXED_STEPS = (50.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 800.0)
CAPACITY_CALLERS = (1, 2, 4, 8, 16, 32, 64, 128)
CAPACITY_S = 4.0
CAPACITY_P90_MS = 25.0
COST_CALLERS = 16
COST_PAIRS = 3_200
LONG, SHORT = 10_000, 10
HISTORY_TRIES = 300
SOAK_REQUESTS = 1_000_000
SOAK_WARM = 50_000
SOAK_EVENTS_SHARE = 0.02
STEADY_PER_S = 50.0
SWAP_S = 90.0
TRY_AGAIN_FOR_S = 30.0


@dataclass(frozen=True)
class World:
    """What is served, and who asks."""

    snapshot_dir: Path
    snapshot: Snapshot
    train: Path
    users: tuple[str, ...]
    work: Path

    @property
    def prepared(self) -> Path:
        """A data directory with everybody's history and states, kept from one run to the next."""
        return self.work.with_name(f"serving-{self.snapshot.snapshot_id}")

    @property
    def items(self) -> tuple[str, ...]:
        """What may be acted on."""
        return self.snapshot.catalog.item_ids


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--snapshot", type=Path, help="a snapshot of MovieLens-1M; trained when it is not given")
    parser.add_argument("--work", type=Path, default=Path(".longtide/bench"), help="where what is trained is kept")
    parser.add_argument("--only", nargs="*", choices=[step.__name__ for step in STEPS])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    bench = Bench(asked.data, asked.scorer, asked.work)
    train, _ = bench.cut(LOGS[0])
    if asked.snapshot is None:
        bench.longtide(LOGS[0], 0, alone=True)
    served = asked.snapshot or asked.work / f"{LOGS[0].folder}.longtide.0"
    work = asked.work / "serving"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with gzip.open(train, "rt", encoding="utf-8", newline="") as file:
        users = tuple(dict.fromkeys(row["user_id"] for row in csv.DictReader(file)))
    world = World(served, load_snapshot(served), train, users, work)
    prepare(world)
    figures = []
    for step in STEPS:
        if asked.only and step.__name__ not in asked.only:
            continue
        for figure in step(world):
            print(
                f"{time.strftime('%H:%M:%S')} {figure.name}: {figure.value:g} {figure.unit} ({figure.note})", flush=True
            )
            figures.append(figure)
    publish(figures, asked.json)


# Fresh states, beside an empty RPC


def fresh_states(world: World) -> Iterator[Figure]:
    """`Recommend` for people whose state is fresh, beside an RPC that does nothing and returns the same bytes."""
    ours, bare, first = asyncio.run(_fresh_states(world))
    many = [statistics.median(load.per_s for load in loads) for loads in (ours.many, bare.many)]
    note = f"{many[0]:,.0f} against {many[1]:,.0f} requests/s, {CALLERS} callers"
    yield at_least("fresh state, requests/s against an empty RPC's", round(many[0] / many[1], 3), 0.5, "ratio", note)
    lone = [statistics.median(load.p50_ms for load in loads) for loads in (ours.lone, bare.lone)]
    note = f"{lone[0]:.3f} against {lone[1]:.3f} ms, one caller"
    yield at_most("fresh state, p50 against an empty RPC's", round(lone[0] / lone[1], 2), 2.0, "ratio", note)
    note = "nothing kept of the answer; nothing to encode"
    yield plain("fresh state, a first answer, p50 of one caller", round(first.lone[0].p50_ms, 2), "ms", note)
    of_many = f"{note}; p90 {first.many[0].percentile_ms(90):.1f} ms, {CALLERS} callers"
    yield plain("fresh state, first answers", round(first.many[0].per_s), "requests/s", of_many)


@dataclass
class Turns:
    """What was measured of one server, round by round."""

    many: list[Load]
    lone: list[Load]


async def _fresh_states(world: World) -> tuple[Turns, Turns, Turns]:
    with served(world, "fresh") as (address, _), bare_server(await one_answer(address, world), world) as other:
        async with caller(address) as ours, caller(other) as bare:
            await ask_everybody(address, world)
            # Other numbers of items than ten: encoded, and never answered before.
            first = Turns([], [])
            for limit, requests, callers, kept_of in (
                (12, LONE_CALLS, 1, first.lone),
                (13, len(world.users), CALLERS, first.many),
            ):
                unanswered = turns([recommend_request(user, limit) for user in world.users])
                ask_first = partial(_ask, ours, unanswered)
                kept_of.append(healthy(await counted(ask_first, requests, callers)))
            request = turns([recommend_request(user) for user in world.users])
            found = Turns([], []), Turns([], [])
            asks: list[Callable[[], Awaitable[bytes]]] = [
                lambda: ours.recommend(request(), timeout=10.0),
                lambda: bare.bare(b"", timeout=10.0),
            ]
            for _, (ask, kept) in itertools.product(range(ROUNDS), list(zip(asks, found, strict=True))):
                await closed(ask, CALLERS, WARM_S)
                kept.many.append(healthy(await closed(ask, CALLERS, ROUND_S)))
                kept.lone.append(healthy(await counted(ask, LONE_CALLS)))
    return *found, first


async def _ask(ours: Caller, request: Callable[[], bytes]) -> bytes:
    return await ours.recommend(request(), timeout=10.0)


# Mixed load


def mixed_load(world: World) -> Iterator[Figure]:
    """Every second request comes right after a new event of that user."""
    load, written_ms = asyncio.run(_mixed_load(world))
    note = f"{MIXED_PER_S:,.0f} requests/s offered for {MIXED_S:.0f} s, every second one right after a new event"
    unanswered = len(load.failures) + load.degraded
    in_full = f"{load.in_full_per_s:,.0f}/s answered in full"
    yield at_most("mixed load, not answered in full", unanswered, 0, "requests", f"{note}; {in_full}")
    for percent, bar in ((50, None), (90, 7.0), (99, 25.0)):
        value = round(load.percentile_ms(percent), 2)
        name = f"mixed load, p{percent}"
        yield plain(name, value, "ms", note) if bar is None else at_most(name, value, bar, "ms", note)
    yield plain("mixed load, writing an event, p50", round(statistics.median(written_ms), 2), "ms", note)


def mixed_capacity(world: World) -> Iterator[Figure]:
    """How much of the mixed load is answered as quickly as it should be."""
    most = asyncio.run(_mixed_capacity(world))
    note = f"offered for {CAPACITY_S:.0f} s each: the most of {MIXED_STEPS} of which p90 < 7 ms and p99 < 25 ms"
    yield plain("mixed load within its bars", most, "requests/s", note)


async def _mixed_capacity(world: World) -> float:
    most = 0.0
    with served(world, "mixed-steps") as (address, _):
        async with caller(address) as ours:
            await ask_everybody(address, world)
            mixed = Mixed(world, ours)
            for per_s in MIXED_STEPS:
                await offered(mixed.write, mixed.ask, per_s, WARM_S)
                load = await offered(mixed.write, mixed.ask, per_s, CAPACITY_S)
                if load.failures or load.degraded or load.percentile_ms(90) >= 7.0 or load.percentile_ms(99) >= 25.0:
                    break
                most = per_s
    return most


def mixed_cost(world: World) -> Iterator[Figure]:
    """What an event and the answer after it cost of the cores, and who has it: they give no more than they have."""
    spent, per_s = asyncio.run(_mixed_cost(world))
    note = f"{COST_CALLERS} callers, {per_s:,.0f} events and as many answers a second"
    for who, milliseconds in sorted(spent.items(), key=lambda one: -one[1]):
        yield plain(f"an event and the answer after it, {who}", round(milliseconds, 2), "ms of a core", note)


async def _mixed_cost(world: World) -> tuple[dict[str, float], float]:
    with served(world, "mixed-cost") as (address, server):
        async with caller(address) as ours:
            await ask_everybody(address, world)
            mixed, numbers = Mixed(world, ours), itertools.count()

            async def pair() -> bytes:
                number = next(numbers)
                await mixed.write(number)
                return await mixed.ask(number)

            await counted(pair, COST_PAIRS // 2, COST_CALLERS)
            before = cpu_seconds(server)
            load = healthy(await counted(pair, COST_PAIRS, COST_CALLERS))
            after = cpu_seconds(server)
    return {who: 1e3 * (after[who] - before[who]) / COST_PAIRS for who in after}, load.per_s


def cpu_seconds(server: psutil.Process) -> dict[str, float]:
    """What each part has taken of the cores so far, in seconds."""
    spent = {"the load generator": sum(psutil.Process().cpu_times()[:2]), "the server": sum(server.cpu_times()[:2])}
    for child in server.children(recursive=True):
        spent["TorchServe"] = spent.get("TorchServe", 0.0) + sum(child.cpu_times()[:2])
    return spent


async def _mixed_load(world: World) -> tuple[Load, list[float]]:
    with served(world, "mixed") as (address, _):
        async with caller(address) as ours:
            await ask_everybody(address, world)
            mixed = Mixed(world, ours)
            await offered(mixed.write, mixed.ask, MIXED_PER_S / 2, 3.0)
            mixed.written_ms.clear()
            load = await offered(mixed.write, mixed.ask, MIXED_PER_S, MIXED_S)
    return load, mixed.written_ms


class Mixed:
    """Writes a new event of a user, then asks for that user."""

    def __init__(self, world: World, ours: Caller) -> None:
        self._world = world
        self._ours = ours
        self._rng = random.Random(0)
        self._numbers, self._event_numbers = itertools.count(), itertools.count()
        self._user: dict[int, str] = {}
        self.written_ms: list[float] = []

    async def write(self, number: int) -> None:
        """An event of the request's user."""
        await self.write_of(self._rng.choice(self._world.users), number)

    async def write_of(self, user: str, number: int) -> None:
        """An event of a user, who is then the request's."""
        self._user[number] = user
        request = event_request(
            user, self._rng.choice(self._world.items), f"load-{next(self._event_numbers)}", time.time()
        )
        begun = time.perf_counter()
        await self._ours.write_events(request, timeout=10.0)
        self.written_ms.append(1e3 * (time.perf_counter() - begun))

    async def ask(self, number: int) -> bytes:
        """The request."""
        user = self._user.pop(number, None) or self._rng.choice(self._world.users)
        return await self._ours.recommend(recommend_request(user), timeout=10.0)

    async def both(self) -> bytes:
        """A request; every second one right after a new event."""
        number = next(self._numbers)
        if number % 2:
            await self.write(number)
        return await self.ask(number)


def against_plain_torchserve(world: World) -> Iterator[Figure]:
    """The mixed load against TorchServe asked once a request with the whole history, as without Longtide."""
    ours, plain_ones = asyncio.run(_against_plain_torchserve(world))
    best, theirs = best_within(ours), best_within(plain_ones)
    most, their_most = (max(load.per_s for load in loads) for loads in (ours, plain_ones))
    note = (
        f"with as many callers as give the most at p90 < {CAPACITY_P90_MS:.0f} ms; the bar is 4 times plain "
        f"TorchServe's {theirs:,.0f} (0: no number of callers keeps it)"
    )
    name = f"mixed load, at p90 < {CAPACITY_P90_MS:.0f} ms"
    yield at_least(name, round(best, 1), max(round(4 * theirs, 1), 1.0), "requests/s", note)
    note = f"{most:,.0f} against {their_most:,.0f} requests/s; plain TorchServe gives the encoder's items, no more"
    yield plain("mixed load, at any latency, against plain TorchServe", round(most / their_most, 2), "ratio", note)


async def _against_plain_torchserve(world: World) -> tuple[list[Load], list[Load]]:
    ours, theirs = [], []
    with served(world, "capacity") as (address, _):
        async with caller(address) as there:
            await ask_everybody(address, world)
            mixed = Mixed(world, there)
            for callers in CAPACITY_CALLERS:
                await closed(mixed.both, callers, WARM_S)
                ours.append(healthy(await closed(mixed.both, callers, CAPACITY_S)))
    async with plain_torchserve(world) as predict:

        async def ask() -> bytes:
            await predict()
            return b""

        for callers in CAPACITY_CALLERS:
            await closed(ask, callers, WARM_S)
            theirs.append(healthy(await closed(ask, callers, CAPACITY_S)))
    return ours, theirs


def best_within(loads: Sequence[Load]) -> float:
    """The most requests a second among loads whose 90th percentile is short enough; 0 when none is."""
    return max((load.per_s for load in loads if load.percentile_ms(90) < CAPACITY_P90_MS), default=0.0)


@asynccontextmanager
async def plain_torchserve(world: World) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """TorchServe with the same encoder, a worker a core: asks for whole histories and the best hundred items."""
    from longtide_server.app.encoders import HANDLER
    from longtide_server.encoder.arrays import pack
    from longtide_server.encoder.hosted import MODEL_NAME
    from longtide_server.snapshot import ENCODER
    from longtide_server.torchserve.archive import build_archive
    from longtide_server.torchserve.client import TorchServeClient
    from longtide_server.torchserve.config import TorchServeConfig
    from longtide_server.torchserve.process import TorchServe

    archive = world.work / "plain.mar"
    weights = world.snapshot.path / ENCODER
    build_archive(archive, model_name=MODEL_NAME, version="1.0", handler=HANDLER, weights=weights)
    config = TorchServeConfig(world.work / "plain-torchserve", archive, MODEL_NAME, workers=os.cpu_count() or 1)
    torchserve = TorchServe(config)
    packed = [pack([steps]) for steps in whole_histories(world)]
    random.Random(0).shuffle(packed)
    following = itertools.cycle(packed)
    await torchserve.start()
    client = TorchServeClient(torchserve.grpc_address)
    try:
        yield lambda: client.predict(MODEL_NAME, next(following), 10.0)
    finally:
        await client.close()
        await torchserve.stop()


def whole_histories(world: World) -> list[Any]:
    """Everybody's history as encoder steps."""
    import numpy as np

    from longtide_server.training.dataset import to_sequences
    from longtide_server.training.files.log import read_log
    from longtide_server.users.user_state import UserState, steps_between

    sequences = to_sequences(read_log(world.train)[0])
    zeros = np.zeros(world.snapshot.manifest.encoder.state_size, np.float32)
    number = [world.snapshot.catalog.number(item) for item in sequences.item_ids]
    found = []
    for user in range(sequences.user_count):
        span = sequences.of(user)
        state = UserState()
        state.times.fromlist(sequences.times[span].tolist())
        state.items.fromlist([number[item - 1] for item in sequences.items[span].tolist()])
        state.types.fromlist(sequences.types[span].tolist())
        state.values.fromlist(sequences.values[span].tolist())
        found.append(steps_between(state, 0, len(state.items), (), zeros, 100))
    return found


# Long histories


def long_history(world: World) -> Iterator[Figure]:
    """A new event and the next answer of a user with a long and of one with a short history, in turns."""
    taken_ms: dict[str, list[float]] = {"long": [], "short": []}
    known = world.items
    with served(world, "long") as (address, _), Client(address, timeout=120.0) as client:
        for user, count in (("long", LONG), ("short", SHORT)):
            # All of a few items, so that both have the same items left to be recommended.
            client.stream_events(SentEvent(user, known[n % SHORT], time=1e9 + n) for n in range(count))
            client.recommend(user)
        for turn in range(HISTORY_TRIES):
            for user in ("long", "short"):
                event = SentEvent(user, known[turn % SHORT], time=1.5e9 + turn)
                begun = time.perf_counter()
                client.write_events([event])
                client.recommend(user)
                taken_ms[user].append(1e3 * (time.perf_counter() - begun))
    long, short = statistics.median(taken_ms["long"]), statistics.median(taken_ms["short"])
    note = f"{long:.2f} against {short:.2f} ms, medians of {HISTORY_TRIES}"
    name = f"update and answer: {LONG:,} events of history against {SHORT}"
    yield at_most(name, round(long / short, 2), 1.2, "ratio", note)


# Batch scoring


def batch_scoring(world: World) -> Iterator[Figure]:
    """`StreamRecommend` for everybody, nothing encoded before, beside the encoder alone in this process."""
    batch = max((16, 64, 256), key=partial(module_users_per_s, world))
    module, cold, warm, spent = list[float](), list[float](), list[float](), dict[str, list[float]]()
    for turn in range(ROUNDS):
        module.append(module_users_per_s(world, batch))
        with served(world, f"batch-{turn}", states=False) as (address, server):
            for found in (cold, warm):
                begun, before = time.perf_counter(), cpu_seconds(server)
                asyncio.run(ask_everybody(address, world))
                found.append(len(world.users) / (time.perf_counter() - begun))
                if found is cold:
                    for who, seconds in cpu_seconds(server).items():
                        spent.setdefault(who, []).append(1e3 * (seconds - before[who]) / len(world.users))
    per_s, alone = statistics.median(cold), statistics.median(module)
    note = f"{per_s:,.0f} against {alone:,.0f} users/s: whole histories and the best hundred items, {batch} at a time"
    yield at_least("StreamRecommend against the TorchScript module alone", round(per_s / alone, 2), 0.7, "ratio", note)
    yield plain("StreamRecommend, asked a second time", round(statistics.median(warm)), "users/s", "answers are kept")
    for who, milliseconds in spent.items():
        yield plain(f"a user in StreamRecommend, {who}", round(statistics.median(milliseconds), 2), "ms of a core", "")


def module_users_per_s(world: World, batch: int) -> float:
    """Users a second of the encoder in a process of its own, on all cores."""
    script = (sys.executable, "-m", "tests.bench.module_alone")
    command = (*script, world.snapshot.path, world.train, batch, os.cpu_count())
    return float(subprocess.run([*map(str, command)], check=True, stdout=-1, text=True).stdout)


# What it survives


def swap(world: World) -> Iterator[Figure]:
    """Another snapshot is activated under load."""
    directory = world.work / "snapshots"
    first = copy_snapshot(world.snapshot.path, directory)
    (directory / "CURRENT").write_text(first.name)
    second = renamed_copy(first, f"{first.name}-again")

    async def run() -> tuple[Load, set[str]]:
        with serving(directory, data_dir(world, "swap")) as (address, _):
            async with caller(address) as ours, AsyncClient(address) as client:
                await ask_everybody(address, world)
                mixed, seen = Mixed(world, ours), set[str]()

                async def ask(number: int) -> bytes:
                    answer = await mixed.ask(number)
                    seen.update(name for name in (second.name,) if name.encode() in answer)
                    return answer

                load = asyncio.create_task(offered(mixed.write, ask, STEADY_PER_S, SWAP_S))
                await asyncio.sleep(3.0)
                await client.activate_snapshot(second.name)
                return await load, seen

    load, seen = asyncio.run(run())
    if seen != {second.name}:
        raise SystemExit("the second snapshot never answered")
    yield survived("snapshot swapped under load", load)


def renamed_copy(folder: Path, name: str) -> Path:
    """The same snapshot under another name."""
    target = folder.parent / name
    shutil.copytree(folder, target)
    manifest = target / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{folder.name}"', f'"{name}"'))
    return target


def torchserve_killed(world: World) -> Iterator[Figure]:
    """TorchServe's processes are killed under load; then it is asked whether answers are whole again."""

    async def run() -> tuple[Load, Load]:
        with served(world, "killed") as (address, server):
            async with caller(address) as ours:
                await ask_everybody(address, world)
                mixed = Mixed(world, ours)
                load = asyncio.create_task(offered(mixed.write, mixed.ask, STEADY_PER_S, 25.0))
                await asyncio.sleep(3.0)
                for process in server.children(recursive=True):
                    if "java" in process.name():
                        process.kill()
                during = await load
                return during, await offered(mixed.write, mixed.ask, STEADY_PER_S, 5.0)

    during, after = asyncio.run(run())
    yield survived("TorchServe killed under load", during)
    yield at_most("degraded answers once it was back", after.degraded, 0, "answers", "by itself, 25 s later")


def restart(world: World) -> Iterator[Figure]:
    """The server is stopped and started again under load of the SDK, which tries again."""

    async def run() -> Load:
        load, number = Load(), itertools.count()
        with served(world, "restart") as (address, server):
            async with AsyncClient(address, timeout=60.0) as client:
                await ask_everybody(address, world)
                over = asyncio.Event()

                async def one(user: str) -> None:
                    while not over.is_set():
                        event = SentEvent(user, world.items[next(number) % 100])
                        await persistently(load, partial(client.write_events, [event]))
                        await persistently(load, partial(client.recommend, user))
                        await asyncio.sleep(0.05)

                callers = asyncio.gather(*(one(user) for user in world.users[:16]))
                await asyncio.sleep(2.0)
                server.terminate()
                await asyncio.to_thread(server.wait, 60)
                with serving(world.snapshot_dir, world.work / "restart", "--listen", address):
                    await asyncio.sleep(5.0)
                    over.set()
                    await callers
        return load

    yield survived("server restarted under load, SDK that tries again", asyncio.run(run()))


async def persistently(load: Load, ask: Callable[[], Awaitable[object]]) -> None:
    """Ask, and again as long as the server is away and the time is not over."""
    begun = time.perf_counter()
    while True:
        try:
            answer = await ask()
        except UnavailableError as exc:
            if time.perf_counter() - begun > TRY_AGAIN_FOR_S:
                load.failures.append(repr(exc))
                return
            await asyncio.sleep(0.1)
        except LongtideError as exc:
            load.failures.append(repr(exc))
            return
        else:
            load.latency_ms.append(1e3 * (time.perf_counter() - begun))
            load.degraded += isinstance(answer, Recommendations) and answer.degraded
            return


def survived(name: str, load: Load) -> Figure:
    """That nothing failed."""
    note = f"{len(load.latency_ms):,} requests, {load.degraded:,} of them answered degraded"
    note += f"; p99 {load.percentile_ms(99):,.0f} ms, the slowest {max(load.latency_ms):,.0f} ms"
    if load.failures:
        note += f"; first: {load.failures[0]}"
    return at_most(f"{name}, failed requests", len(load.failures), 0, "requests", note)


# For long


def soak(world: World) -> Iterator[Figure]:
    """A million requests, some after new events: the memory at the end against that once everybody has acted."""

    async def run() -> tuple[dict[str, float], dict[str, float], int]:
        with served(world, "soak") as (address, server):
            async with caller(address) as ours:
                await ask_everybody(address, world)
                mixed, done = Mixed(world, ours), itertools.count()
                request = turns([recommend_request(user) for user in world.users])

                async def ask() -> bytes:
                    number = next(done)
                    if number % round(1 / SOAK_EVENTS_SHARE) == 0:
                        await mixed.write(number)
                        return await mixed.ask(number)
                    return await ours.recommend(request(), timeout=10.0)

                for number in range(len(world.users)):  # a state is kept of whoever acts, for events that come late
                    await mixed.write_of(world.users[number], number)
                    await mixed.ask(number)
                healthy(await counted(ask, SOAK_WARM, CALLERS))
                before = memory_mib(server)
                load = healthy(await counted(ask, SOAK_REQUESTS, CALLERS))
                return before, memory_mib(server), len(load.latency_ms)

    before, after, requests = asyncio.run(run())
    for who, mib in before.items():
        note = f"{after[who]:,.0f} against {mib:,.0f} MiB, {requests:,} requests, 1 in 50 after an event"
        name = f"memory at the end against after warming up, {who}"
        yield at_most(name, round(after[who] / mib, 3), 1.05, "ratio", note)


def memory_mib(server: psutil.Process) -> dict[str, float]:
    """What each part holds in memory."""
    others = server.children(recursive=True)
    return {"the server": resident_mib(server), "TorchServe": sum(map(resident_mib, others))}


# The parts


@contextmanager
def served(world: World, name: str, states: bool = True) -> Iterator[tuple[str, psutil.Process]]:
    """A server over a log of its own that holds everybody's history, with the states of an earlier run or without."""
    with serving(world.snapshot_dir, data_dir(world, name, states)) as found:
        yield found


def prepare(world: World) -> None:
    """A data directory to copy: everybody's history, and the states that a server had when it was stopped."""
    directory = world.prepared
    if (directory / "states").is_dir():  # by an earlier run
        return
    shutil.rmtree(directory, ignore_errors=True)
    output(*LONGTIDE, "import", world.train, "--store", f"sqlite:///{(directory / 'events.db').resolve()}")
    with serving(world.snapshot_dir, directory) as (address, _):
        asyncio.run(ask_everybody(address, world))


def data_dir(world: World, name: str, states: bool = True) -> Path:
    """A data directory with everybody's history, and the states of an earlier run."""
    directory = world.work / name
    directory.mkdir()
    shutil.copy(world.prepared / "events.db", directory / "events.db")
    if states:
        shutil.copytree(world.prepared / "states", directory / "states")
    return directory


@contextmanager
def bare_server(answer: bytes, world: World) -> Iterator[str]:
    """A server that returns these bytes; yields its address."""
    path = world.work / "answer.bin"
    path.write_bytes(answer)
    command = [sys.executable, "-m", "tests.bench.bare_server", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[2]
        finally:
            process.kill()


async def one_answer(address: str, world: World) -> bytes:
    """What the server sends for somebody."""
    async with caller(address) as ours:
        return await ours.recommend(recommend_request(world.users[0]), timeout=60.0)


async def ask_everybody(address: str, world: World) -> None:
    """Batch scoring of all users."""
    async with AsyncClient(address, timeout=120.0) as client:
        answers = [answer async for answer in client.recommend_many(world.users, limit=10)]
    if any(answer.degraded for answer in answers) or len(answers) != len(world.users):
        raise SystemExit("not everybody was answered in full")


async def counted(ask: Callable[[], Awaitable[bytes]], requests: int, callers: int = 1) -> Load:
    """So many requests by so many callers."""
    load, left = Load(), iter(range(requests))
    begun = time.perf_counter()

    async def one() -> None:
        for _ in left:
            sent = time.perf_counter()
            answer = await ask()
            load.latency_ms.append(1e3 * (time.perf_counter() - sent))
            load.degraded += is_degraded(answer)

    await asyncio.gather(*(one() for _ in range(callers)))
    load.seconds = time.perf_counter() - begun
    return load


def healthy(load: Load) -> Load:
    """A load of which nothing failed and nothing was degraded; else the figure would be of something else."""
    if load.failures or load.degraded:
        raise SystemExit(f"{len(load.failures)} failed, {load.degraded} degraded: {load.failures[:1]}")
    return load


STEPS: list[Callable[[World], Iterator[Figure]]] = [
    fresh_states,
    mixed_load,
    mixed_capacity,
    mixed_cost,
    against_plain_torchserve,
    long_history,
    batch_scoring,
    swap,
    torchserve_killed,
    restart,
    soak,
]

if __name__ == "__main__":
    main()
