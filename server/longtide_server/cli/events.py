"""The commands around an event store: import into it, export it, report what came of recommendations."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from longtide_server import errors
from longtide_server.cli.base import Server, columns_option, console, messages, server_options, uncut

RATES = ("click_rate", "conversion_rate")


@click.command("import")
@click.argument("log", type=click.Path(path_type=Path))
@functools.partial(server_options, default="")
@click.option("--store", default="", metavar="URL", help="An event store to write to while no server does.")
@columns_option
@click.option(
    "--bad-rows", type=click.Path(path_type=Path), default=Path("bad-events.csv"), show_default=True,
    help="Where number, column and reason of the rows that cannot be taken go, in place of an earlier report.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def import_(
    log: Path, server: Server, store: str, columns: Mapping[str, str], bad_rows: Path, as_json: bool
) -> None:  # fmt: skip
    """Write the events of LOG into a running server or into an event store.

    LOG is CSV, JSONL (both also zipped) or Parquet, as for `longtide train`, of any length, and may also have event_id,
    session_id, custom_type and attribution_token. Importing it again, after it was cut off for example, writes what is
    missing and nothing twice.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from longtide_server.event_store.urls import open_store
    from longtide_server.training.files.importing import BadRowsFile, Imported, import_log, into_server, into_store

    if bool(server.target) == bool(store):
        raise errors.InvalidInput("name a running server (--target) or an event store (--store), and not both")
    if bad_rows.resolve() == log.resolve():
        raise errors.InvalidInput.of("--bad-rows", f"{bad_rows} is the log itself")
    bar = Progress(
        TextColumn("Importing"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[events]:,} events"),
        TimeRemainingColumn(), console=messages, transient=True, disable=not messages.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=1.0, events=0)

    def report(done: Imported) -> None:
        bar.update(task, completed=done.read_share, events=done.written + done.duplicates)

    async def run(file: BadRowsFile) -> Imported:
        if server.target:
            async with server.async_client() as client:
                return await import_log(log, columns, into_server(client), file, report)
        opened = await open_store(store)
        try:
            return await import_log(log, columns, into_store(opened), file, report)
        finally:
            await opened.close()

    with BadRowsFile(bad_rows) as file, bar:
        done = asyncio.run(run(file))
    if as_json:
        click.echo(json.dumps({"written": done.written, "duplicates": done.duplicates, "bad": done.bad}))
        return
    console.print(f"{done.written:,} events written, {done.duplicates:,} known already or deleted")
    if done.bad:
        messages.print(f"{done.bad:,} rows could not be taken; {bad_rows} says why", markup=False, soft_wrap=True)


@click.command()
@click.option("--store", required=True, metavar="URL", help="The event store; a server may be writing to it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE.parquet")
def export(store: str, out: Path) -> None:
    """Write every event of a store into a Parquet file that `longtide train` and `longtide import` read."""
    from longtide_server.event_store.urls import open_store
    from longtide_server.training.stored import export as run

    if out.suffix != ".parquet" or out.is_dir() or not out.parent.is_dir():
        raise errors.InvalidInput.of("--out", f"{out} is not a .parquet file in a folder that exists")

    async def exported() -> int:
        opened = await open_store(store, writes=False)
        try:
            with messages.status("Exporting") as status:
                return await run(opened, out, lambda count: status.update(f"Exporting: {count:,} events"))
        finally:
            await opened.close()

    console.print(f"{asyncio.run(exported()):,} events in {out}", markup=False, soft_wrap=True)


@click.command()
@click.option("--store", required=True, metavar="URL", help="The event store; a server may be writing to it.")
@click.option(
    "--by", default="day,snapshot_id,surface,source", show_default=True, help="What to count apart, in this order."
)
@click.option("--conversions", default="purchase", show_default=True, help="Types of events that count as conversions.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as JSON.")
def report(store: str, by: str, conversions: str, as_json: bool) -> None:
    """Say what came of what was recommended: click and conversion rates per day, snapshot, surface and source.

    An item counts as clicked when an event with the answer's attribution token comes back for it, as converted when one
    of the conversions does; each once for an answer. The source of an item is the one that said most for it.
    """
    from longtide_server.attribution import Shown
    from longtide_server.event_store.urls import open_store
    from longtide_server.events import EVENT_TYPE_NAMES
    from longtide_server.feedback import Report, summed
    from longtide_server.feedback import report as run
    from longtide_server.sources.candidates import Source

    fields, kinds = by.split(","), conversions.split(",")
    for option, names, known in (("--by", fields, Shown._fields), ("--conversions", kinds, tuple(EVENT_TYPE_NAMES))):
        for name in names:
            if name not in known:
                raise errors.InvalidInput.of(option, f"{name!r} is none of {', '.join(known)}")

    async def reported() -> Report:
        opened = await open_store(store, writes=False)
        try:
            with messages.status("Reading the event store"):
                return await run(opened, {EVENT_TYPE_NAMES[name] for name in kinds})
        finally:
            await opened.close()

    found = asyncio.run(reported())
    source_names = {str(int(source)): source.name.lower() for source in Source} | {"0": "unknown"}
    lines = []
    for key, line in summed(found.lines, fields).items():
        named = dict(zip(fields, key, strict=True))
        if "source" in named:
            named["source"] = source_names.get(named["source"], named["source"])
        lines.append({**named, **asdict(line), **{name: getattr(line, name) for name in RATES}})
    if as_json:
        click.echo(json.dumps({"lines": lines, "unknown_tokens": found.unknown_tokens}, indent=2))
        return
    console.print(_report_table(fields, lines))
    if found.unknown_tokens:
        messages.print(f"{found.unknown_tokens:,} events carry a token that no answer of Longtide had")


def _report_table(fields: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*fields, title="What came of what was recommended")
    for column in ("shown", "clicked", "click rate", "converted", "conversion rate"):
        table.add_column(column, justify="right")
    for line in lines:
        clicks, conversions = ("" if line[name] is None else f"{line[name]:.2%}" for name in RATES)
        counts = (f"{line['shown']:,}", f"{line['clicked']:,}", clicks, f"{line['converted']:,}", conversions)
        table.add_row(*(Text(str(line[name])) for name in fields), *counts)
    return uncut(table)
