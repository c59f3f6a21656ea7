"""The commands around a server: start it, ask it, show the whole path."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import click

from longtide_server import errors
from longtide_server.cli.base import (
    Pairs,
    Ports,
    Server,
    configure_logging,
    console,
    include_seen_option,
    log_options,
    messages,
    server_options,
    text_option,
    until_stopped,
)
from longtide_server.cli.logs import LogOptions, read_for_training
from longtide_server.config import LogFormat, ServerConfig

SWITCH_S = 0.0005


@click.command()
@click.option("--snapshot", required=True, type=click.Path(path_type=Path), help="Snapshot directory.")
@click.option("--data-dir", required=True, type=click.Path(path_type=Path), help="Event log, TorchServe, its logs.")
@click.option(
    "--store",
    default="",
    metavar="URL",
    help="Event store: sqlite:///PATH, redis://..., rediss://... or redis+cluster://...; by default events.db in the "
    "data directory.",
)
@click.option(
    "--retain",
    type=Pairs("view=90d,purchase=3y"),
    default="",
    metavar="TYPE=AGE,...",
    help="How long events are kept, for example view=90d,purchase=3y (h, d, y); for ever where it is not said.",
)
@click.option("--listen", default="127.0.0.1:50051", show_default=True, help="HOST:PORT; port 0 picks a free one.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Server processes behind the port. Each answers on about one core; connections are spread over them.",
)  # fmt: skip
@click.option("--encoder", type=click.Choice(["torchserve", "local"]), default="torchserve", show_default=True)
@click.option("--torchserve-workers", type=click.IntRange(1), default=1, show_default=True, help="One a GPU.")
@click.option(
    "--torchserve-ports", type=Ports(), default="0,0,0,0", metavar="G,M,H,I",
    help="Loopback ports: gRPC inference and management, HTTP inference and management; 0 picks one.",
)  # fmt: skip
@click.option(
    "--keep-snapshots", type=click.IntRange(1), default=5, show_default=True,
    help="How many snapshots stay in the directory when another one is activated.",
)  # fmt: skip
@click.option(
    "--explore-share", type=click.FloatRange(0, 1), default=0.02, show_default=True,
    help="Share of the places of answers that goes to new items; 0 is off.",
)  # fmt: skip
@click.option(
    "--text-model", default="", metavar="NAME",
    help="The language model that reads new items, where the snapshot was trained with another than the default.",
)  # fmt: skip
@click.option("--metrics", default="", metavar="HOST:PORT", help="Show Prometheus metrics there; port 0 picks one.")
@click.option(
    "--otlp-endpoint", default="", metavar="URL",
    help="Send traces to the OpenTelemetry collector at this base URL, over HTTP; needs longtide[otel].",
)  # fmt: skip
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
def serve(
    snapshot: Path, data_dir: Path, retain: Mapping[str, str], log_format: LogFormat, **settings: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Serve a snapshot until Ctrl-C. Ready when the health service says SERVING."""
    from longtide_server.app import running
    from longtide_server.event_store.urls import check_store_url
    from longtide_server.users.retention import read_retention

    configure_logging(log_format)
    config = ServerConfig(
        snapshot_dir=snapshot, data_dir=data_dir, retention=read_retention(retain), log_format=log_format, **settings
    )
    check_store_url(config.store_url)

    async def run() -> None:
        async with running(config) as address:
            _settle()
            click.echo(f"Serving on {address} (Ctrl-C stops)")
            await asyncio.Event().wait()

    _run(run())


@click.command(hidden=True)
@click.option("--number", type=int, required=True)
@click.option("--link", type=int, required=True, help="File descriptor of the socket to the supervisor.")
@click.option("--supervisor", type=int, required=True, help="Its process id.")
@click.option("--log-format", default="console")
def worker(number: int, link: int, supervisor: int, log_format: LogFormat) -> None:
    """Be one of the processes of `serve --workers`, which starts it."""
    from longtide_server.workers.bond import end_with

    end_with(supervisor)
    from longtide_server.app.worker import working

    configure_logging(log_format, worker=number)
    _run(working(socket.socket(fileno=link), _settle))


