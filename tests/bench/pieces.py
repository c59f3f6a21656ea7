"""Work that takes hours, piece by piece: a piece that is done is kept, so a benchmark that was interrupted goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Pieces:
    """What each piece of work gave, a JSON file each."""

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    def piece(self, name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a piece gave, now or in an earlier run."""
        path = self.work / f"{name}.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        found = do()
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps(found, indent=1))
        draft.replace(path)
        return found
