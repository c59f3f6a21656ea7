"""The command line: reads arguments, calls one function, prints. Exit status 2 means that the input was wrong."""

from longtide_server.cli import events, serving, snapshots  # noqa: F401  (they add their commands)
from longtide_server.cli.base import cli

__all__ = ["cli"]
