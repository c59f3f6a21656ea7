"""`make bench-content`: what the content of items is worth, to items that nobody has touched and to all others.

    python -m tests.bench.content --data DIR --scorer score.py [--work DIR] [--json FILE] [--only NAME ...]
                                  [--logs NAME ...] [--set KEY=VALUE ...]

Cold items: all events of a tenth of the items, drawn with a seed, are held back; `longtide train` learns from the rest,
with the items file of all; the people who did choose a cold item, with their history before it, are then asked for, and
the cold items are ranked by the server's own `Rank`. The catalogue: how soon a running server feels a change, and what
filters cost. Warm items: the log cut by the scorer, with and without each kind of content. Domains: people of two
shops, with and without what they did in the other one. A piece of work that is done is kept in the work folder, so a
run that was interrupted goes on; `--set` makes all trainings other, for quick looks.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.bench.catalogue import catalogue_figures
from tests.bench.figures import Figure, at_least, plain, publish
from tests.bench.product import LONGTIDE, Bench, Log, measured, output, rows_of, trained_anew

COLD_SHARE = 0.1
COLD_SEED = 0
MOST_CASES = 5_000
K = 10
LONGEST_LIST = 1_000
LEAST_OVER_RANDOM = 3.0
TEXT_LASTS = (1, 2, 3, 5, 10)


@dataclass(frozen=True)
class ColdLog:
    """A log whose items are known by more than their events."""

    folder: str
    options: tuple[str, ...]
    """Options that bring in the items' content."""


COLD_LOGS = (
    ColdLog("amazon-beauty", ("--items", "items.csv.gz")),
    ColdLog("movielens-1m", ("--items", "items.csv", "--kg", "kg.csv.gz")),
)
TITLES_AS_IMAGES = "titles-as-images.npz"
"""In the place of a log's file: vectors of its titles, given for those of images, which no log has."""
WARM: dict[str, dict[str, tuple[str, ...]]] = {
    "amazon-beauty": {
        "text": ("--items", "items.csv.gz"),
        "vectors for images": ("--vectors", TITLES_AS_IMAGES),
    },
    "movielens-1m": {
        "text": ("--items", "items.csv"),
        "graph": ("--kg", "kg.csv.gz"),
        "text and graph": ("--items", "items.csv", "--kg", "kg.csv.gz"),
    },
}
"""Kinds of content, alone and together."""
LEAST_SHARE = 0.99
PARTS = ("cold", "catalogue", "warm", "domains")
HOME, AWAY = "amazon-sports", "amazon-beauty"
SHORT = 5
"""Events at home, at most, of a short history."""


@dataclass(frozen=True)
class Case:
    """Somebody who chose a cold item."""

    user_id: str
    before: int
    """How many events of the training log they had before it, 1 or more."""
    item_id: str


def drawn_items(item_ids: Sequence[str], share: float, seed: int) -> set[str]:
    """A share of the items."""
    rng = np.random.default_rng(seed)
    return set(rng.choice(sorted(item_ids), int(share * len(item_ids)), replace=False).tolist())


def hold_back_items(raw: Path, cold: set[str], train: Path) -> list[Case]:
    """Write the log without the events of the cold items; who chose one last, and had done anything before.

    Last: what they did after it would teach the encoder to go from that very moment to what is most like the item.
    """
    by_user: dict[str, list[tuple[float, int, dict[str, str]]]] = defaultdict(list)
    fields: list[str] = []
    for place, row in enumerate(rows_of(raw)):
        fields = fields or list(row)
        by_user[row["user_id"]].append((float(row["timestamp"]), place, row))
    cases = []
    with gzip.open(train, "wt", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, fields, lineterminator="\n")
        out.writeheader()
        for user_id, events in by_user.items():
            before, chosen = 0, ""
            for _, _, row in sorted(events, key=lambda event: event[:2]):
                if row["item_id"] not in cold:
                    out.writerow(row)
                    before, chosen = before + 1, ""
                else:
                    chosen = chosen or row["item_id"]
            if before and chosen:
                cases.append(Case(user_id, before, chosen))
    return cases


