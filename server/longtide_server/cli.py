"""The command line: reads arguments, calls one function, prints. Exit status 2 means that the input was wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longtide import Client, LongtideError, __version__
from longtide_server import errors
from longtide_server.config import ServerConfig
from longtide_server.snapshot import read_manifest, resolve

if TYPE_CHECKING:  # torch is imported by the commands that need it, and not by `longtide --help`
    from longtide_server.training.loop import Progress
    from longtide_server.training.pipeline import Step
    from longtide_server.training.settings import Settings
    from longtide_server.training.texts import TextNotice, TextProgress

    Told = Progress | Step | TextProgress | TextNotice

console = Console(highlight=False)
messages = Console(stderr=True, highlight=False)


class Pairs(click.ParamType):  # type: ignore[type-arg]  # older releases of click cannot be subscripted
    """`ours=theirs,...` as a mapping."""

    name = "ours=theirs,..."

    def convert(
        self, value: str | dict[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Read the pairs; click reports what is wrong with them."""
        if isinstance(value, dict):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair]
        for name, equals, other in pairs:
            if not (name and equals and other):
                self.fail(f"{value!r} is not of the form user_id=userId,item_id=movieId", param, ctx)
        return {name.strip(): other.strip() for name, _, other in pairs}


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


def _fail(message: str, status: int) -> None:
    messages.print(f"longtide: {message}", markup=False, soft_wrap=True)
    sys.exit(status)


def _log_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--columns", type=Pairs(), default="", help="The log's names for ours: user_id=userId,..."),
            click.option("--items", type=click.Path(path_type=Path), help="Items file: item_id, title, categories."),
            click.option("--item-columns", type=Pairs(), default="", help="The items file's names for ours."),
            click.option("--skip-bad-rows", is_flag=True, help="Leave wrong rows out, and list them."),
        )
    ):
        command = option(command)
    return command


_store_option = click.option("--store", default="", metavar="URL", help="Read this event store instead of a LOG.")


_text_option = click.option(
    "--text-model",
    metavar="NAME_OR_PATH",
    help="Language model that reads the items' texts, or `none`; by default the one of longtide[text].",
)


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option(
                "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Makes runs repeatable."
            ),
            click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting."),
            click.option("--show-settings", is_flag=True, help="Print the settings chosen for this log, and stop."),
            _text_option,
        )
    ):
        command = option(command)
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="longtide")
def cli() -> None:
    """Longtide: a real-time recommender with long- and short-term interest, over gRPC."""


