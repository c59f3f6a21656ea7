"""What people turn to at present, and where new items were pulled, in a file: a server that starts again goes on there.

The event log holds the truth of histories, but not the counts and sums that were made of them as they came. The file
may be missing, old or damaged: what is lost with it comes back with the next events.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from longtide_server.new_items.newcomers import Pulled
from longtide_server.sources.trending import Counts

SUFFIX = ".signals"
_SAVING = threading.Lock()  # a server that ends must not meet a save that is under way

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Signals:
    """Of a running server."""

    counts: Counts = field(default_factory=Counts)
    """Under any snapshot."""
    pulled: dict[str, Pulled] = field(default_factory=dict)
    """New items under one snapshot, whose encoder has made the vectors."""


def save_signals(folder: Path, snapshot_id: str, counts: Counts, pulled: Callable[[], dict[str, Pulled]]) -> None:
    """Replace a snapshot's file. OSError when it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{snapshot_id}{SUFFIX}"
    draft = path.with_suffix(".partial-signals")
    content = msgspec.msgpack.encode(Signals(counts, pulled()))
    with _SAVING:
        draft.write_bytes(content)
        draft.replace(path)


def read_signals(folder: Path, snapshot_id: str) -> Signals:
    """The latest counts, whatever the snapshot was, and what was pulled under this one."""
    files = sorted(folder.glob(f"*{SUFFIX}"), key=_written_s, reverse=True)
    counts = next((found.counts for file in files if (found := _read(file)) is not None), Counts())
    own = _read(folder / f"{snapshot_id}{SUFFIX}")
    return Signals(counts, {} if own is None else own.pulled)


def _written_s(path: Path) -> float:
    """When a file was written; long ago, where it is there no more."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _read(path: Path) -> Signals | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Signals)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as exc:
        log.warning("signals_not_read", path=str(path), reason=str(exc))
        return None
