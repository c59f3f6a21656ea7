"""What a filter costs: masks and writes over 100,000 items, and whole answers with and without a filter.

The items, people and moments are made up, with popularities that fall like 1 / rank; the encoder's work is left out,
since everybody's state is kept. python -m tests.bench.filters [ITEMS ...]
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from longtide_server.answers import Query
from longtide_server.catalog.catalog import Catalog, ItemInfo
from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.encoder import Encoded, Steps
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.event_store import Version
from longtide_server.events import Event, EventType
from longtide_server.evidence import Asker
from longtide_server.items.item import Item
from longtide_server.items.item_filter import (
    AllOf,
    HasBrand,
    HasNumber,
    HasPrice,
    HasTag,
    InCategory,
    ItemFilter,
    NoneOf,
    Span,
)
from longtide_server.ranking import Fusion
from longtide_server.recommender import Recommender
from longtide_server.snapshot import EncoderFacts, Manifest, NeighborSettings, Snapshot
from longtide_server.sources.candidates import Transitions, TransitionSettings
from longtide_server.sources.neighbors import NeighborIndex, Positions, build_index
from longtide_server.training.dataset import Sequences
from longtide_server.training.offline import LogHistories
from longtide_server.users.user_state import UserState
from longtide_server.users.user_states import UserStates

MASKED_ITEMS = 100_000
DIM, INDEX_DIM, TEMPERATURE = 128, 64, 0.07
MOMENTS, FOLLOWING, PEOPLE, HISTORY = 50_000, 30, 60, 50
SHARES = {"1 %": 0.01, "10 %": 0.1, "50 %": 0.5}
ROUNDS = 10
TIMEOUT_S = 10.0


class Nearest:
    """An Encoder whose query vector is the last item's embedding."""

    def __init__(self, embeddings: np.ndarray) -> None:
        self._embeddings = embeddings

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        return [self._encoded(steps) for steps in batch]

    def _encoded(self, steps: Steps) -> Encoded:
        query = self._embeddings[steps.items[-1]]
        logits = (self._embeddings[1:] @ query).astype(np.float64) / TEMPERATURE
        log_z = float(np.log(np.exp(logits).sum()))
        best = np.argsort(-logits)[: steps.top_n]
        return Encoded(query, np.zeros(1, np.float32), best + 1, (logits[best] - log_z).astype(np.float32), log_z)

    async def close(self) -> None:
        pass


def no_histories() -> LogHistories:
    """Of people of whom nothing is written."""
    none, some = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return LogHistories(Sequences((), (), np.zeros(1, np.int64), none, none, np.zeros(0), some, some))