@cli.command()
@click.argument("log", required=False, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory that the snapshot goes into.")
@_store_option
@_log_options
@_training_options
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder for TensorBoard's event files.")
@click.option("--wandb", metavar="PROJECT", help="Weights & Biases project to log to.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(
    log: Path | None, out: Path, overrides: tuple[str, ...], show_settings: bool, text_model: str | None,
    tensorboard: Path | None, wandb: str | None, as_json: bool, **rest: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Train on LOG and publish a snapshot. Killed, it goes on where it was when it is started again.

    LOG is CSV, CSV.gz, Parquet or JSONL with the columns user_id, item_id, timestamp and optionally event_type, value,
    rating, session_id. With --store, what was written to a server is the log. Under `torchrun`, its processes train
    together, one a GPU where there are GPUs.
    """
    from longtide_server.training.loop import Run
    from longtide_server.training.pipeline import prepare_training, publish_trained
    from longtide_server.training.pipeline import train as run_training
    from longtide_server.training.settings import setting_names
    from longtide_server.training.texts import item_vectors
    from longtide_server.training.workers import workers

    sequences, infos, settings = _read_for_training(log, overrides, **rest)
    if show_settings:
        click.echo("\n".join(setting_names(settings)))
        return
    with workers() as team, _shown(settings, tensorboard, wandb) if team.leads else nullcontext(_unheard) as report:
        with team.leader_first():
            text = item_vectors(sequences.item_ids, infos, text_model, report)
        run = Run(team, prepare_training(sequences, settings, out, text))
        trained = run_training(sequences, settings, report, run, text)
        if team.leads:
            folder = publish_trained(trained, sequences, infos, settings, out, report, run)
    if team.leads:
        _print_snapshot(folder, as_json)


@contextmanager
def _shown(settings: Settings, tensorboard: Path | None, wandb: str | None) -> Iterator[Callable[[Told], None]]:
    """A report to the screen and to the trackers that were asked for."""
    from longtide_server.training.display import TrainingDisplay
    from longtide_server.training.tracking import TensorBoardTracker, Tracker, WandbTracker

    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if tensorboard is not None:
            trackers.append(TensorBoardTracker(tensorboard))
            stack.callback(trackers[-1].close)
        if wandb is not None:
            trackers.append(WandbTracker(wandb, asdict(settings)))
            stack.callback(trackers[-1].close)
        display = stack.enter_context(TrainingDisplay(messages))

        def report(told: Told) -> None:
            display(told)
            for tracker in trackers:
                tracker(told)

        yield report


def _unheard(_: Told) -> None:
    """The report of a process that another one reports for."""


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--k", type=click.IntRange(1, 1000), default=20, show_default=True, help="Items for each user.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSONL file to write.")
@click.option(
    "--request-times",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="When users will see their lists, a user_id and a timestamp each; without, that is not known.",
)
@_log_options
def predict(directory: Path, log: Path, k: int, out: Path, request_times: Path | None, **rest: Any) -> None:  # noqa: ANN401
    """Recommend to every user of LOG with the snapshot in DIR: a JSON line each, {"user_id": ..., "items": [...]}.

    Retrieval, fusion and filters are the server's own.
    """
    from rich.progress import track

    from longtide_server.recommender import Query
    from longtide_server.snapshot import load_snapshot
    from longtide_server.training.log import read_request_times
    from longtide_server.training.offline import OfflineRecommender

    if out.is_dir() or not out.parent.is_dir():
        raise errors.InvalidInput.of("--out", f"{out} is not a file in a folder that exists")
    times = {} if request_times is None else read_request_times(request_times)
    sequences, _, _ = _read_log(log, **rest)
    snapshot = load_snapshot(directory)
    queries = [Query(user_id, k, request_time_s=times.get(user_id)) for user_id in sequences.user_ids]

    async def write() -> None:
        offline = OfflineRecommender(snapshot, sequences)
        partial = out.with_name(f"{out.name}.partial")
        try:
            users = iter(track(sequences.user_ids, "Recommending", console=messages, transient=True))
            with partial.open("w", encoding="utf-8") as file:
                async for answer in offline.answers(queries):
                    line = {"user_id": next(users), "items": [item.item_id for item in answer.recommendations]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
            await offline.close()

    asyncio.run(write())


@cli.command()
@click.argument("log", required=False, type=click.Path(path_type=Path))
@_store_option
@click.option(
    "--split",
    type=click.Choice(["leave-one-out", "temporal"]),
    default="leave-one-out",
    show_default=True,
    help="Hold back everyone's last event, or everything after a moment.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw NDCG@10 against length of history."
)
@_log_options
@_training_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def evaluate(
    log: Path | None,
    split: Any,  # noqa: ANN401
    plot: Path | None,
    overrides: tuple[str, ...],
    show_settings: bool,
    text_model: str | None,
    as_json: bool,
    **rest: Any,  # noqa: ANN401
) -> None:
    """Measure on LOG: hold back targets, train on the rest, compare with popularity and item transitions.

    Full ranking over the items of the history, those that the user had removed. Of equal scores, the item with more
    events in the history comes first, and of equally many, the smaller id. A target that is not in the history is a
    miss; a user without a history counts, and gets what is popular.

    Slices: users by events in their history (cold 0, short 1 to 9, medium 10 to 49, long 50 or more), and by the
    target's popularity in the history (head: the most popular 20 % of the items, tail: the least popular half, mid:
    between them, new: not in it).

    Popularity bias: how many events the first 10 recommended items have on average, over how many the items have that
    the same users consumed.
    """
    from longtide_server.training.display import TrainingDisplay
    from longtide_server.training.evaluate import evaluate as run
    from longtide_server.training.evaluate import hold_out
    from longtide_server.training.settings import setting_names
    from longtide_server.training.show import behavior_table, overall_table, slices_table
    from longtide_server.training.texts import item_vectors

    if plot:
        _check_plot(plot)
    sequences, infos, settings = _read_for_training(log, overrides, **rest)
    if show_settings:
        click.echo("\n".join(setting_names(settings)))
        return
    holdout = hold_out(sequences, split)
    with TrainingDisplay(messages) as display:
        text = item_vectors(holdout.history.item_ids, infos, text_model, display)
        found = run(holdout, infos, settings, display, text)
    title = f"{log.name if log else 'the event store'}, {split}"
    if as_json:
        click.echo(json.dumps({"split": split, **asdict(found)}, indent=2))
    else:
        console.print(overall_table(f"{title}, {found.users:,} users", found))
        console.print(slices_table(found))
        if found.behavior is not None:
            console.print(behavior_table(found.behavior))
    if plot:
        from longtide_server.training.plot import save_history_length_plot

        save_history_length_plot(found.slices.history_length_doubling, title, plot)


@cli.command()
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
    type=Pairs(),
    default="",
    metavar="TYPE=AGE,...",
    help="How long events are kept, for example view=90d,purchase=3y (h, d, y); for ever where it is not said.",
)
@click.option("--listen", default="127.0.0.1:50051", show_default=True, help="HOST:PORT; port 0 picks a free one.")
@click.option("--encoder", type=click.Choice(["torchserve", "local"]), default="torchserve", show_default=True)
@click.option("--torchserve-workers", type=click.IntRange(1), default=1, show_default=True, help="One a GPU.")
@click.option(
    "--torchserve-ports", type=Ports(), default="0,0,0,0", metavar="G,M,H,I",
    help="Loopback ports: gRPC inference and management, HTTP inference and management; 0 picks one.",
)  # fmt: skip
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
def serve(
    snapshot: Path, data_dir: Path, retain: Mapping[str, str], log_format: str, **settings: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Serve a snapshot until Ctrl-C. Ready when the health service says SERVING."""
    from longtide_server.app import running
    from longtide_server.event_store.urls import check_store_url
    from longtide_server.retention import read_retention

    configure_logging(log_format)
    config = ServerConfig(snapshot_dir=snapshot, data_dir=data_dir, retention=read_retention(retain), **settings)
    check_store_url(config.store_url)

    async def run() -> None:
        async with running(config) as address:
            click.echo(f"Serving on {address} (Ctrl-C stops)")
            await asyncio.Event().wait()

    asyncio.run(until_stopped(run()))


@cli.command("import")
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--target", default="", metavar="HOST:PORT", help="A running server to write to.")
@click.option("--store", default="", metavar="URL", help="An event store to write to while no server does.")
@click.option("--columns", type=Pairs(), default="", help="The log's names for ours: user_id=userId,...")
@click.option(
    "--bad-rows", type=click.Path(path_type=Path), default=Path("bad-rows.csv"), show_default=True,
    help="Where the rows that cannot be taken go, with the reasons.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def import_(
    log: Path, target: str, store: str, columns: Mapping[str, str], bad_rows: Path, as_json: bool
) -> None:  # fmt: skip
    """Write the events of LOG into a running server or into an event store.

    LOG is CSV, JSONL (both also zipped) or Parquet, as for `longtide train`, of any length, and may also have event_id,
    session_id, custom_type and attribution_token. Importing it again, after it was cut off for example, writes what is
    missing and nothing twice.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from longtide import AsyncClient
    from longtide_server.event_store.urls import open_store
    from longtide_server.training.importing import BadRowsFile, Imported, import_log, into_server, into_store

    if bool(target) == bool(store):
        raise errors.InvalidInput("name a running server (--target) or an event store (--store), and not both")
    bar = Progress(
        TextColumn("Importing"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[events]:,} events"),
        TimeRemainingColumn(), console=messages, transient=True,
    )  # fmt: skip
    task = bar.add_task("", total=1.0, events=0)

    def report(done: Imported) -> None:
        bar.update(task, completed=done.read_share, events=done.written + done.duplicates)

    async def run(file: BadRowsFile) -> Imported:
        if target:
            async with AsyncClient(target, timeout=60.0) as client:
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
    console.print(f"{done.written:,} events written, {done.duplicates:,} known already")
    if done.bad:
        messages.print(f"{done.bad:,} rows could not be taken; {bad_rows} says why", markup=False)


@cli.command()
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

    console.print(f"{asyncio.run(exported()):,} events in {out}")


@cli.command()
@click.argument("user_id", metavar="USER")
@click.option("--target", default="127.0.0.1:50051", show_default=True, help="HOST:PORT of the server.")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def recommend(user_id: str, target: str, limit: int, as_json: bool) -> None:
    """Ask a running server for recommendations to USER."""
    with Client(target) as client:
        answer = client.recommend(user_id, limit)
    if as_json:
        click.echo(json.dumps(asdict(answer), indent=2, ensure_ascii=False))
        return
    from longtide_server.quickstart.show import recommendations_table

    console.print(recommendations_table(f"For {user_id}", answer))
    if answer.degraded:
        messages.print(f"degraded: {answer.degraded_reason}", markup=False)


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def info(directory: Path, as_json: bool) -> None:
    """Say what the snapshot in DIR is, and whether its files are whole."""
    from longtide_server.snapshot import check_files

    folder = resolve(directory)
    check_files(folder, read_manifest(folder))
    _print_snapshot(folder, as_json)


@cli.command()
@click.argument("log", required=False, type=click.Path(path_type=Path))
@_log_options
@click.option("--listen", default="127.0.0.1:50051", show_default=True, help="HOST:PORT; port 0 picks a free one.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path), default=Path(".longtide/quickstart"), show_default=True,
    help="Where the snapshot, the event log and TorchServe's files go.",
)  # fmt: skip
@_text_option
def quickstart(log: Path | None, listen: str, work_dir: Path, text_model: str | None, **rest: Any) -> None:  # noqa: ANN401
    """Train, publish, serve and show recommendations: on LOG, or on the MovieLens log that comes with Longtide."""
    from longtide_server.quickstart.run import BUNDLED, run

    configure_logging("console", logging.WARNING)
    if log is None:
        log, rest = BUNDLED.log, {**rest, **BUNDLED.options}
    sequences, infos, settings = _read_for_training(log, (), seed=0, **rest)
    run(sequences, infos, settings, text_model, work_dir, listen, console)


def configure_logging(form: str, level: int = logging.INFO) -> None:
    """Structured logs on standard error: lines for people, or JSON for machines."""
    lines = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer() if form == "json" else lines
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
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


def _read_log(
    log: Path | None,
    columns: Mapping[str, str],
    items: Path | None,
    item_columns: Mapping[str, str],
    skip_bad_rows: bool,
    store: str = "",
) -> tuple[Any, Mapping[str, Any], bool]:
    """Sequences, item infos, and whether the log's times are times."""
    from longtide_server.training.dataset import to_sequences
    from longtide_server.training.items import read_items
    from longtide_server.training.log import read_log, times_are_real

    if (log is None) == (not store):
        raise errors.InvalidInput("name a LOG or an event store (--store), and not both")
    if log is None:
        found = asyncio.run(_stored_log(store))
    else:
        found, skipped = read_log(log, columns, skip_bad_rows=skip_bad_rows)
        if skipped.count:
            messages.print(f"{log}: {skipped.count} bad rows skipped", markup=False)
            for row in skipped.details[:20]:
                messages.print(f"  {row}", markup=False)
    if found.repeated_rows:
        messages.print(f"{log or store}: {found.repeated_rows} rows repeat an event and count once", markup=False)
    infos = read_items(items, item_columns) if items else {}
    return to_sequences(found), infos, times_are_real(found)


async def _stored_log(url: str) -> Any:  # noqa: ANN401
    from longtide_server.event_store.urls import open_store
    from longtide_server.training.stored import read_store

    store = await open_store(url, writes=False)
    try:
        with messages.status("Reading the event store") as status:
            return await read_store(store, lambda count: status.update(f"Reading the event store: {count:,} events"))
    finally:
        await store.close()


def _read_for_training(
    log: Path | None, overrides: tuple[str, ...], seed: int, **rest: Any  # noqa: ANN401
) -> tuple[Any, Mapping[str, Any], Any]:  # fmt: skip
    from longtide_server.training.settings import settings_for, with_overrides

    pairs = [override.partition("=") for override in overrides]
    for name, equals, _ in pairs:
        if not equals:
            raise errors.InvalidInput.of(name, "--set takes KEY=VALUE, for example --set train.epochs=5")
    sequences, infos, real = _read_log(log, **rest)
    if not (sequences.lengths >= 2).any():
        raise errors.LogError(
            f"{log or 'the event store'}: no user has two events; there is nothing to learn what follows what from"
        )
    settings = settings_for(sequences, times_are_real=real, seed=seed)
    return sequences, infos, with_overrides(settings, {name: value for name, _, value in pairs})


def _check_plot(path: Path) -> None:
    """InvalidInput when no plot can be written there, so that it is known before the training."""
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise errors.InvalidInput.of("--plot", f"{path} is not a .png file in a folder that exists")
    try:
        import longtide_server.training.plot  # noqa: F401
    except ModuleNotFoundError as exc:
        reason = "matplotlib is not installed; a plot needs: pip install 'longtide[plot]'"
        raise errors.InvalidInput.of("--plot", reason) from exc


def _print_snapshot(folder: Path, as_json: bool) -> None:
    manifest = read_manifest(folder)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        return
    table = Table(show_header=False, title=f"Snapshot {manifest.snapshot_id}")
    size = sum(facts.bytes for facts in manifest.files.values())
    near = manifest.neighbors
    for name, value in (
        ("folder", str(folder)),
        ("published", manifest.created_time),
        ("log", f"{manifest.user_count:,} users, {manifest.item_count:,} items, {manifest.event_count:,} events"),
        ("encoder", f"{manifest.encoder.dim} dimensions, {manifest.encoder.state_size} floats of state a user"),
        ("neighbours", f"{near.trees} trees, search_k {near.search_k}, recall@50 {near.recall:.3f}"),
        ("fusion", ", ".join(f"{name} {weight:g}" for name, weight in asdict(manifest.fusion).items())),
        *((f"validation, {name}", _metrics(metrics)) for name, metrics in manifest.metrics.items()),
        ("size", f"{size / 1e6:.1f} MB in {len(manifest.files)} files"),
    ):
        table.add_row(name, Text(value))
    console.print(table)


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
