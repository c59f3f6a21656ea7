"""Keeps what training has reached on disk, so that a kill at any moment loses no finished epoch.

A checkpoint belongs to one training: the same log, settings and version find it again, anything else begins anew. It
holds tensors and plain numbers, never a pickled object, and is replaced atomically.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from longtide import __version__
from longtide_server.errors import Unavailable
from longtide_server.snapshot import TRAINING

log = structlog.get_logger(__name__)

State = dict[str, Any]
WEIGHTS = 2
"""Goes up when weights of the same settings come to mean something else."""
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, NotImplementedError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What zipfile and torch raise where a file is damaged, each for another part of it, as thousands of them showed."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training, a file for each of its phases."""

    folder: Path

    def load(self, phase: str) -> State | None:
        """What the phase had reached, or None. A damaged file is reported and counts as none."""
        path = self.folder / f"{phase}.pt"
        if not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as parts:  # torch compares no checksums
                if (damaged := parts.testzip()) is not None:
                    raise zipfile.BadZipFile(f"{damaged} does not have the checksum that it was written with")
            state: State = torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE as exc:
            log.warning("checkpoint_unreadable", path=str(path), reason=repr(exc))
            return None
        return state

    def save(self, phase: str, state: State) -> None:
        """Replace what the phase had reached; a reader, or a kill, sees the old state or the new one.

        Unavailable where it cannot be written.
        """
        draft = self.room() / f".{phase}-{os.getpid()}"
        try:
            with draft.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as exc:  # the latter is torch's, of a disk that is full
            draft.unlink(missing_ok=True)
            raise Unavailable(f"{draft}: cannot be written; is the disk full? ({exc})") from exc
        draft.replace(self.folder / f"{phase}.pt")

    def room(self) -> Path:
        """The folder, which is there: also for what only this training needs, and what a kill may leave."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def clear(self) -> None:
        """Remove them: what they led to is published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def checkpoints_of(directory: Path, *identity: object) -> Checkpoints:
    """The checkpoints, below a directory, of the training that `identity` (arrays and plain data) decides."""
    digest = hashlib.sha256(f"{__version__} {WEIGHTS} {torch.__version__}".encode())
    for part in identity:
        data = getattr(part, "data", None)
        digest.update(data.tobytes() if isinstance(data, memoryview) else repr(part).encode())
    return Checkpoints(directory / f"{TRAINING}{digest.hexdigest()[:16]}")