def _settle() -> None:
    """Have the garbage collector, which holds up all calls, look less often, and not through what was loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(3_000, 20, 20)


def _run(server: Coroutine[Any, Any, None]) -> None:
    # Searches and reads end on threads of their own; the event loop must let them in before 5 ms, Python's default.
    sys.setswitchinterval(SWITCH_S)
    asyncio.run(until_stopped(server))


@click.command()
@click.argument("user_id", metavar="USER")
@server_options
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True)
@include_seen_option
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def recommend(user_id: str, server: Server, limit: int, include_seen: bool, as_json: bool) -> None:
    """Ask a running server for recommendations to USER."""
    with server.client() as client:
        answer = client.recommend(user_id, limit, include_seen=include_seen)
    if as_json:
        click.echo(json.dumps(asdict(answer), indent=2, ensure_ascii=False))
        return
    from longtide_server.quickstart.show import recommendations_table

    console.print(recommendations_table(f"For {user_id}", answer))
    if answer.degraded:
        messages.print(f"degraded: {answer.degraded_reason}", markup=False)


@click.command()
@click.argument("log", required=False, type=click.Path(path_type=Path))
@log_options
@click.option("--listen", default="127.0.0.1:50051", show_default=True, help="HOST:PORT; port 0 picks a free one.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path), default=Path(".longtide/quickstart"), show_default=True,
    help="Where the snapshot, the event log and TorchServe's files go.",
)  # fmt: skip
@text_option
def quickstart(
    log: Path | None, listen: str, work_dir: Path, text_model: str | None, **rest: Unpack[LogOptions]
) -> None:
    """Train, publish, serve and show recommendations: on LOG, or on the MovieLens log that comes with Longtide."""
    from longtide_server.quickstart.run import BUNDLED, run

    configure_logging("console", logging.WARNING)
    if log is None:
        _require_none_of(
            {"--columns": rest["columns"], "--items": rest["items"], "--item-columns": rest["item_columns"]}
        )
        log = BUNDLED.log
        rest["columns"], rest["items"], rest["item_columns"] = BUNDLED.columns, BUNDLED.items, BUNDLED.item_columns
    read = read_for_training(log, (), seed=0, **rest)
    run(read.sequences, read.described, read.settings(read.sequences), text_model, work_dir, listen, console)


def _require_none_of(given: Mapping[str, object]) -> None:
    """InvalidInput for an option that would not count, since the bundled log is read."""
    for option, value in given.items():
        if value:
            raise errors.InvalidInput.of(
                option, "says how a LOG is read; name one, since without it the bundled log is"
            )


@click.command()
@click.argument("users", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE.parquet")
@server_options
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Items for each user.")
@click.option("--surface", default="", help="Where the answers will be shown, for `longtide report`.")
@include_seen_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def score(users: Path, out: Path, server: Server, limit: int, surface: str, include_seen: bool, as_json: bool) -> None:
    """Recommend to all USERS through a running server, into a Parquet file. Cut off, it goes on when started again.

    USERS is a text file with a user a line, or CSV, JSONL or Parquet with a column user_id.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from longtide_server.training.scoring import Asked, Scored, read_users
    from longtide_server.training.scoring import score as run

    if out.suffix != ".parquet" or out.is_dir() or not out.parent.is_dir():
        raise errors.InvalidInput.of("--out", f"{out} is not a .parquet file in a folder that exists")
    total = sum(1 for _ in read_users(users))
    bar = Progress(
        SpinnerColumn(), TextColumn("Recommending"), *Progress.get_default_columns()[1:],
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} users"), TimeElapsedColumn(),
        console=messages, transient=True, disable=not messages.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=total)

    async def scored() -> Scored:
        async with server.async_client() as client:
            await client.wait_ready()
            asked = Asked(limit, surface, include_seen)
            return await run(client, read_users(users), out, asked, lambda done: bar.update(task, completed=done.users))

    with bar:
        done = asyncio.run(scored())
    if as_json:
        click.echo(json.dumps(asdict(done)))
        return
    line = f"{done.users:,} users in {out}, {done.earlier:,} of them by an earlier run"
    console.print(line, markup=False, soft_wrap=True)
    if done.refused:
        messages.print(f"{done.refused:,} users have no list; the column error says why")
    if done.degraded:
        messages.print(
            f"{done.degraded:,} lists are degraded, as the column degraded says: the encoder or the event log "
            "could not be asked, however often it was tried"
        )
