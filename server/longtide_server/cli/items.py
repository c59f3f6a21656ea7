"""The commands around the catalogue of a running server: import items into it, export it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import click

from longtide_server import errors
from longtide_server.cli.base import ITEM_COLUMNS, Commands, Pairs, Server, console, messages, server_options


@click.group(cls=Commands)
def items() -> None:
    """Write items into the catalogue of a running server, or take them out."""


@items.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@server_options
@click.option(
    "--columns", type=Pairs(ITEM_COLUMNS), default="", help="The file's names for ours: item_id=sku,title=name,..."
)
@click.option(
    "--bad-rows", type=click.Path(path_type=Path), default=Path("bad-items.csv"), show_default=True,
    help="Where number, column and reason of the rows that cannot be taken go, in place of an earlier report.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def import_(file: Path, server: Server, columns: Mapping[str, str], bad_rows: Path, as_json: bool) -> None:
    """Write the items of FILE into the catalogue of a running server.

    FILE is CSV, JSONL (both also zipped) or Parquet, of any length: an item_id, and some of title, description,
    categories, genres, tags, brand, price, publish_time, expire_time, available, language, text_vector, image_vector,
    attributes, domain. What it has no column for stays as it is: a file of item_id and price changes prices. Importing
    it again, after it was cut off for example, changes nothing.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from longtide_server.training.files.importing import BadRowsFile
    from longtide_server.training.files.item_files import ImportedItems, import_items

    if bad_rows.resolve() == file.resolve():
        raise errors.InvalidInput.of("--bad-rows", f"{bad_rows} is the file itself")
    bar = Progress(
        TextColumn("Importing"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[items]:,} items"),
        TimeRemainingColumn(), console=messages, transient=True, disable=not messages.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=1.0, items=0)

    def report(done: ImportedItems) -> None:
        bar.update(task, completed=done.read_share, items=done.written)

    async def run(bad: BadRowsFile) -> ImportedItems:
        async with server.async_client() as client:
            return await import_items(file, columns, client, bad, report)

    with BadRowsFile(bad_rows) as bad, bar:
        done = asyncio.run(run(bad))
    if as_json:
        click.echo(json.dumps({"written": done.written, "repeated": done.repeated, "bad": done.bad}))
        return
    console.print(f"{done.written:,} items written")
    if done.repeated:
        messages.print(f"{done.repeated:,} rows were replaced by later rows of the same items")
    if done.bad:
        messages.print(f"{done.bad:,} rows could not be taken; {bad_rows} says why", markup=False, soft_wrap=True)


@items.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@server_options
def export(file: Path, server: Server) -> None:
    """Write every item of a running server's catalogue into FILE, .jsonl or .parquet, which `items import` reads."""
    from longtide_server.training.files.item_export import ENDINGS, export_items

    if file.suffix not in ENDINGS or file.is_dir() or not file.parent.is_dir():
        raise errors.InvalidInput.of("FILE", f"{file} is not a .jsonl or .parquet file in a folder that exists")

    async def exported() -> int:
        async with server.async_client() as client:
            with messages.status("Exporting") as status:
                listed = client.list_items(page_size=1_000)
                return await export_items(listed, file, lambda count: status.update(f"Exporting: {count:,} items"))

    console.print(f"{asyncio.run(exported()):,} items in {file}", markup=False, soft_wrap=True)