def some(cases: Sequence[Case], most: int, seed: int) -> list[Case]:
    """At most so many of the cases."""
    if len(cases) <= most:
        return list(cases)
    return [cases[place] for place in np.sort(np.random.default_rng(seed).choice(len(cases), most, replace=False))]


class ContentBench(Bench):
    """Pieces of work on cold items."""

    settings: tuple[str, ...] = ()
    """`--set` options of every training."""

    def cold_cut(self, log: ColdLog) -> tuple[Path, dict[str, Any]]:
        """The training log; the cold items, those who chose them, and their share of all events."""
        train = self.work / f"{log.folder}.cold.train.csv.gz"
        raw = self.data / log.folder / "interactions.csv.gz"

        def do() -> dict[str, Any]:
            cold = drawn_items(sorted({row["item_id"] for row in rows_of(raw)}), COLD_SHARE, COLD_SEED)
            cases = some(hold_back_items(raw, cold, train), MOST_CASES, COLD_SEED)
            held_back = [row["item_id"] in cold for row in rows_of(raw)]
            return {
                "cold": sorted(cold),
                "cases": [(case.user_id, case.before, case.item_id) for case in cases],
                "share of events": round(sum(held_back) / len(held_back), 4),
            }

        return train, self.piece(f"{log.folder}.cold.cut", do, read=[raw])

    def option_paths(self, folder: str, options: Sequence[str]) -> list[str]:
        """Options with the files of a log in their places."""
        return [part if part.startswith("-") else str(self._file(folder, part)) for part in options]

    def files_of(self, folder: str, options: Sequence[str]) -> list[Path]:
        """The files that options name."""
        return [self._file(folder, part) for part in options if not part.startswith("-")]

    def _file(self, folder: str, name: str) -> Path:
        if name != TITLES_AS_IMAGES:
            return self.data / folder / name
        path = self.work / f"{folder}.{name}"
        if not path.is_file():
            write_titles_as_images(self.data / folder / "items.csv.gz", path)
        return path

    def cold(self, log: ColdLog) -> dict[str, Any]:
        """How often a cold item that was chosen is among the first ten cold items."""
        train, cut = self.cold_cut(log)
        name = f"{log.folder}.cold"
        snapshot = self.work / name

        def do() -> dict[str, Any]:
            options = self.option_paths(log.folder, log.options)
            trained = trained_anew(train, snapshot, *options, *self.settings)
            items = self.data / log.folder / log.options[log.options.index("--items") + 1]
            found = cold_metrics(snapshot, train, items, cut["cold"], [Case(*case) for case in cut["cases"]])
            return {"train_s": trained.seconds, "share of events": cut["share of events"], **found}

        return self.piece(name, do, self.settings, [train, *self.files_of(log.folder, log.options)])

    def warm(self, folder: str, kind: str, options: Sequence[str]) -> dict[str, Any]:
        """HR@10 and NDCG@10 on the scorer's cut, with a kind of content; `none` is without any."""
        log = Log(folder, 0.0, 0.0)
        train, _ = self.cut(log)
        name = f"{folder}.warm.{kind.replace(' ', '-')}"
        snapshot, recs = self.work / name, self.work / f"{name}.jsonl"

        def do() -> dict[str, Any]:
            paths = self.option_paths(folder, options)
            trained_anew(train, snapshot, *paths, *self.settings)
            measured(*LONGTIDE, "predict", snapshot, train, "--out", recs, "--k", 20)
            manifest = json.loads(output(*LONGTIDE, "info", snapshot, "--json"))
            return {**self.score(recs, log), "validation": manifest["metrics"], "fusion": manifest["fusion"]}

        return self.piece(name, do, self.settings, [*self.files(log), *self.files_of(folder, options)])

    def domains(self) -> dict[str, Any]:
        """HR@10 and NDCG@10 at home of people who are known in both shops, by who knows what of them."""
        folder = self.work / "domains"

        def cut() -> dict[str, Any]:
            folder.mkdir(exist_ok=True)
            return {"targets": cut_domains(self.data, folder)}

        shops = [self.data / shop / name for shop in (HOME, AWAY) for name in ("interactions.csv.gz", "items.csv.gz")]
        targets = self.piece("domains.cut", cut, read=shops)["targets"]

        def do(name: str, histories: str) -> dict[str, Any]:
            train, items, snapshot = folder / f"{name}.csv.gz", folder / f"{name}.items.csv.gz", folder / name
            self.piece(
                f"domains.{name}.trained",
                partial(train_on, train, items, snapshot, self.settings),
                self.settings,
                shops,
            )
            return domain_metrics(snapshot, folder / f"{histories}.csv.gz", targets)

        ways = {"home": ("home", "home"), "joined": ("joined", "joined"), "joined.forgetful": ("joined", "home")}
        return {
            name: self.piece(f"domains.{name}", partial(do, *files), self.settings, shops)
            for name, files in ways.items()
        }


