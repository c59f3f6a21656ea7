"""Work that takes hours, piece by piece: a piece that is done is kept, so a benchmark that was interrupted goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.figures import machine


class Pieces:
    """What each piece of work gave, a JSON file each."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._told: set[str] = set()
        work.mkdir(parents=True, exist_ok=True)

    def piece(
        self,
        name: str,
        do: Callable[[], dict[str, Any]],
        given: Sequence[str] = (),
        fits: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any]:
        """What a piece gave, now or in an earlier run.

        One that was made with others than the `given` options, or does not fit, is made anew.
        """
        path = self.work / f"{name}.json"
        kept = dict(json.loads(path.read_text())) if path.is_file() else None
        if kept is not None and kept.get("given", []) == list(given) and fits(kept):
            if name not in self._told:
                print(f"{name}: kept; made {kept.get('made', 'before that was noted')}", flush=True)
            self._told.add(name)
            return kept
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        self._told.add(name)
        found = {**do(), "given": list(given), "made": f"{time.strftime('%Y-%m-%d')}, {machine()}"}
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps(found, indent=1))
        draft.replace(path)
        return found
