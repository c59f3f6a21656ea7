"""The `longtide` command, also where only the SDK is installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        from longtide_server.cli import cli

        cli()
    except ModuleNotFoundError as exc:
        sys.exit(f"longtide: {exc.name} is not installed; the command line needs: pip install 'longtide[server]'")


if __name__ == "__main__":
    main()
