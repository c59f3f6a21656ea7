"""Recommends to a long list of users through a running server, into one Parquet file.

What is done is kept in parts beside the file, so that a run that was cut off, or whose server was restarted, goes on
behind the last part; memory holds a part and what is on its way. Answers that passing trouble has spoilt are asked for
again before their part is written.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longtide import (
    AsyncClient,
    DeadlineExceededError,
    Recommendations,
    ResourceExhaustedError,
    UnavailableError,
)
from longtide_server.errors import InvalidInput
from longtide_server.training.files.tables.columns import Faults, read_ids
from longtide_server.training.files.tables.reading import read_pieces

PART_USERS = 2_000
READ_ROWS = 20_000
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
AGAIN_AFTER_S = (1.0, 5.0, 15.0)
"""How long is waited before each time that spoilt answers are asked for again: TorchServe starts anew in the last."""
PASSING = (UnavailableError, ResourceExhaustedError, DeadlineExceededError)
"""Errors that may be gone a little later."""
SETTINGS = "settings.json"
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("snapshot_id", pa.string()),
        ("attribution_token", pa.string()),
        ("degraded", pa.bool_()),
        ("error", pa.string()),
    ]
)
Ask = Callable[[Sequence[str]], AsyncGenerator[Recommendations, None]]
"""Has a server answer for some users, in their order."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What every user is asked for."""

    limit: int
    surface: str = ""
    """Where the answers will be shown."""
    include_seen: bool = False
    """Whether what a user has had may be recommended once more."""


@dataclass(slots=True)
class Scored:
    """How far it has come."""

    users: int = 0
    earlier: int = 0
    """How many of them an earlier run had done."""
    refused: int = 0
    """How many have no list; the reason is in the column `error`."""
    degraded: int = 0
    """How many have a list that the encoder, or the event log, had no say in to the end."""

    def add(self, part: pa.Table) -> None:
        """Count the users of a part."""
        self.users += part.num_rows
        self.refused += part.num_rows - part["error"].null_count
        self.degraded += pc.sum(part["degraded"]).as_py() or 0


def read_users(path: Path) -> Iterator[str]:
    """The users of a file: one a line in a `.txt`, else the column `user_id` of CSV, JSON lines or Parquet, in order.

    LogError or InvalidInput where the file is wrong; an empty line is no user.
    """
    if path.suffix == ".txt":
        if not path.is_file():
            raise InvalidInput(f"{path}: no such file")
        with path.open(encoding="utf-8") as file:
            yield from filter(None, map(str.strip, file))
        return
    for table in read_pieces(path, ("user_id",), (), {}, READ_ROWS):
        if len(table.rows) + len(table.lost) == 0:
            continue
        faults = Faults(table)
        ids, codes = read_ids(table.columns["user_id"], faults)
        faults.settle(skip_bad_rows=False)
        yield from (ids[code] for code in codes.tolist())


async def score(
    client: AsyncClient,
    user_ids: Iterable[str],
    out: Path,
    asked_for: Asked,
    report: Callable[[Scored], None],
    *,
    reconnect_timeout_s: float = 60.0,
) -> Scored:
    """Write the recommendations for all users, in their order, into the Parquet file `out`.

    InvalidInput when parts of an earlier run are there that are of other users or settings. The error of the connection
    when the server stays away, or has too much to do, for longer than the timeout; what is done stays done.
    """
    users = iter(user_ids)
    shutil.rmtree(_done(out), ignore_errors=True)
    parts = out.with_name(f"{out.name}.parts")
    parts.mkdir(exist_ok=True)
    settings = asdict(asked_for)
    _settle(parts, settings)
    done = Scored()
    for part in _parts(parts):
        done.add(_known(part, users))
    done.earlier = done.users
    report(done)
    ask = partial(client.recommend_many, **settings)
    while asked := list(islice(users, PART_USERS)):
        rows = await _best_answers(ask, asked, reconnect_timeout_s)
        done.add(_written(rows, parts / f"{done.users:012d}.parquet"))
        report(done)
    _join(parts, out)
    return done


