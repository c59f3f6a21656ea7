"""The commands around a snapshot: train it, predict with it, measure, say what it is, have it served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click
import msgspec
from rich.table import Table
from rich.text import Text

from longtide import SnapshotInfo
from longtide_server import errors
from longtide_server.cli.base import (
    Server,
    columns_option,
    console,
    include_seen_option,
    log_options,
    messages,
    server_options,
    skip_bad_rows_option,
    store_option,
    training_options,
    uncut,
)
from longtide_server.cli.logs import TrainingOptions, given_vectors, read_events_file, read_for_training
from longtide_server.snapshot import read_manifest, resolve

if TYPE_CHECKING:  # torch is imported by the commands that need it, and not by `longtide --help`
    from longtide_server.training.items.texts import TextNotice, TextProgress
    from longtide_server.training.learning.loop import Progress
    from longtide_server.training.pipeline import Plan, Step
    from longtide_server.training.settings import Settings
    from longtide_server.training.tracking import Tracker

    Told = Progress | Step | Plan | TextProgress | TextNotice


@click.command()
@click.argument("log", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Directory that the snapshot goes into; needed but with --show-settings.",
)  # fmt: skip
@store_option
@log_options
@training_options
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder for TensorBoard's event files.")
@click.option("--wandb", metavar="PROJECT", help="Weights & Biases project to log to.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(
    log: Path | None, out: Path | None, overrides: tuple[str, ...], show_settings: bool, text_model: str | None,
    vectors: Path | None, tensorboard: Path | None, wandb: str | None, as_json: bool, **rest: Unpack[TrainingOptions],
) -> None:  # fmt: skip
    """Train on LOG and publish a snapshot. Killed, it goes on where it was when it is started again.

    LOG is CSV, CSV.gz, Parquet or JSONL with the columns user_id, item_id, timestamp and optionally event_type, value,
    rating, session_id. With --store, what was written to a server is the log, and its catalogue describes the items
    unless --items does. Under `torchrun`, its processes train
    together, one a GPU where there are GPUs.
    """
    from longtide_server.training.items.known_items import known_items
    from longtide_server.training.learning.loop import Run
    from longtide_server.training.learning.workers import workers
    from longtide_server.training.pipeline import prepare_training, publish_trained
    from longtide_server.training.pipeline import train as run_training
    from longtide_server.training.settings import setting_names

    if out is None and not show_settings:
        raise click.MissingParameter(ctx=click.get_current_context(), param_hint="'--out'", param_type="option")
    read = read_for_training(log, overrides, **rest)
    sequences, settings = read.sequences, read.settings(read.sequences)
    if show_settings or out is None:
        click.echo("\n".join(setting_names(settings)))
        return
    infos, given = read.described.infos, given_vectors(vectors, read.described)
    with workers() as team, _shown(settings, tensorboard, wandb) if team.leads else nullcontext(_unheard) as report:
        with team.leader_first():
            known = known_items(sequences.item_ids, infos, given, text_model, report)
        run = Run(team, prepare_training(sequences, settings, out, known.content))
        trained = run_training(sequences, settings, report, run, known.content)
        if team.leads:
            folder = publish_trained(trained, sequences, infos, settings, out, report, run, known.new)
    if team.leads:
        _print_snapshot(folder, as_json)


@contextmanager
def _shown(settings: Settings, tensorboard: Path | None, wandb: str | None) -> Iterator[Callable[[Told], None]]:
    """A report to the screen and to the trackers that were asked for."""
    from longtide_server.training.display import TrainingDisplay
    from longtide_server.training.tracking import TensorBoardTracker, WandbTracker

    with ExitStack() as stack:
        trackers: list[Tracker] = []
        stack.push(partial(_close, trackers))
        if tensorboard is not None:
            trackers.append(TensorBoardTracker(tensorboard))
        if wandb is not None:
            trackers.append(WandbTracker(wandb, asdict(settings)))
        display = stack.enter_context(TrainingDisplay(messages))

        def report(told: Told) -> None:
            display(told)
            for tracker in trackers:
                tracker(told)

        yield report


def _close(trackers: list[Tracker], kind: type[BaseException] | None, *_: object) -> None:
    for tracker in trackers:
        tracker.close(failed=kind is not None)


def _unheard(_: Told) -> None:
    """The report of a process that another one reports for."""


@click.command()
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
@include_seen_option
@columns_option
@skip_bad_rows_option
def predict(
    directory: Path,
    log: Path,
    k: int,
    out: Path,
    request_times: Path | None,
    include_seen: bool,
    columns: Mapping[str, str],
    skip_bad_rows: bool,
) -> None:
    """Recommend to every user of LOG with the snapshot in DIR: a JSON line each, {"user_id": ..., "items": [...]}.

    An anonymous session's line has its session_id instead.

    Retrieval, fusion and filters are the server's own.
    """
    from rich.progress import track

    from longtide_server.events import user_of
    from longtide_server.snapshot import load_snapshot
    from longtide_server.training.dataset import to_sequences
    from longtide_server.training.files.log import read_request_times
    from longtide_server.training.offline import OfflineRecommender, query_of

    if out.is_dir() or not out.parent.is_dir():
        raise errors.InvalidInput.of("--out", f"{out} is not a file in a folder that exists")
    times = {} if request_times is None else read_request_times(request_times)
    sequences = to_sequences(read_events_file(log, columns, skip_bad_rows=skip_bad_rows))
    snapshot = load_snapshot(directory)
    queries = [query_of(owner, k, times.get(user_of(owner)), include_seen=include_seen) for owner in sequences.owners]

    async def write() -> None:
        offline = OfflineRecommender(snapshot, sequences)
        partial = out.with_name(f"{out.name}.partial")
        try:
            unseen = not messages.is_terminal
            asked = iter(track(queries, "Recommending", console=messages, transient=True, disable=unseen))
            with partial.open("w", encoding="utf-8") as file:
                async for answer in offline.answers(queries):
                    query = next(asked)
                    who = {"user_id": query.user_id} if query.user_id else {"session_id": query.session_id}
                    line = who | {"items": [item.item_id for item in answer.recommendations]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
            await offline.close()

    asyncio.run(write())


@click.command()
@click.argument("log", required=False, type=click.Path(path_type=Path))
@store_option
@click.option(
    "--split",
    type=click.Choice(["leave-one-out", "temporal"]),
    default="leave-one-out",
    show_default=True,
    help="Hold back what everyone chose last that was new to them, or everything after a moment.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw NDCG@10 against length of history."
)
@include_seen_option
@log_options
@training_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def evaluate(
    log: Path | None,
    split: Any,  # noqa: ANN401
    plot: Path | None,
    include_seen: bool,
    overrides: tuple[str, ...],
    show_settings: bool,
    text_model: str | None,
    vectors: Path | None,
    as_json: bool,
    **rest: Unpack[TrainingOptions],
) -> None:
    """Measure on LOG: hold back targets, train on the rest, compare with popularity and item transitions.

    Full ranking over the items of the history, those that the user had removed. Of equal scores, the item with more
    events in the history comes first, and of equally many, the smaller id. A target that is not in the history is a
    miss; a user without a history counts, and gets what is popular.

    With --include-seen, the target need not be new, nor does what is recommended; `unseen` is Longtide without
    it, `had` what the user had most often.

    Slices: users by events in their history (cold 0, short 1 to 9, medium 10 to 49, long 50 or more), and by the
    target's popularity in the history (head: the most popular 20 % of the items, tail: the least popular half, mid:
    between them, new: not in it).

    Popularity bias: how many events the first 10 recommended items have on average, over how many the items have that
    the same users consumed.
    """
    from longtide_server.training.display import TrainingDisplay
    from longtide_server.training.items.known_items import known_items
    from longtide_server.training.judging.evaluate import evaluate as run
    from longtide_server.training.judging.evaluate import hold_out
    from longtide_server.training.judging.show import behavior_table, overall_table, slices_table
    from longtide_server.training.settings import setting_names

    if plot:
        _check_plot(plot)
    read = read_for_training(log, overrides, **rest)
    holdout = hold_out(read.sequences, split, times_are_real=read.times_are_real, include_seen=include_seen)
    settings = read.settings(holdout.history)
    if show_settings:
        click.echo("\n".join(setting_names(settings)))
        return
    given = given_vectors(vectors, read.described)
    with TrainingDisplay(messages) as display:
        item_ids = holdout.history.item_ids
        said = read.described.infos
        infos = {item_id: said[item_id] for item_id in item_ids if item_id in said}  # others are not ranked
        known = known_items(item_ids, infos, given, text_model, display)
        found = run(holdout, infos, settings, display, known.content, include_seen=include_seen)
    title = f"{log.name if log else 'the event store'}, {split}{', what was seen included' if include_seen else ''}"
    if as_json:
        click.echo(json.dumps({"split": split, "include_seen": include_seen, **asdict(found)}, indent=2))
    else:
        console.print(overall_table(f"{title}, {found.users:,} users", found))
        console.print(slices_table(found))
        if found.behavior is not None:
            console.print(behavior_table(found.behavior))
    if plot:
        from longtide_server.training.judging.plot import save_history_length_plot

        save_history_length_plot(found.slices.history_length_doubling, title, plot)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def info(directory: Path, as_json: bool) -> None:
    """Say what the snapshot in DIR is, and whether its files are whole."""
    from longtide_server.snapshot import check_files

    folder = resolve(directory)
    check_files(folder, read_manifest(folder))
    _print_snapshot(folder, as_json)


@click.command()
@click.argument("snapshot", type=click.Path(path_type=Path))
@click.option(
    "--to", "directory", type=click.Path(path_type=Path), metavar="DIR",
    help="Copy it into this directory, from which a server serves.",
)  # fmt: skip
@click.option("--activate", "activated", is_flag=True, help="Have the running server serve it.")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def publish(snapshot: Path, directory: Path | None, activated: bool, server: Server, as_json: bool) -> None:
    """Give SNAPSHOT to a server: a snapshot's folder, or a directory that `longtide train` published into.

    Its files are checked, and with --to copied, all or nothing. With --activate the running server tries it and serves
    it from then on; without --to it must be in that server's directory already. Without --activate it becomes the
    snapshot that the next server to start in DIR serves.
    """
    from longtide_server.snapshot import check_files

    if directory is None and not activated:
        raise errors.InvalidInput(
            "say where the snapshot goes (--to), or that the running server is to serve it (--activate), or both"
        )
    folder = resolve(snapshot)
    manifest = read_manifest(folder)
    if directory is None:
        check_files(folder, manifest)
    else:
        folder = _copied(folder, directory, current=not activated)
    served = _activated(server, manifest.snapshot_id) if activated else None
    if as_json:
        found = {"snapshot_id": manifest.snapshot_id, "folder": str(folder), "served": served and _described(served)}
        click.echo(json.dumps(found, indent=2))
    elif served is not None:
        _print_served(server.target, served)
    else:
        line = f"{folder} is what a server that starts in {directory} serves"
        console.print(line, markup=False, soft_wrap=True)


@click.command("snapshots")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def snapshots_(server: Server, as_json: bool) -> None:
    """List what a running server can serve, the newest first; the active one is what it serves."""
    with server.client() as client:
        found = client.list_snapshots()
    if as_json:
        click.echo(json.dumps([_described(one) for one in found], indent=2))
    else:
        console.print(_snapshots_table(server.target, found))


@click.command()
@click.argument("snapshot_id")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print the snapshot as JSON.")
def activate(snapshot_id: str, server: Server, as_json: bool) -> None:
    """Have a running server serve SNAPSHOT_ID, one of `longtide snapshots`: an older one, for example, to roll back."""
    served = _activated(server, snapshot_id)
    if as_json:
        click.echo(json.dumps(_described(served), indent=2))
    else:
        _print_served(server.target, served)


def _copied(folder: Path, directory: Path, current: bool) -> Path:
    from longtide_server.snapshot import MANIFEST, copy_snapshot, set_current

    if (directory / MANIFEST).is_file():
        raise errors.InvalidInput.of("--to", f"{directory} is a snapshot; name the directory that it lies in")
    try:
        target = copy_snapshot(folder, directory)
        if current:
            set_current(directory, target.name)
    except OSError as exc:  # no space, no permission
        reason = f"the snapshot cannot be copied into {directory}: {exc.strerror or exc}"
        raise errors.InvalidInput.of("--to", reason) from exc
    return target


def _activated(server: Server, snapshot_id: str) -> SnapshotInfo:
    with server.client() as client, messages.status("Activating"):
        return client.activate_snapshot(snapshot_id)


def _print_served(target: str, served: SnapshotInfo) -> None:
    line = (
        f"{target} serves {served.snapshot_id}: {served.user_count:,} users, {served.item_count:,} items, "
        f"{served.event_count:,} events"
    )
    console.print(line, markup=False, soft_wrap=True)


def _described(snapshot: SnapshotInfo) -> dict[str, Any]:
    return {**asdict(snapshot), "created_time": snapshot.created_time.isoformat()}


def _snapshots_table(target: str, found: Sequence[SnapshotInfo]) -> Table:
    table = Table("snapshot", "", "published (UTC)", title=Text(f"What {target} can serve"), title_justify="left")
    for column in ("users", "items", "events", "validation ndcg@10"):
        table.add_column(column, justify="right")
    for one in found:
        measured = one.metrics.get("fusion", {}).get("ndcg@10")
        table.add_row(
            *(Text(one.snapshot_id), "active" if one.active else "", f"{one.created_time:%Y-%m-%d %H:%M:%S}"),
            *(f"{count:,}" for count in (one.user_count, one.item_count, one.event_count)),
            "" if measured is None else f"{measured:.4f}",
        )
    return uncut(table)


def _check_plot(path: Path) -> None:
    """InvalidInput when no plot can be written there, so that it is known before the training."""
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise errors.InvalidInput.of("--plot", f"{path} is not a .png file in a folder that exists")
    if find_spec("matplotlib") is None:
        raise errors.InvalidInput.of(
            "--plot", "matplotlib is not installed; a plot needs: pip install 'longtide[plot]'"
        )


def _print_snapshot(folder: Path, as_json: bool) -> None:
    manifest = read_manifest(folder)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        return
    table = Table(show_header=False, title=f"Snapshot {manifest.snapshot_id}")
    size = sum(facts.bytes for facts in manifest.files.values())
    near = manifest.neighbors
    new = manifest.new_item_count
    for name, value in (
        ("folder", str(folder)),
        ("published", manifest.created_time),
        ("log", f"{manifest.user_count:,} users, {manifest.item_count:,} items, {manifest.event_count:,} events"),
        *([("without events", f"{new:,} items more, placed by their content")] if new else []),
        ("encoder", f"{manifest.encoder.dim} dimensions, {manifest.encoder.state_size} floats of state a user"),
        ("neighbours", f"{near.trees} trees, search_k {near.search_k}, recall@50 {near.recall:.3f}"),
        ("fusion", ", ".join(f"{name} {weight:g}" for name, weight in asdict(manifest.fusion).items())),
        *((f"validation, {name}", _metrics(metrics)) for name, metrics in manifest.metrics.items()),
        ("size", f"{size / 1e6:.1f} MB in {len(manifest.files)} files"),
    ):
        table.add_row(name, Text(value))
    console.print(uncut(table))


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
