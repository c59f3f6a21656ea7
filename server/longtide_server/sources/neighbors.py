"""Nearest vectors: similar users at similar moments along all histories, and similar items. Alone in importing annoy.

Moments are searched along the directions that hold most of the vectors: a part of the dimensions keeps the neighbours
and takes a part of the memory and time. Annoy's `angular` distance of unit vectors is sqrt(2 - 2 cosine); its `dot` is
not used because release 1.17.3 gets it wrong. An index is built once and never changed: items added to a built Annoy
index would be ignored without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from annoy import AnnoyIndex
from numpy.typing import NDArray

from longtide_server.errors import SnapshotError

BUILD_SEED = 20_251_124


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """The moments that the index holds: a user's are next to each other, in time order."""

    user: NDArray[np.int32]
    """(P,) whose moment it is: an index into the snapshot's users."""
    next_item: NDArray[np.int32]
    """(P,) the item that this user did next, from 1."""
    weight: NDArray[np.float32]
    """(P,) recency: 1 for the newest moments, less for older ones, above 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """Moments similar to a query vector, most similar first."""

    position: NDArray[np.int64]
    """(K,) rows of Positions."""
    similarity: NDArray[np.float32]
    """(K,) cosine, -1 to 1."""


NO_NEIGHBORS = Neighbors(np.zeros(0, np.int64), np.zeros(0, np.float32))


def principal_directions(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(D, R) the R orthonormal directions that hold most of the vectors (P, D); R = min(count, D).

    Principal components about the origin (Pearson 1901), since it is angles at the origin that are compared.
    """
    _, directions = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)  # by rising share
    return np.ascontiguousarray(directions[:, ::-1][:, :count], np.float32)


def project(vectors: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (..., D) along the directions (D, R), of length 1 (..., R)."""
    shadow = vectors @ directions
    length = np.linalg.norm(shadow, axis=-1, keepdims=True)
    return np.asarray(shadow / np.maximum(length, 1e-12), np.float32)


def index_bytes(count: int, directions: int, trees: int) -> int:
    """About how much disk the building of an index takes; measured with 20,000 to 1,000,000 vectors."""
    return round(1.5 * count * (4 * directions + 16) * (1.0 + trees / 20))


def build_index(vectors: NDArray[np.float32], path: Path, trees: int) -> None:
    """Index projected vectors (P, R) and write them to a file. One job and a fixed seed: the same file every time."""
    index = AnnoyIndex(vectors.shape[1], "angular")
    index.on_disk_build(str(path))
    index.set_seed(BUILD_SEED)
    for row, vector in enumerate(vectors):
        index.add_item(row, vector)
    index.build(trees, n_jobs=1)
    index.unload()


class NeighborIndex:
    """A built index, mapped from its file and shared by every reader of it."""

    def __init__(self, path: Path, directions: NDArray[np.float32], positions: Positions) -> None:
        """directions (D, R): what queries are projected on, as the indexed vectors were."""
        self.positions = positions
        self.directions = directions
        dim = directions.shape[1]
        self._index = AnnoyIndex(dim, "angular")
        try:
            self._index.load(str(path))
        except OSError as exc:
            raise SnapshotError(f"{path}: not an Annoy index of {dim} dimensions: {exc}") from exc
        if self._index.get_n_items() != len(positions.user):
            raise SnapshotError(
                f"{path}: holds {self._index.get_n_items()} vectors for {len(positions.user)} positions"
            )

    def __len__(self) -> int:
        return len(self.positions.user)

    def moments(self, user: int) -> tuple[int, int]:
        """The first position of a user's moments, and the one after the last."""
        # Of the array's own type: numpy would convert the whole array to that of a plain list.
        bounds = np.array([user, user + 1], self.positions.user.dtype)
        first, last = np.searchsorted(self.positions.user, bounds).tolist()
        return first, last

    def search(self, query: NDArray[np.float32], count: int, search_k: int, min_similarity: float) -> Neighbors:
        """The `count` most similar moments to a vector (D,) whose cosine, once projected, is at least `min_similarity`.

        `search_k` is how many vectors Annoy may look at: more is slower and misses less.
        """
        if not len(self):
            return NO_NEIGHBORS
        shadow = project(query, self.directions)
        rows, distances = self._index.get_nns_by_vector(shadow, count, search_k=search_k, include_distances=True)
        similarity = np.asarray(1.0 - np.square(distances) / 2.0, np.float32)
        close = int(np.searchsorted(-similarity, -min_similarity, side="right"))
        return Neighbors(np.asarray(rows[:close], np.int64), similarity[:close])

    def recall(self, query: NDArray[np.float32], count: int, search_k: int, at: int = 50) -> float:
        """The share of the `at` moments nearest to a vector (D,) that a search for `count` brings among its first.

        The nearest ones are found by looking at every moment: slow, and other threads go on meanwhile.
        """
        at = min(at, len(self))
        if not at:
            return 1.0
        everything = len(self) * self._index.get_n_trees()
        nearest = self.search(query, at, everything, -1.0).similarity
        found = self.search(query, count, search_k, -1.0).similarity[:at]
        return float((found >= nearest[-1] - 1e-6).mean())


class VectorIndex:
    """An index in memory over vectors that change now and then: it is built anew, and takes the old one's place."""

    def __init__(self, vectors: NDArray[np.float32], trees: int) -> None:
        """vectors (R, D), each of length 1, or zeros where a row is not to be found. It takes long: use a thread."""
        self.rows = np.flatnonzero(vectors.any(axis=1))
        """(R',) the rows that can be found."""
        self._index = AnnoyIndex(vectors.shape[1], "angular")
        self._index.set_seed(BUILD_SEED)
        for number, row in enumerate(self.rows.tolist()):
            self._index.add_item(number, vectors[row])
        self._index.build(trees, n_jobs=1)

    def search(self, vector: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `count` rows most similar to a vector (D,) of length 1, and their cosines; most similar first."""
        found, distances = self._index.get_nns_by_vector(vector, count, include_distances=True)
        return self.rows[found], np.asarray(1.0 - np.square(distances) / 2.0, np.float32)


def recall(index: NeighborIndex, vectors: NDArray[np.float32], queries: NDArray[np.float32], count: int, search_k: int,
           at: int = 50) -> float:  # fmt: skip
    """The share of the true `at` nearest of projected vectors (P, R) that a search for `count` brings among its first.

    queries (Q, D); of fewer than `at`, where the search asks for fewer.

    A vector exactly as near as the true last one counts: equal moments are interchangeable.
    """
    at = min(at, count, len(vectors))
    if not at or not len(queries):
        return 1.0
    found = 0
    for query in queries:
        cosine = vectors @ project(query, index.directions)  # (P,)
        bar = np.partition(cosine, -at)[-at] - 1e-6
        rows = index.search(query, count, search_k, -1.0).position[:at]
        found += int((cosine[rows] >= bar).sum())
    return found / (at * len(queries))
