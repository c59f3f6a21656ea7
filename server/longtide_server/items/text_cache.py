"""Keeps text embeddings on disk, so that a text is read by a language model once.

A folder per model holds shards: files that are written whole, under another name, and then renamed into place, and
that are never changed. So a process may be killed at any moment, and any number of processes may share a cache, on a
network file system too. A shard is named by the hash of its content: one that is damaged is removed, with a warning,
and what it held is embedded again. A cache that cannot be read or written costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import InvalidInput

SHARD = ".npz"
PARTIAL = ".partial"
PARTIAL_LIFE_S = 86_400.0
KEY = "S32"


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where embeddings are kept: LONGTIDE_CACHE, else `longtide` in XDG_CACHE_HOME, else in ~/.cache."""
    if named := environment.get("LONGTIDE_CACHE"):
        return Path(named)
    shared = environment.get("XDG_CACHE_HOME", "")
    if shared.startswith("/"):  # the XDG standard has relative ones ignored
        return Path(shared) / "longtide"
    try:
        return Path.home() / ".cache" / "longtide"
    except RuntimeError as exc:
        raise InvalidInput.of("LONGTIDE_CACHE", "must name a folder: there is no home directory to cache in") from exc


class TextCache:
    """Unit vectors by model and text, in a folder that is made when something is written."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder / "texts"
        self._warn = warn
        self._writable = True
        self._keys: dict[Path, NDArray[np.bytes_]] = {}
        """Of the shards that were read once: others are not read for what they do not hold."""

    def read(self, identity: str, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """(E,) vectors of those texts that the model of this identity has embedded before."""
        wanted = {text_key(text): text for text in texts}
        found: dict[str, NDArray[np.float32]] = {}
        for keys, vectors in self._shards(self._model_folder(identity), np.array(list(wanted), KEY)):
            for key, vector in zip(keys, vectors, strict=True):
                if key in wanted:
                    found[wanted[key]] = vector
        return found

    def write(self, identity: str, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep the (n, E) vectors of n texts."""
        if not self._writable:
            return
        folder = self._model_folder(identity)
        content = _packed([text_key(text) for text in texts], vectors)
        partial = folder / (uuid.uuid4().hex + PARTIAL)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(folder / _shard_name(content))
        except OSError as exc:
            self._writable = False  # once is enough to say so
            _remove(partial)
            self._warn(f"Text embeddings are not kept: {folder} cannot be written: {exc.strerror or exc}")

    def _model_folder(self, identity: str) -> Path:
        return self._folder / hashlib.sha256(identity.encode()).hexdigest()[:32]

    def _shards(self, folder: Path, wanted: NDArray[np.bytes_]) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
        try:
            paths = sorted(folder.iterdir())
        except FileNotFoundError:
            return
        except OSError as exc:
            self._warn(f"Text embeddings of earlier runs are not used: {folder}: {exc.strerror or exc}")
            return
        _remove_abandoned(paths)
        self._keys = {path: self._keys[path] for path in paths if path in self._keys}
        for path in paths:
            known = self._keys.get(path)
            if path.suffix != SHARD or (known is not None and not np.isin(wanted, known).any()):
                continue
            if shard := self._shard(path):
                self._keys[path] = np.array(shard[0], KEY)
                yield shard

    def _shard(self, path: Path) -> tuple[list[bytes], NDArray[np.float32]] | None:
        try:
            content = path.read_bytes()
        except OSError as exc:
            self._warn(f"{path} cannot be read; its texts are embedded again: {exc.strerror or exc}")
            return None
        if _shard_name(content) != path.name:
            self._warn(f"{path} is damaged and is removed; its texts are embedded again")
            _remove(path)
            return None
        return _unpacked(content)


def _packed(keys: list[bytes], vectors: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1), vectors=vectors)
    return buffer.getvalue()


def _unpacked(content: bytes) -> tuple[list[bytes], NDArray[np.float32]]:
    with np.load(io.BytesIO(content)) as arrays:
        return [key.tobytes() for key in arrays["keys"]], arrays["vectors"]


def _shard_name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() + SHARD


def text_key(text: str) -> bytes:
    """The hash of a text, by which its vectors are kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _remove_abandoned(paths: Sequence[Path]) -> None:
    """Remove what killed processes left half-written; a younger one may still be at work."""
    for path in paths:
        if path.suffix == PARTIAL and _age_s(path) > PARTIAL_LIFE_S:
            _remove(path)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0  # another process has just finished it


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a cache that we may read but not change
