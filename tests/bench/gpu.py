"""`make bench-gpu`: what a GPU is worth, to training and to serving, on a machine that has one.

    python -m tests.bench.gpu --data DIR --scorer score.py [--work DIR] [--json FILE] [--only PART ...]

Training: MovieLens-1M cut by the scorer, `longtide train` without `--set`, `longtide predict`, score. Lists: the whole
histories of everybody through the handler on the GPU, in half and in full precision, and on the CPU. Speed: the same on
the GPU and on all cores, alone and hosted by TorchServe, and a lone step. Catalogue: a million items. A training that
is done is kept in the work folder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tests.bench.accuracy import LOGS
from tests.bench.figures import Figure, at_least, plain, publish
from tests.bench.product import LONGTIDE, Bench, measured, trained_anew
from tests.bench.serving import World, whole_histories

import longtide_handlers.encoder_handler as handler_file
from longtide_handlers.encoder_handler import LongtideEncoderHandler
from longtide_server.encoder import ON_CPU, ON_GPU, AnswerSizes, Batches, Encoded, Steps
from longtide_server.encoder.arrays import pack, unpack
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.encoder.hosted import MODEL_NAME, TorchServeEncoder
from longtide_server.snapshot import ENCODER, load_snapshot, resolve
from longtide_server.torchserve import TorchServe, TorchServeClient, TorchServeConfig, build_archive
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.serving import ServingEncoder

LOG = LOGS[0]
PARTS = ("training", "lists", "speed", "catalogue")
LEAST_SAME = 0.999
K = 10
TURNS = 3
MANY_ITEMS = 1_000_000
CALL_S = 120.0


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".longtide/bench-gpu"))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--set", action="append", default=[], help="a `--set` of the training, for quick looks")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this machine has no GPU that torch can use")
    print(f"{card()}, torch {torch.__version__}", flush=True)
    bench = Bench(given.data, given.scorer, given.work)
    train, _ = bench.cut(LOG)
    snapshot = given.work / f"{LOG.folder}.gpu"
    options = [part for setting in given.set for part in ("--set", setting)]
    trained = bench.piece(snapshot.name, partial(trained_once, train, snapshot, options), options, bench.files(LOG))
    folder = resolve(snapshot)
    loaded = load_snapshot(folder)
    steps, sizes = whole_histories(World(folder, loaded, train, (), folder)), AnswerSizes.of(loaded.embeddings)
    parts: dict[str, Callable[[], Iterable[Figure]]] = {
        "training": lambda: training(bench, train, snapshot, trained["train_s"]),
        "lists": lambda: lists(folder / ENCODER, steps, sizes),
        "speed": lambda: (*alone(folder / ENCODER, steps), *asyncio.run(hosted(folder / ENCODER, steps, sizes))),
        "catalogue": catalogue,
    }
    figures = []
    for name in given.only:
        for figure in parts[name]():
            print(f"{figure.name}: {figure.value:g} {figure.unit}", flush=True)  # a rented machine may go at any time
            figures.append(figure)
    publish([*figures, bench.of_other_code()], given.json)


def trained_once(train: Path, snapshot: Path, options: Sequence[str]) -> dict[str, Any]:
    """Train; how long it took."""
    return {"train_s": trained_anew(train, snapshot, *options).seconds}


def training(bench: Bench, train: Path, snapshot: Path, seconds: float) -> Iterator[Figure]:
    """How long it took, and how good it is."""
    recs = snapshot.with_suffix(".jsonl")
    measured(*LONGTIDE, "predict", snapshot, train, "--out", recs, "--k", 20)
    scored = bench.score(recs, LOG)
    yield plain("training on the GPU", seconds, "s", f"{LOG.folder}, the whole of `longtide train`")
    yield at_least("HR@10", scored["hr@10"], LOG.hit_rate, "", f"{LOG.folder}, seed 0")
    yield at_least("NDCG@10", scored["ndcg@10"], LOG.ndcg, "", f"{LOG.folder}, seed 0")


# The lists


def lists(weights: Path, steps: Sequence[Steps], sizes: AnswerSizes) -> Iterator[Figure]:
    """How many people get the same ten items, whatever the device and the precision."""
    batches = in_batches(steps, ON_GPU)
    on_cpu, full = (answers(one, batches, sizes) for one in (handler(weights, None), in_full(handler(weights, 0))))
    half = answers(in_half(handler(weights, 0)), batches, sizes)
    yield at_least("lists in half precision", same(half, full), LEAST_SAME, "of them", f"as in full, {len(half)} users")
    yield at_least("lists on the GPU", same(half, on_cpu), LEAST_SAME, "of them", "as on the CPU")
    apart = max(abs(one.log_z - other.log_z) for one, other in zip(half, on_cpu, strict=True))
    yield plain("log Z on the GPU", apart, "nats", "from that on the CPU, at most")
    with torch.autocast("cuda", torch.float16):
        lower = answers(handler(weights, 0), batches, sizes)
    yield plain("lists with everything in half", same(lower, full), "of them", "as in full; not done")


def same(found: Sequence[Encoded], expected: Sequence[Encoded]) -> float:
    """The share of users with the same items in the same order."""
    pairs = zip(found, expected, strict=True)
    return statistics.fmean(one.items[:K].tolist() == other.items[:K].tolist() for one, other in pairs)


def answers(made: LongtideEncoderHandler, batches: Sequence[Sequence[Steps]], sizes: AnswerSizes) -> list[Encoded]:
    """What the handler says, by batch."""
    found = [encoded for batch in batches for encoded in unpack(made.answer(pack(batch)), batch, sizes)]
    return [encoded for encoded in found if encoded is not None]  # all of them: nothing here is not finite


def in_batches(steps: Sequence[Steps], batches: Batches) -> list[list[Steps]]:
    """Users of similar lengths share a batch."""
    ordered = sorted(steps, key=lambda one: len(one.items))
    return [ordered[at : at + batches.users] for at in range(0, len(ordered), batches.users)]


def handler(weights: Path, gpu: int | None) -> LongtideEncoderHandler:
    """The handler on a GPU, or on the CPU."""
    made = LongtideEncoderHandler()
    made.load(weights, gpu)
    return made


def in_full(made: LongtideEncoderHandler) -> LongtideEncoderHandler:
    """The same, all of it in full precision."""
    made.model.candidates_in_half = made.model.candidates_in_half[:0]
    return made


def in_half(made: LongtideEncoderHandler) -> LongtideEncoderHandler:
    """The same, with half precision where the catalogue is small, too; all of it may then be on the shortlist."""
    made.model.many_for_one = 1
    return made


# Speed


def alone(weights: Path, steps: Sequence[Steps]) -> Iterator[Figure]:
    """Users a second through the handler in this process: whole histories, and the best hundred items."""
    torch.set_num_threads(os.cpu_count() or 1)
    made = {"GPU": (handler(weights, 0), ON_GPU), "CPU": (handler(weights, None), ON_CPU)}
    rates: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(TURNS):
        for name, (one, batches) in made.items():
            packed = [pack(batch) for batch in in_batches(steps, batches)]
            one.answer(packed[0])
            begun = time.perf_counter()
            for request in packed:
                one.answer(request)
            rates[name].append(len(steps) / (time.perf_counter() - begun))
    on_gpu, on_cpu = (statistics.median(rates[name]) for name in ("GPU", "CPU"))
    yield plain("handler on the GPU", round(on_gpu), "users/s", f"in batches of {ON_GPU.users}")
    yield plain("handler on the CPU", round(on_cpu), "users/s", f"in batches of {ON_CPU.users}, {os.cpu_count()} cores")
    yield plain("handler, GPU against CPU", round(on_gpu / on_cpu, 2), "x", f"medians of {TURNS} turns")


async def hosted(weights: Path, steps: Sequence[Steps], sizes: AnswerSizes) -> list[Figure]:
    """The same through TorchServe, called as the server calls it; and one event of one user."""
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        archive = Path(scratch) / "encoder.mar"
        build_archive(archive, model_name=MODEL_NAME, version="1", handler=Path(handler_file.__file__), weights=weights)
        devices: tuple[tuple[Literal["cuda", "cpu"], Batches], ...] = (("cuda", ON_GPU), ("cpu", ON_CPU))
        for device, batches in devices:
            serve = TorchServe(
                TorchServeConfig(work_dir=Path(scratch) / device, archive=archive, model_name=MODEL_NAME, device=device)
            )
            await serve.start()
            try:
                encoder = TorchServeEncoder(TorchServeClient(serve.grpc_address), sizes)
                found[device] = await called(encoder, batches, steps)
            finally:
                await serve.stop()
    (gpu_rate, gpu_step), (cpu_rate, cpu_step) = found["cuda"], found["cpu"]
    return [
        plain("TorchServe on the GPU", round(gpu_rate), "users/s", "whole histories, as the server sends them"),
        plain("TorchServe on the CPU", round(cpu_rate), "users/s", "the same"),
        plain("TorchServe, GPU against CPU", round(gpu_rate / cpu_rate, 2), "x", ""),
        plain("a lone step on the GPU", round(gpu_step * 1e3, 2), "ms", "through TorchServe, median of 200"),
        plain("a lone step on the CPU", round(cpu_step * 1e3, 2), "ms", "the same"),
    ]


async def called(encoder: TorchServeEncoder, batches: Batches, steps: Sequence[Steps]) -> tuple[float, float]:
    """Users a second, and the median seconds of a lone step."""
    coalescing = CoalescingEncoder(encoder, CALL_S, batches)
    try:
        await asyncio.gather(*(coalescing.encode(one, CALL_S) for one in steps[:2_000]))
        begun = time.perf_counter()
        for at in range(0, len(steps), 4_000):
            await asyncio.gather(*(coalescing.encode(one, CALL_S) for one in steps[at : at + 4_000]))
        rate = len(steps) / (time.perf_counter() - begun)
        one, waits = first_event(steps[0]), []
        for _ in range(200):
            begun = time.perf_counter()
            await coalescing.encode(one, CALL_S)
            waits.append(time.perf_counter() - begun)
    finally:
        await coalescing.close()
    return rate, statistics.median(waits)


def first_event(steps: Steps) -> Steps:
    """The first of some events."""
    parts = {name: getattr(steps, name)[:1] for name in ("items", "types", "gaps", "values")}
    return replace(steps, **parts)


# A large catalogue


def catalogue() -> Iterator[Figure]:
    """One event each of 256 users among a million items, of random weights: what half precision is worth there."""
    torch.manual_seed(0)
    config = ModelConfig(MANY_ITEMS, dim=256, hidden=256)
    rng = np.random.default_rng(0)
    zeros = np.zeros(config.state_size, np.float32)
    one = np.ones(1, np.float32)
    rows = [
        Steps(rng.integers(1, MANY_ITEMS, 1).astype(np.int32), one.astype(np.uint8), 0 * one, 0 * one, zeros, 100)
        for _ in range(ON_CPU.users)
    ]
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        weights = Path(scratch) / "encoder.pt"
        torch.jit.script(ServingEncoder(Encoder(config).eval())).save(str(weights))  # type: ignore[no-untyped-call]
        half, full = handler(weights, 0), in_full(handler(weights, 0))
    request, spent = pack(rows), []
    for made in (half, full):
        waits = []
        for _ in range(12):
            begun = time.perf_counter()
            made.answer(request)
            waits.append(time.perf_counter() - begun)
        spent.append(statistics.median(waits))
    sizes = AnswerSizes(config.dim, config.item_count)
    found, expected = (answers(made, [rows], sizes) for made in (half, full))
    yield plain("a million items in half precision", round(spent[0] * 1e3, 1), "ms", f"a step of {len(rows)} users")
    yield plain("a million items in full precision", round(spent[1] * 1e3, 1), "ms", "the same")
    yield at_least("lists of a million items", same(found, expected), LEAST_SAME, "of them", "in half as in full")


def card() -> str:
    """The GPU, as its driver names it."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
