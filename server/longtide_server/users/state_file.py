"""Encoder states in a file, so that a server that starts again need not encode everybody's history anew.

An Arrow file, mapped and read row by row as people ask. A state is of one version of a history of one log, under one
snapshot, and is used for exactly that; whatever else is asked for is encoded. The file may be missing, old or damaged:
it is a cache.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import structlog
from numpy.typing import NDArray

from longtide_server.encoder import Encoded
from longtide_server.event_store import Version

ROWS_A_BATCH = 1_000
SNAPSHOT, LOG = b"snapshot_id", b"log_id"
_SAVING = threading.Lock()  # a server that ends must not meet a save that is under way

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StateRow:
    """The state of an owner."""

    owner: str
    version: Version
    """Of the history that it is of."""
    count: int
    """Events that were encoded."""
    encoded: Encoded


def save_states(path: Path, snapshot_id: str, log_id: str, rows: Sequence[StateRow]) -> None:
    """Replace the file. OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    schema = pa.schema(
        [
            ("owner", pa.string()),
            ("rewrites", pa.int64()),
            ("position", pa.int64()),
            ("last", pa.string()),
            ("count", pa.int64()),
            ("query", pa.binary()),
            ("state", pa.binary()),
            ("items", pa.binary()),
            ("log_probability", pa.binary()),
            ("log_z", pa.float64()),
        ],
        metadata={SNAPSHOT: snapshot_id.encode(), LOG: log_id.encode()},
    )
    with _SAVING:
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for at in range(0, len(rows), ROWS_A_BATCH):
                columns = zip(*(_cells(row) for row in rows[at : at + ROWS_A_BATCH]), strict=True)
                file.write_batch(pa.record_batch([pa.array(column) for column in columns], schema=schema))
        draft.replace(path)


def sweep_states(root: Path, before_s: float) -> None:
    """Delete every file that nobody has saved into since a moment, seconds since 1970: what it says of people who have
    been deleted since then would stay."""
    for kind in ("*.arrow", "*.partial"):
        for file in root.rglob(kind):
            with suppress(FileNotFoundError):  # another process does the same
                if file.stat().st_mtime < before_s:
                    file.unlink()


class SavedStates:
    """What a file holds of one snapshot and log; nothing when it is not there, of another one or not readable."""

    def __init__(self, path: Path, snapshot_id: str, log_id: str) -> None:
        self._table: pa.Table | None = None
        self._row: dict[str, int] = {}
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except FileNotFoundError:
            return
        except (OSError, pa.ArrowException) as exc:
            log.warning("states_not_read", path=str(path), reason=str(exc))
            return
        of = table.schema.metadata or {}
        if (of.get(SNAPSHOT), of.get(LOG)) == (snapshot_id.encode(), log_id.encode()):
            self._table = table
            self._row = {owner: row for row, owner in enumerate(table["owner"].to_pylist())}

    def __len__(self) -> int:
        return len(self._row)

    def find(self, owner: str, version: Version, count: int) -> Encoded | None:
        """The owner after `count` events, where that is what was saved of this version of the history."""
        row = self._row.get(owner)
        if row is None or self._table is None:
            return None
        saved = {name: self._table[name][row].as_py() for name in ("rewrites", "position", "last", "count")}
        if Version(saved["rewrites"], saved["position"], saved["last"]) != version or saved["count"] != count:
            return None
        return Encoded(
            query=self._floats("query", row),
            state=self._floats("state", row),
            items=np.frombuffer(self._table["items"][row].as_buffer(), np.int32).astype(np.int64),
            log_probability=self._floats("log_probability", row),
            log_z=float(self._table["log_z"][row].as_py()),
        )

    def _floats(self, name: str, row: int) -> NDArray[np.float32]:
        assert self._table is not None
        # A copy: the state must not hold on to the file.
        return np.array(np.frombuffer(self._table[name][row].as_buffer(), np.float32))


def _cells(row: StateRow) -> tuple[object, ...]:
    one = row.encoded
    arrays = (one.query, one.state, one.items.astype(np.int32), one.log_probability)
    return (row.owner, *row.version, row.count, *(array.tobytes() for array in arrays), one.log_z)
