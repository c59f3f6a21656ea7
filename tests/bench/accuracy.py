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

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure, at_least, at_most, options, plain, publish
from tests.bench.product import BY_ITSELF, LONGTIDE, Bench, Log, output

from longtide_server.sources.candidates import Source

LOGS = (
    Log("movielens-1m", 0.340, 0.200, 60, ("--items", "items.csv"), has_times=False),
    Log("amazon-beauty", 0.104, 0.064, 20, ("--items", "items.csv.gz")),
    Log("amazon-sports", 0.065, 0.040),
)
PEAK_GIB = 5.59
"""6 GB."""


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

    behavior = bench.piece("movielens-100k.ratings", do, read=[log])["behavior"]
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
