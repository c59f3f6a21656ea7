"""Reads a log, from a file or from an event store, for the commands that learn from one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

from longtide_server import errors
from longtide_server.cli.base import messages

if TYPE_CHECKING:  # numpy and pyarrow are imported by the commands that need them
    from longtide_server.training.dataset import Sequences
    from longtide_server.training.files.log import Log
    from longtide_server.training.items.known_items import Described, GivenVectors
    from longtide_server.training.settings import Settings


class LogOptions(TypedDict):
    """What `log_options` let a command know, and `--store` where it has one."""

    columns: Mapping[str, str]
    items: Path | None
    kg: Path | None
    item_columns: Mapping[str, str]
    skip_bad_rows: bool
    store: NotRequired[str]


class TrainingOptions(LogOptions):
    """What the commands know that train."""

    seed: int


def read_log_file(log: Path | None, **options: Unpack[LogOptions]) -> tuple[Sequences, Described, bool]:
    """Sequences, what is said of items, and whether the log's times are times."""
    from longtide_server.training.dataset import to_sequences
    from longtide_server.training.files.graph import read_graph, with_facts
    from longtide_server.training.files.log import times_are_real
    from longtide_server.training.items.items import read_items
    from longtide_server.training.items.known_items import NOTHING_DESCRIBED

    items, kg, store = options["items"], options["kg"], options.get("store", "")
    if (log is None) == (not store):
        raise errors.InvalidInput("name a LOG or an event store (--store), and not both")
    if log is None:
        found, described = asyncio.run(_stored(store, with_items=items is None))
        _tell_repeated(store, found)
    else:
        described = NOTHING_DESCRIBED
        found = read_events_file(log, options["columns"], skip_bad_rows=options["skip_bad_rows"])
    if items:
        described = read_items(items, options["item_columns"])
    if kg:
        described = replace(described, infos=with_facts(described.infos, read_graph(kg), found.item_ids))
    return to_sequences(found), described, times_are_real(found)


def read_events_file(log: Path, columns: Mapping[str, str], *, skip_bad_rows: bool) -> Log:
    """The events of a file; says which rows were skipped, where they may be, and how many count once."""
    from longtide_server.training.files.log import read_log

    found, skipped = read_log(log, columns, skip_bad_rows=skip_bad_rows)
    if skipped.count:
        messages.print(f"{log}: {skipped.count} bad rows skipped", markup=False)
        for row in skipped.details[:20]:
            messages.print(f"  {row}", markup=False)
    _tell_repeated(log, found)
    return found


def _tell_repeated(source: Path | str, found: Log) -> None:
    if found.repeated_rows:
        messages.print(f"{source}: {found.repeated_rows} rows repeat an event and count once", markup=False)


async def _stored(url: str, *, with_items: bool) -> tuple[Log, Described]:
    """The events of a store as a log, and what its catalogue says of the items."""
    from longtide_server.stores import open_stores
    from longtide_server.training.items.known_items import NOTHING_DESCRIBED
    from longtide_server.training.stored import read_catalogue, read_store

    stores = await open_stores(url, writes=False)
    try:
        with messages.status("Reading the event store") as status:

            def report(what: str) -> Callable[[int], None]:
                return lambda count: status.update(f"Reading the event store: {count:,} {what}")

            log = await read_store(stores.events, report("events"))
            return log, await read_catalogue(stores.items, report("items")) if with_items else NOTHING_DESCRIBED
    finally:
        await stores.events.close()


def given_vectors(path: Path | None, described: Described) -> GivenVectors:
    """The vectors that the items brought along; in the place of the kinds that a file holds, the file's."""
    from longtide_server.training.items.known_items import read_vectors

    return described.vectors if path is None else described.vectors.with_kinds_of(read_vectors(path))


@dataclass(frozen=True, slots=True, eq=False)
class ForTraining:
    """What training begins with."""

    sequences: Sequences
    described: Described
    times_are_real: bool
    overrides: Mapping[str, str]
    seed: int

    def settings(self, sequences: Sequences) -> Settings:
        """What these sequences, of the log or of a part of it, and the options give."""
        from longtide_server.training.settings import settings_for, with_overrides

        chosen = settings_for(sequences, times_are_real=self.times_are_real, seed=self.seed)
        return with_overrides(chosen, self.overrides)


def read_for_training(
    log: Path | None, overrides: tuple[str, ...], seed: int, **options: Unpack[LogOptions]
) -> ForTraining:
    """The log, what is said of its items, and how the settings are chosen."""
    pairs = [override.partition("=") for override in overrides]
    for name, equals, _ in pairs:
        if not equals:
            raise errors.InvalidInput.of(name, "--set takes KEY=VALUE, for example --set train.epochs=5")
    sequences, described, real = read_log_file(log, **options)
    if not (sequences.lengths >= 2).any():
        raise errors.LogError(
            f"{log or 'the event store'}: no user has two events; there is nothing to learn what follows what from"
        )
    return ForTraining(sequences, described, real, {name: value for name, _, value in pairs}, seed)
