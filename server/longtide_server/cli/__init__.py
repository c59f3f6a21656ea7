"""The command line: reads arguments, calls one function, prints. Exit status 2 means that the input was wrong."""

import click

from longtide import __version__
from longtide_server.cli.base import Commands
from longtide_server.cli.events import export, import_, report
from longtide_server.cli.items import items
from longtide_server.cli.serving import quickstart, recommend, score, serve, worker
from longtide_server.cli.snapshots import activate, evaluate, info, predict, publish, snapshots_, train

__all__ = ["cli"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="longtide")
def cli() -> None:
    """Longtide: a real-time recommender with long- and short-term interest, over gRPC."""


for command in (
    *(train, evaluate, predict, info, publish, snapshots_, activate),
    *(serve, worker, recommend, score, quickstart),
    *(import_, export, report, items),
):
    cli.add_command(command)
