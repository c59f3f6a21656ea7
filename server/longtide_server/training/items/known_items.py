"""Joins what is known of items, those of the log and those without events: their file's, given vectors, read texts."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import info_of
from longtide_server.errors import LogError
from longtide_server.items.item import Item
from longtide_server.training.items.texts import Report, TextNotice, item_vectors
from longtide_server.training.learning.content import Content, content_of

MOST_NEW_ITEMS = 200_000
"""Every answer looks at every item that a snapshot holds."""


@dataclass(frozen=True, slots=True, eq=False)
class GivenVectors:
    """Vectors that somebody else made of some items."""

    row: Mapping[str, int]
    """By item id."""
    text: NDArray[np.float32] | None = None
    """(N, E) unit vectors; zeros where there is none."""
    image: NDArray[np.float32] | None = None
    """(N, V) unit vectors; zeros where there is none."""

    def text_of(self, item_ids: Sequence[str]) -> NDArray[np.float32] | None:
        """(I + 1, E) the text vectors of items, behind a row of zeros."""
        return None if self.text is None else self._rows(self.text, item_ids)

    def image_of(self, item_ids: Sequence[str]) -> NDArray[np.float32] | None:
        """(I + 1, V) the image vectors of items, behind a row of zeros."""
        return None if self.image is None else self._rows(self.image, item_ids)

    def items_of(self, vectors: NDArray[np.float32]) -> dict[str, int]:
        """The rows of the items that have one of these vectors, by item id."""
        there = np.asarray(vectors.any(axis=1))  # (N,)
        return {item_id: row for item_id, row in self.row.items() if there[row]}

    def with_kinds_of(self, other: GivenVectors) -> GivenVectors:
        """These, but for the kinds of vectors that another holds: of those, only its own."""
        item_ids = tuple(dict.fromkeys((*self.row, *other.row)))
        return GivenVectors(
            row={item_id: row for row, item_id in enumerate(item_ids, 1)},  # behind the row of zeros
            text=(self if other.text is None else other).text_of(item_ids),
            image=(self if other.image is None else other).image_of(item_ids),
        )

    def _rows(self, vectors: NDArray[np.float32], item_ids: Sequence[str]) -> NDArray[np.float32]:
        found = np.zeros((len(item_ids) + 1, vectors.shape[1]), np.float32)
        for number, item_id in enumerate(item_ids, 1):
            if (row := self.row.get(item_id)) is not None:
                found[number] = vectors[row]
        return found


NOTHING_GIVEN = GivenVectors({})


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """What a file or a catalogue says of items, in its order."""

    infos: Mapping[str, ItemInfo]
    """By item id."""
    vectors: GivenVectors
    """Those that they brought along."""


NOTHING_DESCRIBED = Described({}, NOTHING_GIVEN)


@dataclass(frozen=True, slots=True, eq=False)
class NewItems:
    """C items without events, of which something is known."""

    item_ids: tuple[str, ...] = ()
    text: NDArray[np.float32] | None = None
    """(C, E) unit vectors; zeros where there is none."""
    image: NDArray[np.float32] | None = None
    """(C, V) unit vectors; zeros where there is none."""


NO_NEW_ITEMS = NewItems()


@dataclass(frozen=True, slots=True, eq=False)
class KnownItems:
    """What is known beside the log."""

    content: Content | None = None
    """Of the items of the log; None where nothing is known of them."""
    new: NewItems = NO_NEW_ITEMS


NOTHING_KNOWN = KnownItems()


def known_items(
    item_ids: Sequence[str],
    infos: Mapping[str, ItemInfo],
    given: GivenVectors,
    text_model: str | None,
    report: Report,
) -> KnownItems:
    """What is known of the items of a log, and of those that the items file holds beside them.

    Given text vectors are used instead of a language model, where the log has an item that has one; `text_model` as in
    `item_vectors`.
    """
    of_log = set(item_ids)
    if infos:
        _compare_ids(item_ids, infos, len(item_ids), "are described", "the items' side", report)
    for kind, vectors in (("text", given.text), ("image", given.image)):
        if vectors is not None:
            theirs = given.items_of(vectors)
            expected = min(len(item_ids), len(theirs))
            _compare_ids(item_ids, theirs, expected, f"have {kind} vectors", "the vectors", report)
    new_ids = [item_id for item_id in infos if item_id not in of_log]
    if len(new_ids) > MOST_NEW_ITEMS:
        report(TextNotice(f"Of {len(new_ids):,} items without events, the first {MOST_NEW_ITEMS:,} of the file count"))
        del new_ids[MOST_NEW_ITEMS:]
    every, count = [*item_ids, *new_ids], len(item_ids) + 1
    text, image, identity = given.text_of(every), given.image_of(every), ""
    if text is not None and not text[:count].any():
        text = None  # nothing could be learned from them
    if text is None and (read := item_vectors(every, infos, text_model, report)) is not None:
        text, identity = read.vectors, read.model
    content = content_of(
        item_ids, infos, None if text is None else text[:count], None if image is None else image[:count], identity
    )
    if content is None:
        return NOTHING_KNOWN
    later = NewItems(tuple(new_ids), None if text is None else text[count:], None if image is None else image[count:])
    return KnownItems(content, later)


def _compare_ids(
    item_ids: Sequence[str], theirs: Collection[str], expected: int, what: str, whose: str, report: Report
) -> None:
    """Say so where less than half of the items of the log that could be are among those of another side."""
    covered = sum(item_id in theirs for item_id in item_ids)
    if 2 * covered < expected:
        report(TextNotice(
            f"Of {len(item_ids):,} items with events, {covered:,} {what}. Are the ids the same? The log has "
            f"{item_ids[0]!r}, {whose} {next(iter(theirs))!r}"
        ))  # fmt: skip


def described(items: Iterable[Item]) -> Described:
    """What items say, each of them once.

    Text vectors count where at least half of the items have one: they stand in for a language model, of which then no
    item has anything.
    """
    infos, texts, images = {}, {}, {}
    for item in items:
        infos[item.item_id] = info_of(item)
        if item.text_vector is not None:
            texts[item.item_id] = item.text_vector
        if item.image_vector is not None:
            images[item.item_id] = item.image_vector
    if 2 * len(texts) < len(infos):
        texts.clear()
    row = {item_id: row for row, item_id in enumerate(dict.fromkeys((*texts, *images)))}
    return Described(infos, GivenVectors(row, _table(row, texts), _table(row, images)))


def _table(row: Mapping[str, int], vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """(N, any) unit vectors of some items in their rows; None where there are none."""
    if not vectors:
        return None
    found = np.zeros((len(row), len(next(iter(vectors.values())))), np.float32)
    for item_id, vector in vectors.items():
        found[row[item_id]] = vector
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1.0), np.float32)


def read_vectors(path: Path) -> GivenVectors:
    """The arrays of an `.npz` file: `item_id` (N,), and `text` (N, E) or `image` (N, V) or both.

    A row of zeros is no vector. LogError where the file is wrong.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as exc:
        raise LogError(f"{path}: is not an .npz file of arrays: {exc}") from exc
    if "item_id" not in found or not {"text", "image"} & found.keys():
        raise LogError(f"{path}: holds {', '.join(found) or 'nothing'}; item_id, and text or image, are needed")
    if found["item_id"].ndim != 1 or found["item_id"].dtype.kind not in "iuU":
        raise LogError(f"{path}: item_id is {found['item_id'].dtype} of shape {found['item_id'].shape}; ids are text")
    item_ids = [str(item_id) for item_id in found["item_id"].tolist()]
    if len(set(item_ids)) < len(item_ids):
        raise LogError(f"{path}: item_id holds an item twice")
    vectors = {name: _unit(path, name, found[name], len(item_ids)) for name in ("text", "image") if name in found}
    return GivenVectors({item_id: row for row, item_id in enumerate(item_ids)}, **vectors)


def _unit(path: Path, name: str, vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    if vectors.ndim != 2 or len(vectors) != count or not np.issubdtype(vectors.dtype, np.floating):
        raise LogError(
            f"{path}: {name} is {vectors.dtype} of shape {vectors.shape}; real numbers in {count} rows are needed"
        )
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise LogError(f"{path}: {name} holds numbers that are not finite")
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0), np.float32)