def train_on(train: Path, items: Path, snapshot: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Train a shop's snapshot; how long it took."""
    return {"train_s": trained_anew(train, snapshot, "--items", items, *settings).seconds}


def cut_domains(data: Path, folder: Path) -> list[tuple[str, str, int]]:
    """Write both shops' log without the targets, the home shop's alone, and their items.

    Targets are the last event at home of everybody who was away before it: person, item, events at home before.
    What they did away after it is in neither log.
    """
    events: dict[str, dict[str, list[tuple[float, int, str]]]] = {}
    for shop in (HOME, AWAY):
        of_shop = events.setdefault(shop, defaultdict(list))
        for place, row in enumerate(rows_of(data / shop / "interactions.csv.gz")):
            of_shop[row["user_ref"]].append((float(row["timestamp"]), place, f"{shop}:{row['item_id']}"))
    targets = []
    with gzip.open(folder / "joined.csv.gz", "wt") as both, gzip.open(folder / "home.csv.gz", "wt") as home:
        for file in (both, home):
            file.write("user_id,item_id,timestamp\n")
        for person in dict.fromkeys((*events[HOME], *events[AWAY])):
            at_home, away = (sorted(events[shop].get(person, ())) for shop in (HOME, AWAY))
            if len(at_home) >= 3 and away and away[0][0] < at_home[-1][0]:
                until, _, item = at_home.pop()
                away = [event for event in away if event[0] < until]
                targets.append((person, item, len(at_home)))
            for time_s, _, item in at_home:
                home.write(f"{person},{item},{time_s:.0f}\n")
            for time_s, _, item in sorted((*at_home, *away)):
                both.write(f"{person},{item},{time_s:.0f}\n")
    for name, shops in (("home", (HOME,)), ("joined", (HOME, AWAY))):
        with gzip.open(folder / f"{name}.items.csv.gz", "wt", encoding="utf-8", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["item_id", "title", "domain"])
            for shop in shops:
                for row in rows_of(data / shop / "items.csv.gz"):
                    out.writerow([f"{shop}:{row['item_id']}", row["title"] or row["keywords"], shop])
    return targets


def domain_metrics(directory: Path, train: Path, targets: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    """Of the product over the items at home, those that a person had left out."""
    from longtide_server.answers import Query
    from longtide_server.snapshot import load_snapshot
    from longtide_server.training.dataset import to_sequences
    from longtide_server.training.files.log import read_log
    from longtide_server.training.offline import OfflineRecommender

    sequences, snapshot = to_sequences(read_log(train)[0]), load_snapshot(directory)
    # Lists so long that they hold enough of the home shop.
    queries = [Query(person, LONGEST_LIST) for person, _, _ in targets]

    async def lists() -> list[list[str]]:
        offline = OfflineRecommender(snapshot, sequences)
        try:
            found = []
            async for answer in offline.answers(queries):
                ids = (item.item_id for item in answer.recommendations)
                found.append([item_id for item_id in ids if item_id.startswith(HOME)][:K])
            return found
        finally:
            await offline.close()

    pairs = zip(asyncio.run(lists()), targets, strict=True)
    ranks = [one.index(item) if item in one else None for one, (_, item, _) in pairs]
    hits = np.array([rank is not None for rank in ranks])
    gains = np.array([0.0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])
    short = np.array([count <= SHORT for _, _, count in targets])
    found: dict[str, Any] = {}
    for name, rows in (("everybody", np.ones(len(targets), bool)), ("short histories", short), ("longer ones", ~short)):
        found[name] = {
            "people": int(rows.sum()),
            "hr@10": round(float(hits[rows].mean()), 4),
            "ndcg@10": round(float(gains[rows].mean()), 4),
        }
    return found


def cold_metrics(
    directory: Path, train: Path, items: Path, cold: Sequence[str], cases: Sequence[Case]
) -> dict[str, Any]:
    """Of the product and of plain text similarity, the best of several ways to measure it."""
    from longtide_server.training.dataset import to_sequences
    from longtide_server.training.files.log import read_log

    histories = cut_histories(to_sequences(read_log(train)[0]), cases)
    targets = np.array([cold.index(case.item_id) for case in cases])
    order, shown = asyncio.run(product_order(directory, histories, cold))
    found: dict[str, Any] = {"cases": len(cases), "cold": len(cold), "hr@10": hit_rate(order, targets), **shown}
    for name, scores in text_scores(histories, items, cold):
        found[f"text, {name}"] = hit_rate(np.argsort(-scores, axis=1, kind="stable"), targets)
    return found


def cut_histories(sequences: Any, cases: Sequence[Case]) -> Any:
    """A user for each case, with what the case's user did before."""
    number = {owner: user for user, owner in enumerate(sequences.owners)}
    firsts = np.array([sequences.offsets[number[f"user:{case.user_id}"]] for case in cases])
    counts = np.array([case.before for case in cases])
    events = np.concatenate([np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)])
    return replace(
        sequences,
        owners=tuple(f"user:case {place}" for place in range(len(cases))),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        items=sequences.items[events],
        types=sequences.types[events],
        times=sequences.times[events],
        gaps=sequences.gaps[events],
        values=sequences.values[events],
    )


async def product_order(
    directory: Path, histories: Any, cold: Sequence[str]
) -> tuple[NDArray[np.int64], dict[str, float]]:  # fmt: skip
    """(cases, cold items) the cold items by falling score, and how many of them whole lists show."""
    from longtide_server.snapshot import load_snapshot
    from longtide_server.training.offline import OfflineRecommender, query_of

    offline = OfflineRecommender(load_snapshot(directory), histories, kept_users=histories.user_count + 1)
    place = {item_id: number for number, item_id in enumerate(cold)}
    queries = [query_of(owner, K) for owner in histories.owners]
    try:
        order = [[place[item.item_id] for item in ranked] async for ranked in offline.ranked(queries, cold)]
        lists = [answer.recommendations async for answer in offline.answers(queries)]
    finally:
        await offline.close()
    shown = sum(item.item_id in place for one in lists for item in one)
    return np.array(order), {"shown": round(shown / (K * len(lists)), 4)}


def hit_rate(order: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """HR@10 of orders (cases, cold items)."""
    return round(float((order[:, :K] == targets[:, None]).any(axis=1).mean()), 4)


def text_scores(
    histories: Any, items: Path, cold: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.float32]]]:  # fmt: skip
    """How alike the texts of the cold items are to those of a user's items: (cases, cold items), by several ways."""
    from longtide_server.training.items.items import read_items
    from longtide_server.training.items.texts import item_vectors

    infos = read_items(items).infos
    known = item_vectors((*histories.item_ids, *cold), infos, None, lambda _: None)
    assert known is not None
    vectors, of_cold = np.split(known.vectors, [len(histories.item_ids) + 1])
    own = [vectors[histories.items[histories.of(user)]] for user in range(histories.user_count)]
    for last in TEXT_LASTS:
        yield f"mean of the last {last}", np.stack([one[-last:].sum(axis=0) for one in own]) @ of_cold.T
    yield "the most alike of all", np.stack([(one @ of_cold.T).max(axis=0) for one in own])


