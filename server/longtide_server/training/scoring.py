"""Recommends to a long list of users through a running server, into one Parquet file.

What is done is kept in parts beside the file, so that a run that was cut off, or whose server was restarted, goes on
behind the last part; memory holds a part and what is on its way.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longtide import AsyncClient, Recommendations, UnavailableError
from longtide_server.errors import InvalidInput
from longtide_server.training.tables import Faults, read_ids, read_pieces

PART_USERS = 2_000
READ_ROWS = 20_000
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
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


@dataclass(slots=True)
class Scored:
    """How far it has come."""

    users: int = 0
    earlier: int = 0
    """How many of them an earlier run had done."""
    refused: int = 0
    """How many the server refused; the reason is in the column `error`."""


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
    limit: int,
    surface: str,
    report: Callable[[Scored], None],
    *,
    reconnect_timeout_s: float = 60.0,
) -> Scored:
    """Write the recommendations for all users, in their order, into the Parquet file `out`.

    InvalidInput when parts of an earlier run are there that are of other users. The error of the connection when the
    server stays away for longer than the timeout; what is done stays done.
    """
    users = iter(user_ids)
    parts = out.with_name(f"{out.name}.parts")
    parts.mkdir(exist_ok=True)
    done = Scored()
    done.users = done.earlier = sum(_skip(part, users) for part in _parts(parts))
    report(done)
    while asked := list(islice(users, PART_USERS)):
        rows = await _answers(client, asked, limit, surface, reconnect_timeout_s)
        _write(rows, parts / f"{done.users:012d}.parquet")
        done.users += len(rows)
        done.refused += sum(row.error is not None for row in rows)
        report(done)
    _join(parts, out)
    return done


async def _answers(
    client: AsyncClient, user_ids: Sequence[str], limit: int, surface: str, reconnect_timeout_s: float
) -> list[Recommendations]:
    """The answers for some users; a server that goes away is asked again for those that it did not answer."""
    rows: list[Recommendations] = []
    give_up_s, delay_s = time.monotonic() + reconnect_timeout_s, FIRST_DELAY_S
    while True:
        before = len(rows)
        try:
            async with aclosing(client.recommend_many(user_ids[len(rows) :], limit, surface=surface)) as answers:
                async for answer in answers:
                    rows.append(answer)
            return rows
        except UnavailableError:
            if len(rows) > before:
                give_up_s, delay_s = time.monotonic() + reconnect_timeout_s, FIRST_DELAY_S
            if time.monotonic() + delay_s > give_up_s:
                raise
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _skip(part: Path, users: Iterator[str]) -> int:
    """Pass over the users of a part; how many they are."""
    known = pq.read_table(part, columns=["user_id"])["user_id"].to_pylist()
    if list(islice(users, len(known))) != known:
        raise InvalidInput(f"{part.parent} is of other users; remove it to begin anew")
    return len(known)


def _write(rows: Sequence[Recommendations], path: Path) -> None:
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


def _join(folder: Path, out: Path) -> None:
    partial = out.with_name(f"{out.name}.partial")
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        for part in _parts(folder):
            writer.write_table(pq.read_table(part))
    partial.replace(out)
    shutil.rmtree(folder)
