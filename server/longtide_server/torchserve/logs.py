"""Finds in TorchServe's logs why it failed."""

from __future__ import annotations

import re
from pathlib import Path

WORKER_FAILED = "Backend worker process died."
_EXCEPTION = re.compile(r"(?:^|MODEL_LOG - )((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b: .+)$", re.MULTILINE)
_TAIL_LINES = 40
_MAX_READ_BYTES = 1 << 18


class LogFolder:
    """The logs of one launch: whatever was written before `mark` is another launch's."""

    def __init__(self, folder: Path) -> None:
        self._files = (folder / "jvm.log", folder / "torchserve.log")
        self._marks = dict.fromkeys(self._files, 0)

    @property
    def jvm(self) -> Path:
        """What the JVM prints before, or without, its log."""
        return self._files[0]

    def mark(self) -> None:
        """Begin a launch."""
        self.jvm.unlink(missing_ok=True)
        self._marks = {path: path.stat().st_size if path.exists() else 0 for path in self._files}

    def text(self) -> str:
        """What this launch has written, the last part of it where it is long."""
        return "".join(_read_from(path, start) for path, start in self._marks.items())


def reason(text: str) -> str:
    """The first exception named in the text (later ones are often its consequences), or a plain sentence."""
    found = _EXCEPTION.search(text)
    return found.group(1).strip() if found else "its log names no exception"


def tail(text: str) -> str:
    """The last lines."""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _read_from(path: Path, start: int) -> str:
    if not path.exists():
        return ""
    size = path.stat().st_size
    start = 0 if size < start else start  # it was rolled over
    with path.open("rb") as file:
        file.seek(max(start, size - _MAX_READ_BYTES))
        return file.read().decode(errors="replace")
