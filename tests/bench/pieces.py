"""Work that takes hours, piece by piece: a piece that is done is kept, so a benchmark that was interrupted goes on.

A kept piece may be of another state of the product than the rest: each knows of which, and `of_other_code` tells.
"""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure, at_most, machine

import longtide_handlers
import longtide_server

ROOT = Path(str(longtide_server.__file__)).parent
HANDLERS = Path(str(longtide_handlers.__file__)).parent
BEGINS = ("training/judging/evaluate.py", "training/items/items.py", "training/settings.py", "training/files/log.py")
"""Of the server, what training, recommending and judging begin with."""


def code(own: Sequence[Path] = ()) -> str:
    """A digest of what decides which lists come out; of what it does, not of how it is commented.

    Of the server and its handlers, that is what it takes to train, recommend and judge; `own` is the benchmark's.
    """
    return digest_of([*needed([ROOT / begin for begin in BEGINS]), *own])


def digest_of(paths: Sequence[Path]) -> str:
    """Of programs, a digest of what they do."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {meaning(path.read_text())}\n".encode())
    return digest.hexdigest()[:12]


@cache
def fingerprint(path: Path) -> str:
    """A digest of what is in a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def needed(begins: Sequence[Path]) -> list[Path]:
    """The modules of the server and its handlers that some of them import, and these, and so on; sorted."""
    found, waiting = set[Path](), list(begins)
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for name in imported(path.read_text()):
            package = HANDLERS if name.startswith(HANDLERS.name) else ROOT
            module = package.parent.joinpath(*name.split("."))
            waiting += [module.with_suffix(".py"), module / "__init__.py"]
    return sorted(found)


@cache
def imported(source: str) -> list[str]:
    """What a program imports of the product: the modules, and by their full names what it takes from them."""
    return [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith((ROOT.name, HANDLERS.name))
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    ]


@cache
def meaning(source: str) -> str:
    """A program without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [one for one in body if not _is_text(one)]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


class Pieces:
    """What each piece of work gave, a JSON file each."""

    def __init__(self, work: Path, own: Sequence[Path] = ()) -> None:
        """`own`: code of the benchmark that pieces depend on."""
        self.work = work
        self.code = code(own)
        self._others: set[str] = set()
        self._told: set[str] = set()
        work.mkdir(parents=True, exist_ok=True)

    def piece(
        self,
        name: str,
        do: Callable[[], dict[str, Any]],
        given: Sequence[str] = (),
        read: Sequence[Path] = (),
        fits: Callable[[dict[str, Any]], bool] = lambda _: True,
        *,
        ours: bool = True,
    ) -> dict[str, Any]:
        """What a piece gave, now or in an earlier run; `ours` says whether the product had a part in it.

        One that was made with others than the `given` options, or of other files than are `read`, or does not fit, is
        made anew.
        """
        given = [*given, *map(fingerprint, read)]
        path = self.work / f"{name}.json"
        kept = dict(json.loads(path.read_text())) if path.is_file() else None
        if kept is not None and kept.get("given", []) == given and fits(kept):
            other = ours and kept.get("code") != self.code
            if name not in self._told:
                of = f" by {kept.get('code', 'unknown')} code, not this" if other else ""
                print(f"{name}: kept; made {kept.get('made', 'before that was noted')}{of}", flush=True)
            self._told.add(name)
            self._others |= {name} if other else set()
            return kept
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        self._told.add(name)
        made = f"{time.strftime('%Y-%m-%d')}, {machine()}"
        found = {**do(), "given": given, "made": made, "machine": machine(), "code": self.code}
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps(found, indent=1))
        draft.replace(path)
        return found

    def of_other_code(self) -> Figure:
        """How many of the pieces that were asked for were made by another state of the product: remove them, and they
        are made anew."""
        return at_most("pieces of other code", len(self._others), 0, "pieces", ", ".join(sorted(self._others)))