def snapshot_of(items: int, folder: Path) -> Snapshot:
    """A snapshot of made-up items."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(items + 1, DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    popularity = np.array([0.0, *(1.0 / np.arange(1, items + 1))])
    popularity /= popularity.sum()
    next_items = rng.choice(items, MOMENTS, p=popularity[1:]) + 1
    moments = embeddings[next_items] + rng.normal(scale=0.03, size=(MOMENTS, DIM)).astype(np.float32)
    moments = moments[:, :INDEX_DIM] / np.linalg.norm(moments[:, :INDEX_DIM], axis=1, keepdims=True)
    build_index(moments, folder / "positions.ann", trees=5)
    users = np.sort(rng.integers(0, 2_000, MOMENTS)).astype(np.int32)
    positions = Positions(users, next_items.astype(np.int32), np.ones(MOMENTS, np.float32))
    owners = tuple(f"user:{number}" for number in range(2_000))
    return Snapshot(
        manifest=Manifest(
            snapshot_id="bench",
            created_time="2026-11-01T00:00:00+00:00",
            encoder=EncoderFacts(DIM, 1, TEMPERATURE),
            neighbors=NeighborSettings(min_similarity=-1.0),
            transitions=TransitionSettings(),
            fusion=Fusion(),
            user_count=2_000,
            item_count=items,
            event_count=MOMENTS,
            model={},
            training={},
            metrics={},
        ),
        path=folder,
        catalog=catalog_of(items),
        owners=owners,
        owner_numbers={owner: number for number, owner in enumerate(owners)},
        embeddings=embeddings,
        popularity=popularity,
        transitions=Transitions(
            offsets=np.array([0, *(FOLLOWING * np.arange(items + 1))]),
            items=rng.integers(1, items + 1, FOLLOWING * items).astype(np.int32),
            probability=np.full(FOLLOWING * items, 1 / FOLLOWING, np.float32),
        ),
        neighbors=NeighborIndex(folder / "positions.ann", np.eye(DIM, INDEX_DIM, dtype=np.float32), positions),
    )


def catalog_of(items: int) -> Catalog:
    infos = tuple(ItemInfo(f"Title {number}", ("Everything", f"Category {number % 20}")) for number in range(items))
    return Catalog(tuple(f"item-{number}" for number in range(items)), infos)


def written(number: int, rng: random.Random) -> Item:
    """An item with something of everything."""
    return Item(
        f"item-{number}",
        title=f"Title {number}",
        categories=((f"Category {number % 20}", f"Aisle {number % 200}", f"Shelf {number % 1_000}"),),
        tags=tuple(f"tag {one}" for one in rng.sample(range(500), 5)),
        brand=f"Brand {number % 3_000}",
        price=100 * rng.random(),
        publish_time_s=1e9 * rng.random(),
        expire_time_s=2e9 + number,
        language=rng.choice(["en", "de"]),
        domain="shop",
        attributes={"colour": rng.choice(["red", "green"]), "grams": rng.random(), "refill": rng.random() < 0.5},
    )


def median_ms(work: Callable[[], object], times: int = 50) -> float:
    work()
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(found)


def conditions() -> Iterator[tuple[str, ItemFilter]]:
    category, price = InCategory(("Category 3",)), HasPrice(Span(10, 20))
    yield "a category", category
    yield "two tags", HasTag(frozenset(["tag 1", "tag 2"]))
    yield "100 brands", HasBrand(frozenset(f"Brand {number}" for number in range(100)))
    yield "a price", price
    yield "a number", HasNumber("grams", Span(0.1, 0.2))
    yield (
        "all of five",
        AllOf(
            frozenset(
                [category, price, HasNumber("grams", Span(0.1)), NoneOf(frozenset([HasTag(frozenset(["tag 1"]))]))]
            )
        ),
    )


def masks() -> None:
    """Print what filters and writes cost over many items."""
    rng = random.Random(0)
    live, items = LiveCatalog(catalog_of(MASKED_ITEMS)), [written(number, rng) for number in range(MASKED_ITEMS)]
    begun = time.perf_counter()
    for at in range(0, MASKED_ITEMS, 1_000):
        live.apply(items[at : at + 1_000], [])
    print(f"{MASKED_ITEMS} items written: {1e6 * (time.perf_counter() - begun) / MASKED_ITEMS:.0f} us an item")
    for name, wanted in conditions():
        print(f"mask of {name}: {median_ms(partial(live.row_mask, wanted)):.3f} ms")

    def write_and_filter() -> None:
        live.apply([written(rng.randrange(MASKED_ITEMS), rng)], [])
        live.mask(wanted)

    def write_and_look() -> None:
        live.apply([written(rng.randrange(MASKED_ITEMS), rng)], [])
        live.recommendable(1.5e9)

    print(f"one write, then {name}: {median_ms(write_and_filter):.3f} ms")
    print(f"one write, then what is recommendable: {median_ms(write_and_look):.3f} ms")
    moments = iter(np.linspace(2e9, 2e9 + MASKED_ITEMS, 60).tolist())
    print(f"what is recommendable, after a boundary: {median_ms(lambda: live.recommendable(next(moments))):.3f} ms")


async def answers(items: int) -> None:
    """Print the medians of whole answers, taken in turns so that whatever else runs here slows all of them alike."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        snapshot = snapshot_of(items, Path(folder))
        encoder = CoalescingEncoder(Nearest(snapshot.embeddings), TIMEOUT_S)
        states = UserStates(snapshot, no_histories(), encoder, PEOPLE)
        live = LiveCatalog(snapshot.catalog)
        recommender = Recommender(snapshot, states, live=live)
        draws = {name: rng.random(items) < share for name, share in SHARES.items()}
        live.apply([Item(f"item-{n}", tags=tuple(name for name in SHARES if draws[name][n])) for n in range(items)], [])
        some = [f"item-{number}" for number in rng.choice(items, min(items, 10_000), replace=False)]
        queries = {"unfiltered": Query("x")}
        queries |= {f"{name} pass": Query("x", item_filter=HasTag(frozenset([name]))) for name in SHARES}
        queries |= {"10,000 included": Query("x", include_item_ids=some)}
        people = [Asker(person(number, items)) for number in range(PEOPLE)]
        times: dict[str, list[float]] = {name: [] for name in queries}
        for turn in range(ROUNDS + 1):
            for asker in people:
                for name, query in queries.items():
                    begun = time.perf_counter()
                    await recommender.recommend_to(asker, query, TIMEOUT_S)
                    if turn:  # the first one encodes
                        times[name].append(time.perf_counter() - begun)
        for name, found in times.items():
            print(f"{items} items, {name}: p50 {1e3 * statistics.median(found):.2f} ms")


def person(number: int, items: int) -> UserState:
    had = (np.random.default_rng(number).permutation(min(items, 3_000))[:HISTORY] + 1).tolist()
    user = UserState(f"user:person-{number}", version=Version(1))
    events = [Event(str(at), "", "", EventType.VIEW, float(at)) for at in range(HISTORY)]
    user.append(events, had)
    return user


if __name__ == "__main__":
    masks()
    for count in map(int, sys.argv[1:] or ("12101", "68509")):
        asyncio.run(answers(count))
