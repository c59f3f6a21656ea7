"""The data directory belongs to one server at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from longtide_server.errors import InvalidInput


@contextmanager
def held(data_dir: Path) -> Iterator[BinaryIO]:
    """Hold a data directory: two servers on one would tread on each other. InvalidInput when another holds it.

    Yields the lock, which whoever inherits it holds as well.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("wb")
    except OSError as exc:
        raise InvalidInput.of("data_dir", f"{data_dir} cannot be used: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise InvalidInput.of("data_dir", f"{data_dir} is in use by another server") from exc
        yield lock