def write_titles_as_images(items: Path, path: Path) -> None:
    """Vectors of items' titles by a language model, as somebody would give those of images by a vision model."""
    from longtide_server.training.items.items import read_items
    from longtide_server.training.items.texts import item_vectors

    infos = read_items(items).infos
    known = item_vectors(tuple(infos), infos, None, lambda _: None)
    assert known is not None
    np.savez(path, item_id=np.array(tuple(infos)), image=known.vectors[1:])


def cold_figures(bench: ContentBench, log: ColdLog) -> Iterator[Figure]:
    """Cold items against chance and against plain text similarity."""
    found = bench.cold(log)
    name = f"{log.folder} cold items hr@10"
    chance = K / found["cold"]
    note = f"{found['cases']} choices of {found['cold']} items without events; random {chance:.4f}"
    yield at_least(f"{name}, over random", round(found["hr@10"] / chance, 2), LEAST_OVER_RANDOM, "times", note)
    ways = {way: value for way, value in found.items() if way.startswith("text, ")}
    best = max(ways, key=lambda way: ways[way])
    note = f"against {best}, the best of {len(ways)} ways, chosen on the same choices"
    yield at_least(name, found["hr@10"], ways[best], "share", note)
    note = f"{found['share of events']} of all events were theirs"
    yield plain(f"{log.folder} cold items in lists of everything", found["shown"], "share", note)