async def _best_answers(ask: Ask, user_ids: Sequence[str], reconnect_timeout_s: float) -> list[Recommendations]:
    """The answers for some users; what may be better a little later is asked for again, a few times."""
    rows = await _answers(ask, user_ids, reconnect_timeout_s)
    for pause_s in AGAIN_AFTER_S:
        again = [place for place, row in enumerate(rows) if row.degraded or isinstance(row.error, PASSING)]
        if not again:
            break
        await asyncio.sleep(pause_s)
        answers = await _answers(ask, [user_ids[place] for place in again], reconnect_timeout_s)
        for place, row in zip(again, answers, strict=True):
            if row.error is None or rows[place].error is not None:  # a degraded list is better than none
                rows[place] = row
    return rows


async def _answers(ask: Ask, user_ids: Sequence[str], reconnect_timeout_s: float) -> list[Recommendations]:
    """The answers for some users; a server that goes away is asked again for those that it did not answer."""
    rows: list[Recommendations] = []
    give_up_s, delay_s = time.monotonic() + reconnect_timeout_s, FIRST_DELAY_S
    while True:
        before = len(rows)
        try:
            async with aclosing(ask(user_ids[len(rows) :])) as answers:
                async for answer in answers:
                    rows.append(answer)
            return rows
        except PASSING as exc:
            if len(rows) > before:
                give_up_s, delay_s = time.monotonic() + reconnect_timeout_s, FIRST_DELAY_S
            pause_s = max(delay_s * random.uniform(0.5, 1.0), exc.retry_delay_s or 0.0)
            if time.monotonic() + pause_s > give_up_s:
                raise
            await asyncio.sleep(pause_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _settle(folder: Path, settings: Mapping[str, object]) -> None:
    """Note the settings beside the parts that they are for. InvalidInput where there are parts of other settings."""
    note = folder / SETTINGS
    if not _parts(folder):
        note.write_text(json.dumps(settings), encoding="utf-8")
        return
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if before != settings:
        raise InvalidInput(
            f"{folder} was made with {_said(before)}, not with {_said(settings)}; remove it to begin anew"
        )


def _said(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in settings.items()) or "unknown settings"


def _known(part: Path, users: Iterator[str]) -> pa.Table:
    """What became of the users of a part, who are passed over."""
    table = pq.read_table(part, columns=["user_id", "degraded", "error"])
    known = table["user_id"].to_pylist()
    if list(islice(users, len(known))) != known:
        raise InvalidInput(f"{part.parent} is of other users; remove it to begin anew")
    return table


def _written(rows: Sequence[Recommendations], path: Path) -> pa.Table:
    """A part, once it is in its file."""
    answered = [row.entries for row in rows]
    columns = {
        "user_id": [row.user_id for row in rows],
        "item_ids": [[item.item_id for item in entries] for entries in answered],
        "scores": [[item.score for item in entries] for entries in answered],
        "snapshot_id": [row.snapshot_id for row in rows],
        "attribution_token": [row.attribution_token for row in rows],
        "degraded": [row.degraded for row in rows],
        "error": [None if row.error is None else str(row.error) for row in rows],
    }
    partial = path.with_suffix(".partial")
    table = pa.table({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}, SCHEMA)
    pq.write_table(table, partial)
    partial.replace(path)
    return table


def _done(out: Path) -> Path:
    """What the folder of the parts is called while it is removed: a run that is killed then has left no parts."""
    return out.with_name(f"{out.name}.parts.done")


def _join(folder: Path, out: Path) -> None:
    partial = out.with_name(f"{out.name}.partial")
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        for part in _parts(folder):
            writer.write_table(pq.read_table(part))
    partial.replace(out)
    shutil.rmtree(folder.rename(_done(out)))
