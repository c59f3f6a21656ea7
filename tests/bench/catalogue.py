"""What a change of the catalogue is worth at the next request: the part of `make bench-content` that asks a server.

The server is a process of its own with the real TorchServe and the language model that reads new items; the load comes
from this process, on the same cores.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.events import serving
from tests.bench.figures import Figure, at_least, at_most

from longtide import AsyncClient, Event, Item, Tags
from longtide_server.snapshot import load_snapshot

PEOPLE = 400
EVENTS_EACH = 10
NEW_ITEMS = 30
PLACED_WITHIN_S = 60.0
REQUESTS = 10_000
CALLERS = 16
TAKEN_AWAY = 50
RARE_SHARE = 0.01
LIMIT = 10


def catalogue_figures(snapshot: Path) -> Iterator[Figure]:
    """New items, items that are taken away, filters: on a snapshot that was trained with texts."""
    item_ids = load_snapshot(snapshot).catalog.item_ids
    with (
        tempfile.TemporaryDirectory(prefix="longtide-catalogue-") as work,
        serving(snapshot, Path(work) / "data", "--explore-share", "0") as (address, _),
    ):
        yield from asyncio.run(_figures(address, item_ids))


async def _figures(address: str, item_ids: Sequence[str]) -> list[Figure]:
    people = [f"person-{number}" for number in range(PEOPLE)]
    async with AsyncClient(address, timeout=30.0) as client:
        await client.write_events(histories(people, item_ids))
        return [
            *await new_items(client, people),
            *await filtered(client, people, item_ids),
            await taken_away(client, people),
        ]


def histories(people: Sequence[str], item_ids: Sequence[str]) -> list[Event]:
    """Some events of everybody, other ones for each."""
    now_s = time.time()
    return [
        Event(person, item_ids[(7 * number + 13 * step) % min(len(item_ids), 3_000)], "view", time=now_s - 60 + step)
        for number, person in enumerate(people)
        for step in range(EVENTS_EACH)
    ]


async def new_items(client: AsyncClient, people: Sequence[str]) -> list[Figure]:
    """From the call that writes an item until it is recommended to somebody, one item after the other."""
    seconds = []
    for number in range(NEW_ITEMS):
        item_id = f"new-{number}"
        title = f"Moisturising night cream number {number} with oil of the {number}th rose"
        begun = time.perf_counter()
        await client.upsert_items([Item(item_id, title)])
        while not await client.recommend(people[number], 1, include_item_ids=[item_id]):
            if time.perf_counter() - begun > PLACED_WITHIN_S:
                raise SystemExit(f"{item_id} was not recommended within {PLACED_WITHIN_S:g} s")
            await asyncio.sleep(0.01)
        seconds.append(time.perf_counter() - begun)
    note = f"the slowest of {NEW_ITEMS}; median {statistics.median(seconds):.2f} s"
    return [at_most("written item is recommended after", round(max(seconds), 2), 2.0, "s", note)]


async def filtered(client: AsyncClient, people: Sequence[str], item_ids: Sequence[str]) -> list[Figure]:
    """Everybody once without a filter and once with one that few items pass, in turns; no answer is asked for twice."""
    rare = item_ids[:: round(1 / RARE_SHARE)]
    await client.upsert_items([Item(item_id, tags=["rare"]) for item_id in rare], ["tags"])
    for person in people:
        await client.recommend(person, LIMIT + 1)  # so that nobody's history is left to be encoded
    plain_ms, filtered_ms, full = [], [], 0
    for person in people:
        begun = time.perf_counter()
        await client.recommend(person, LIMIT)
        between = time.perf_counter()
        answer = await client.recommend(person, LIMIT, filter=Tags("rare"))
        plain_ms.append(1e3 * (between - begun))
        filtered_ms.append(1e3 * (time.perf_counter() - between))
        full += len(answer) == LIMIT
    fast, slow = statistics.median(plain_ms), statistics.median(filtered_ms)
    share = f"{len(rare)} of {len(item_ids)} items pass"
    return [
        at_most("filtered against unfiltered p50", round(slow / fast, 2), 2.0, "times", f"{slow:.2f} / {fast:.2f} ms"),
        at_least("filtered lists that are full", full / len(people), 1.0, "share", share),
    ]


async def taken_away(client: AsyncClient, people: Sequence[str]) -> Figure:
    """Under load, what people are recommended is made unavailable, one item after the other; none may come back."""
    gone: dict[str, float] = {}
    came_back = 0
    asked = itertools.count()

    async def caller() -> None:
        nonlocal came_back
        for number in asked:
            if number >= REQUESTS:
                return
            begun = time.perf_counter()
            answer = await client.recommend(people[number % len(people)], LIMIT)
            came_back += sum(gone.get(item.item_id, begun) < begun for item in answer)

    async def take() -> None:
        while len(gone) < TAKEN_AWAY:
            answer = await client.recommend(people[len(gone)], 1)
            await client.upsert_items([Item(answer[0].item_id, available=False)], ["available"])
            gone[answer[0].item_id] = time.perf_counter()
            await asyncio.sleep(0.05)

    await asyncio.gather(take(), *(caller() for _ in range(CALLERS)))
    note = (
        f"of {REQUESTS} requests by {CALLERS} callers, while {TAKEN_AWAY} items that were being shown were taken away"
    )
    return at_most("unavailable items that came back", came_back, 0, "items", note)