def warm_figures(bench: ContentBench, folder: str) -> Iterator[Figure]:
    """What content does to items that people have touched."""
    plain_run = bench.warm(folder, "none", ())
    for kind, options in WARM[folder].items():
        run = bench.warm(folder, kind, options)
        for name in ("hr@10", "ndcg@10"):
            bar = round(LEAST_SHARE * plain_run[name], 4)
            note = f"{plain_run[name]} without; seed 0"
            yield at_least(f"{folder} with {kind} {name}", run[name], bar, "share", note)
        if relations := run["validation"].get("relations"):
            note = f"alone, on validation targets; weight {run['fusion']['relations']}"
            yield plain(f"{folder} with {kind}, relation source ndcg@10", relations["ndcg@10"], "share", note)


def domain_figures(bench: ContentBench) -> Iterator[Figure]:
    """What knowing people from another shop is worth: more than to have learned from that shop's other people."""
    found = bench.domains()
    for group, alone in found["home"].items():
        for name in ("hr@10", "ndcg@10"):
            both, forgetful = found["joined"][group][name], found["joined.forgetful"][group][name]
            note = (
                f"{alone['people']} people; {alone[name]} where {HOME} alone was learned from; {forgetful} where both "
                f"were, and not told what these people did in {AWAY}"
            )
            yield at_least(f"{HOME} knowing {AWAY}, {group} {name}", both, max(alone[name], forgetful), "share", note)


def main() -> None:
    """Print a table, and write the figures for machines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".longtide/bench"), help="where what is done is kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every training")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--logs", nargs="*", choices=tuple(WARM), default=tuple(WARM))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    bench = ContentBench(asked.data, asked.scorer, asked.work, (Path(__file__),))
    bench.settings = tuple(part for pair in asked.set for part in ("--set", pair))
    found: list[Figure] = []
    if "cold" in asked.only:
        found += [figure for log in COLD_LOGS if log.folder in asked.logs for figure in cold_figures(bench, log)]
    if "catalogue" in asked.only:
        bench.cold(COLD_LOGS[0])  # whose snapshot is served
        found += catalogue_figures(bench.work / f"{COLD_LOGS[0].folder}.cold")
    if "warm" in asked.only:
        found += [figure for folder in asked.logs for figure in warm_figures(bench, folder)]
    if "domains" in asked.only:
        found += domain_figures(bench)
    publish([*found, bench.of_other_code()], asked.json)


if __name__ == "__main__":
    main()
