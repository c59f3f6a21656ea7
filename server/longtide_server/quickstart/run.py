"""Shows the whole path on one log: train, publish, serve, replay through the SDK, recommend, write, recommend again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from rich.console import Console
from rich.progress import track

from longtide import AsyncClient, Event
from longtide_server.app import running
from longtide_server.app.addresses import check_listen
from longtide_server.cli.base import messages, until_stopped
from longtide_server.config import ServerConfig
from longtide_server.events import EventType, session_of, user_of
from longtide_server.quickstart.show import items_table, recommendations_table, similar_users_table
from longtide_server.training.dataset import Sequences
from longtide_server.training.display import TrainingDisplay
from longtide_server.training.items.known_items import Described, known_items
from longtide_server.training.pipeline import train_and_publish
from longtide_server.training.settings import Settings

MOVIELENS = Path(__file__).with_name("movielens-latest-small")
LAST_ITEMS = 5
NEW_EVENTS = 3


@dataclass(frozen=True, slots=True)
class Bundle:
    """A log that comes with Longtide, and how to read it."""

    log: Path
    columns: Mapping[str, str]
    items: Path
    item_columns: Mapping[str, str]


BUNDLED = Bundle(
    log=MOVIELENS / "ratings.csv.gz",
    columns={"user_id": "userId", "item_id": "movieId"},
    items=MOVIELENS / "movies.csv.gz",
    item_columns={"item_id": "movieId"},
)


def run(
    sequences: Sequences,
    described: Described,
    settings: Settings,
    text_model: str | None,
    work_dir: Path,
    listen: str,
    console: Console,
) -> None:
    """Do all of it, then serve until Ctrl-C."""
    check_listen(listen)  # fails now, and not after the training
    infos = described.infos
    with TrainingDisplay(messages) as display:
        known = known_items(sequences.item_ids, infos, described.vectors, text_model, display)
        train_and_publish(sequences, infos, settings, work_dir / "snapshot", display, known)
    # Each log has an event store of its own: two logs may know different people by the same id.
    data_dir = work_dir / f"data-{_digest(sequences)}"
    config = ServerConfig(snapshot_dir=work_dir / "snapshot", data_dir=data_dir, listen=listen)
    titles = {item: info.title for item, info in infos.items()}
    asyncio.run(until_stopped(_serve(config, sequences, titles, console)))


async def _serve(config: ServerConfig, sequences: Sequences, titles: Mapping[str, str], console: Console) -> None:
    messages.print("[bold]Starting TorchServe and the server[/bold]")
    async with running(config) as address:
        await _show(address, sequences, titles, console)
        console.print(f"Serving on {address} (Ctrl-C stops)")
        await asyncio.Event().wait()


async def _show(address: str, sequences: Sequences, titles: Mapping[str, str], console: Console) -> None:
    async with AsyncClient(address, timeout=30.0) as client:
        await client.wait_ready(30.0)
        begun = time.monotonic()
        total = len(sequences.items)
        replay = track(_events(sequences), "Replaying the log", total, console=messages, transient=True)
        result = await client.stream_events(replay)
        seconds = time.monotonic() - begun
        console.print(f"Replayed {total:,} events in {seconds:.1f} s: {result.written_count:,} new, "
                      f"{result.duplicate_count:,} already known")  # fmt: skip
        people = _three_people(sequences)
        for user in people:
            await _show_user(client, sequences, user, titles, console)
        await _show_change(client, sequences.owners[people[0]], titles, console)


async def _show_user(
    client: AsyncClient, sequences: Sequences, user: int, titles: Mapping[str, str], console: Console
) -> None:
    owner = sequences.owners[user]
    who, (kind, name) = _named(owner), _called(owner)
    span = sequences.of(user)
    last = [sequences.item_ids[item - 1] for item in sequences.items[span][-LAST_ITEMS:].tolist()]
    console.print()
    console.print(items_table(f"{kind} {name}: the last of {span.stop - span.start} items", last, titles))
    similar = await client.similar_users(limit=3, **who)
    console.print(similar_users_table(f"Users most like {name} is now", similar, titles))
    console.print(recommendations_table(f"Recommended to {name}", await client.recommend(**who)))


async def _show_change(client: AsyncClient, owner: str, titles: Mapping[str, str], console: Console) -> None:
    who, (kind, name) = _named(owner), _called(owner)
    before = await client.recommend(**who)
    chosen = [item.item_id for item in before[:NEW_EVENTS]]
    names = ", ".join(titles.get(item) or item for item in chosen)
    console.print(f"\n{kind} {name} now watches {names}", markup=False)
    token = before.attribution_token
    await client.write_events([Event(item_id=item, type="watch", attribution_token=token, **who) for item in chosen])
    after = await client.recommend(**who)
    console.print(recommendations_table(f"Before, for {name}", before))
    console.print(recommendations_table(f"After, for {name}", after))


class _Named(TypedDict):
    """How the SDK is told of the owner of a history."""

    user_id: str
    session_id: str


def _named(owner: str) -> _Named:
    return _Named(user_id=user_of(owner), session_id=session_of(owner))


def _called(owner: str) -> tuple[str, str]:
    """How the owner of a history is spoken of: what they are, and their id."""
    return ("User", user_of(owner)) if user_of(owner) else ("Session", session_of(owner))


def _digest(sequences: Sequences) -> str:
    found = hashlib.sha256(repr((sequences.owners, sequences.item_ids)).encode("utf-8", "surrogatepass"))
    for column in (sequences.offsets, sequences.items, sequences.types, sequences.times, sequences.values):
        found.update(column.tobytes())
    return found.hexdigest()[:12]


def _three_people(sequences: Sequences) -> list[int]:
    """Users with a middling, a long and a short history."""
    order = np.argsort(sequences.lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, 5).astype(int)[[2, 3, 1]]
    return [int(order[place]) for place in dict.fromkeys(places.tolist())]


def _events(sequences: Sequences) -> Iterator[Event]:
    """The log as events; their ids follow from their places, so that a second replay changes nothing."""
    for user, owner in enumerate(sequences.owners):
        span = sequences.of(user)
        for place in range(span.start, span.stop):
            value = float(sequences.values[place])
            yield Event(
                user_of(owner),
                sequences.item_ids[sequences.items[place] - 1],
                EventType(int(sequences.types[place])).name.lower(),
                time=float(sequences.times[place]),
                value=None if np.isnan(value) else value,
                event_id=f"replay-{user}-{place - span.start}",
                session_id=session_of(owner),
                custom_type="custom" if sequences.types[place] == EventType.CUSTOM else "",
            )
