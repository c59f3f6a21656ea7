"""What every command shares: the kind of group, the consoles, its parameter types, logging, and how a command stops."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import structlog
from rich.console import Console
from rich.table import Table

from longtide import AsyncClient, Client, LongtideError
from longtide_server import errors

LONG_TIMEOUT_S = 60.0
"""Of a call for work of any length: nobody looks at a screen and waits for it."""

PIPE_WIDTH = 10_000
"""Columns of what is no terminal: as many as any line needs, since whoever reads a pipe wants ids whole."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
messages = Console(stderr=True, highlight=False)


class Pairs(click.ParamType):  # type: ignore[type-arg]  # older releases of click cannot be subscripted
    """`ours=theirs,...` as a mapping."""

    name = "ours=theirs,..."

    def __init__(self, example: str) -> None:
        """`example` is what the option may be given."""
        self._example = example

    def convert(
        self, value: str | dict[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Read the pairs; click reports what is wrong with them."""
        if isinstance(value, dict):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair]
        for name, equals, other in pairs:
            if not (name and equals and other):
                self.fail(f"{value!r} is not of the form {self._example}", param, ctx)
        return {name.strip(): other.strip() for name, _, other in pairs}


ITEM_COLUMNS = "item_id=sku,title=name"
"""An example of names that a file of items may have for ours."""


class Ports(click.ParamType):  # type: ignore[type-arg]
    """Four port numbers."""

    name = "ports"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read the ports; click reports what is wrong with them."""
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if len(parts) != 4 or not all(part.isdigit() and int(part) <= 65_535 for part in parts):
            self.fail(f"{value!r} is not four ports, for example 7070,7071,8080,8081", param, ctx)
        return tuple(int(part) for part in parts)


class Commands(click.Group):
    """A group that reports what was wrong in a sentence: exit status 2 for wrong input, 1 for a failure."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  (click's signature)
        """Run the command."""
        try:
            return super().invoke(ctx)
        except errors.InvalidInput as exc:
            _fail(str(exc), 2)
        except (errors.LongtideError, LongtideError) as exc:
            _fail(str(exc), 1)
        except OSError as exc:
            if exc.errno in (None, errno.EPIPE):  # not of a file or a disk; of the latter, click knows what to do
                raise
            _fail(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc.strerror), 1)


def uncut(table: Table) -> Table:
    """The table, which folds over lines what a terminal has no room for: an id that is cut is of no use."""
    for column in table.columns:
        column.overflow = "fold"
    return table


def _fail(message: str, status: int) -> None:
    messages.print(f"longtide: {message}", markup=False, soft_wrap=True)
    sys.exit(status)


columns_option = click.option(
    "--columns",
    type=Pairs("user_id=userId,item_id=movieId"),
    default="",
    help="The log's names for ours: user_id=userId,...",
)
skip_bad_rows_option = click.option(
    "--skip-bad-rows", is_flag=True, help="Leave wrong rows of the log out, and list the first of them."
)


def log_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a log and its items file are read."""
    for option in reversed(
        (
            columns_option,
            click.option(
                "--items",
                type=click.Path(path_type=Path),
                help="Items file: item_id, title, categories, description, tags, brand, price, domain.",
            ),
            click.option(
                "--kg",
                type=click.Path(path_type=Path),
                metavar="TRIPLES",
                help="Knowledge graph: head, relation, tail; an end is item:ID or entity:NAME.",
            ),
            click.option(
                "--item-columns", type=Pairs(ITEM_COLUMNS), default="", help="The items file's names for ours."
            ),
            skip_bad_rows_option,
        )
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and how it is reached."""

    target: str
    """HOST:PORT; empty where a command need not ask one."""
    credentials: grpc.ChannelCredentials | None
    """None where the connection is not encrypted."""
    metadata: tuple[tuple[str, str], ...]
    """Goes with every call."""

    def client(self) -> Client:
        """A client to ask it with. InvalidInput when gRPC cannot send the metadata."""
        try:
            return Client(self.target, credentials=self.credentials, metadata=self.metadata)
        except (TypeError, ValueError) as exc:
            raise errors.InvalidInput(f"--{exc}") from exc

    def async_client(self) -> AsyncClient:
        """As `client`, for work of any length in the running event loop."""
        try:
            return AsyncClient(
                self.target, timeout=LONG_TIMEOUT_S, credentials=self.credentials, metadata=self.metadata
            )
        except (TypeError, ValueError) as exc:
            raise errors.InvalidInput(f"--{exc}") from exc


def server_options(command: Callable[..., None], default: str = "127.0.0.1:50051") -> Callable[..., None]:
    """Which server, and how it is reached: the command gets a `server`."""

    @functools.wraps(command)
    def asking(
        *args: object, target: str, tls: bool, ca: Path | None, metadata: tuple[str, ...], **rest: object
    ) -> None:
        server = Server(target, _credentials(tls, ca), tuple(map(_pair, metadata)))
        command(*args, server=server, **rest)

    described = {"show_default": True, "help": "The running server."} if default else {"help": "A running server."}
    for option in reversed(
        (
            click.option("--target", "--server", "target", default=default, metavar="HOST:PORT", **described),
            click.option("--tls", is_flag=True, help="Reach it through TLS, as a proxy in front of it may want."),
            click.option(
                "--ca", type=click.Path(path_type=Path), metavar="FILE",
                help="Trust the certificates in FILE (PEM), and not gRPC's own list; means --tls.",
            ),
            click.option(
                "--metadata", multiple=True, metavar="KEY=VALUE", help="Send it with every call; may be repeated."
            ),
        )
    ):  # fmt: skip
        asking = option(asking)
    return asking


def _credentials(tls: bool, ca: Path | None) -> grpc.ChannelCredentials | None:
    if ca is None:
        return grpc.ssl_channel_credentials() if tls else None
    try:
        trusted = ca.read_bytes()
    except OSError as exc:
        raise errors.InvalidInput.of("--ca", f"{ca}: {exc.strerror}") from exc
    if b"-----BEGIN CERTIFICATE-----" not in trusted:
        raise errors.InvalidInput.of("--ca", f"{ca} holds no certificate (PEM)")
    return grpc.ssl_channel_credentials(trusted)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:  # the text may be a secret, and is not repeated
        raise errors.InvalidInput.of("--metadata", "takes KEY=VALUE, for example authorization='Bearer TOKEN'")
    return key, value


include_seen_option = click.option(
    "--include-seen", is_flag=True, help="Also what users have had, where they may want it once more."
)
store_option = click.option("--store", default="", metavar="URL", help="Read this event store instead of a LOG.")


text_option = click.option(
    "--text-model",
    metavar="NAME_OR_PATH",
    help="Language model that reads the items' texts, or `none`; by default the one of longtide[text].",
)


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """How it is trained."""
    for option in reversed(
        (
            click.option(
                "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Makes runs repeatable."
            ),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Override a setting. Passes over the log are train.epochs, then train.fine_tune_epochs (0 where "
                "events have neither values nor several types) and train.refit_epochs.",
            ),
            click.option("--show-settings", is_flag=True, help="Print the settings chosen for this log, and stop."),
            text_option,
            click.option(
                "--vectors",
                type=click.Path(path_type=Path),
                metavar="FILE.npz",
                help="Vectors of items that you made: arrays item_id (N,) and text (N, E) or image (N, V) or both. "
                "With text, no language model is asked.",
            ),
        )
    ):
        command = option(command)
    return command


def configure_logging(form: str, level: int = logging.INFO, **always: object) -> None:
    """Structured logs on standard error: lines for people, or JSON for machines; `always` stands in each of them."""

    def named(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**always, **event}

    lines = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer() if form == "json" else lines
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            named,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Do the work until it is done, or until Ctrl-C or a TERM signal cancels it; what it holds is let go in order."""
    task = asyncio.create_task(work)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:  # a second Ctrl-C must not break into the stopping
            stopped = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise
