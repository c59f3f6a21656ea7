"""`make bench-wanted`: what fine-tuning on purchases is worth, on real clicks with made-up purchases.

    python -m tests.bench.wanted --data DIR [--seeds N] [--jobs N] [--work DIR] [--json FILE]

No log that we have holds views and purchases enough. Here each item has a chance of its own to be bought, by whoever
clicked it, and a greater one by whoever came back to it. `longtide evaluate` then says how well it finds what people
turned to next, and of that what they went on to buy; a piece that is done is kept.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.accuracy import mean, over
from tests.bench.figures import Figure, options, plain, publish
from tests.bench.pieces import Pieces
from tests.bench.product import LONGTIDE, output, rows_of

CLICKS = Path("yoochoose-100k", "clicks.csv.gz")
CHANCE = (0.5, 3.0)
"""Of an item to be bought: the parameters of a beta distribution, whose mean is a seventh."""
CAME_BACK = 2.5
"""Times that, by whoever clicked it more than once."""
SETTINGS = {
    "as it is": (),
    "all that does not lead to a purchase counting a fifth": ("--set", "train.other_weight=0.2"),
    "without fine-tuning": ("--set", "train.fine_tune_epochs=0"),
}


def make_up(clicks: Path, shop: Path) -> dict[str, int]:
    """Write the clicks as views, each followed by the purchases that it led to; how many there are of each."""
    draw, chances = random.Random(0), dict[str, float]()
    visits: dict[str, list[tuple[float, str]]] = {}
    for row in rows_of(clicks):
        visits.setdefault(row["session_id"], []).append((float(row["timestamp"]), row["item_id"]))
    counted: Counter[str] = Counter()
    with gzip.open(shop, "wt", encoding="utf-8", newline="") as file:
        write = csv.writer(file).writerow
        write(("user_id", "item_id", "timestamp", "event_type"))
        for visitor, visit in visits.items():
            clicked, last = Counter(item for _, item in visit), {item: time_s for time_s, item in sorted(visit)}
            events = [(time_s, item, "view") for time_s, item in visit]
            for item, times in clicked.items():
                chance = chances.setdefault(item, draw.betavariate(*CHANCE))
                if draw.random() < chance * (CAME_BACK if times > 1 else 1.0):
                    events.append((last[item] + 5.0, item, "purchase"))
            counted.update(kind for _, _, kind in events)
            for time_s, item, kind in sorted(events):
                write((visitor, item, time_s, kind))
    return dict(counted)


def evaluated(pieces: Pieces, shop: Path, name: str, seed: int) -> dict[str, Any]:
    """Of all targets, and of those that were bought: `users`, `hr@10` and `ndcg@10`."""

    def do() -> dict[str, Any]:
        found = json.loads(output(*LONGTIDE, "evaluate", shop, "--json", "--seed", seed, *SETTINGS[name]))
        bought = next(one for one in found["slices"]["outcome"] if one["name"] == "purchase")
        return {
            "all": {"users": found["users"], **found["overall"]["longtide"]},
            "bought": {"users": bought["users"], **bought["metrics"]["longtide"]},
        }

    return pieces.piece(f"wanted.{name.replace(' ', '-')}.{seed}", do, SETTINGS[name], [shop])


def figures(pieces: Pieces, shop: Path, seeds: int) -> Iterator[Figure]:
    """By way to train, then by targets."""
    for name in SETTINGS:
        runs = [evaluated(pieces, shop, name, seed) for seed in range(seeds)]
        for targets in ("bought", "all"):
            found = [run[targets] for run in runs]
            note = f"{found[0]['users']} targets, {over(found, 'ndcg@10')}"
            yield plain(f"{name}: ndcg@10 of {targets} targets", mean(found, "ndcg@10"), "share", note)


def main() -> None:
    """Print a table, and write the figures for machines."""
    asked = options(__doc__).parse_args()
    pieces = Pieces(asked.work, (Path(__file__),))
    shop = asked.work / "wanted.csv.gz"
    pieces.piece("wanted.shop", lambda: make_up(asked.data / CLICKS, shop), read=[asked.data / CLICKS])
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // asked.jobs))
    with ThreadPoolExecutor(asked.jobs) as pool:
        work = [pool.submit(evaluated, pieces, shop, name, seed) for seed in range(asked.seeds) for name in SETTINGS]
        for one in work:
            one.result()
    found = list(figures(pieces, shop, asked.seeds))
    publish([*found, pieces.of_other_code()], asked.json)


if __name__ == "__main__":
    main()
