"""What a benchmark measured: figures for people and for machines."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One figure for machines."""

    name: str
    value: float
    bar: float | None
    holds: bool | None
    unit: str
    note: str


def options(told: str | None) -> argparse.ArgumentParser:
    """Those of a benchmark that trains with several seeds, side by side; `told` is what it says of itself."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings side by side")
    parser.add_argument("--work", type=Path, default=Path(".longtide/bench"), help="where what is done is kept")
    parser.add_argument("--json", type=Path)
    return parser


def at_least(name: str, value: float, bar: float, unit: str, note: str) -> Figure:
    """A figure that must not be less than its bar."""
    return Figure(name, value, bar, value >= bar, unit, note)


def at_most(name: str, value: float, bar: float, unit: str, note: str) -> Figure:
    """A figure that must not be more than its bar."""
    return Figure(name, value, bar, value <= bar, unit, note)


def plain(name: str, value: float, unit: str, note: str) -> Figure:
    """A figure without a bar."""
    return Figure(name, value, None, None, unit, note)


def publish(figures: Sequence[Figure], path: Path | None) -> None:
    """Print a table, and write the figures for machines."""
    print(f"\n{machine()}, {time.strftime('%Y-%m-%d')}\n")
    print("| figure | value | bar | |\n|---|---|---|---|")
    for one in figures:
        held = "" if one.holds is None else "holds" if one.holds else "**misses**"
        bar = "" if one.bar is None else f"{one.bar:g}"
        print(f"| {one.name} | {one.value:g} {one.unit} | {bar} | {held} {one.note} |")
    if path:
        path.write_text(json.dumps([asdict(one) for one in figures], indent=1))


def machine() -> str:
    """The processor and how many cores of it there are."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
