"""What an item's content says: its text for a language model, its labels, and a vector in the space of the encoder.

The vector is what a trained content tower (`training.items.tower`) makes of the text's and the image's vectors and of
the labels, so an item that nobody has touched has one from the moment it is known. Pure functions on plain data.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import PATH, ItemInfo
from longtide_server.items.item import Item
from longtide_server.items.text_arrays import names_of, text_of


def info_of(item: Item) -> ItemInfo:
    """An item of the live catalogue as an items file would say it."""
    return ItemInfo(
        title=item.title,
        categories=tuple(PATH.join(names) for names in item.categories),
        description=item.description,
        tags=item.tags,
        brand=item.brand,
        price=item.price,
        domain=item.domain,
        attributes=tuple((name, value) for name, value in item.attributes.items() if isinstance(value, str)),
    )


def item_text(info: ItemInfo) -> str:
    """What a language model reads of an item: title, categories, description, as sentences; empty if there is none.

    The description comes last because a model reads only so much.
    """
    parts = (info.title, ", ".join(info.categories), info.description)
    return ". ".join(part.rstrip(". ") for part in parts if part.strip(". "))


def labels_of(info: ItemInfo, price_edges: NDArray[np.float64]) -> tuple[str, ...]:
    """The labels of an item, none twice: categories with all above them, tags, brand, domain, facts and price band.

    price_edges (P,) ascending: a price is in the band of as many edges as are not above it.
    """
    found = [f"category:{above}" for category in info.categories for above in _above(category)]
    found += [f"tag:{tag}" for tag in info.tags]
    found += [f"brand:{info.brand}"] if info.brand else []
    found += [f"domain:{info.domain}"] if info.domain else []
    found += [f"{name}={value}" for name, value in (*info.attributes, *info.facts)]
    if info.price is not None and len(price_edges):
        found.append(f"price:{bisect.bisect_right(price_edges.tolist(), info.price)}")
    return tuple(dict.fromkeys(found))


def _above(category: str) -> list[str]:
    """A category and those above it."""
    names = category.split(PATH)
    return [PATH.join(names[: depth + 1]) for depth in range(len(names))]


@dataclass(frozen=True, slots=True, eq=False)
class ContentWeights:
    """The weights of a trained content tower: D is the encoder's width; a part that was not learned has 0 rows."""

    text: NDArray[np.float32]
    """(E, D) for text vectors of E numbers."""
    image: NDArray[np.float32]
    """(V, D) for image vectors of V numbers."""
    label: NDArray[np.float32]
    """(L, D) a row for each label."""
    label_names: NDArray[np.uint8]
    """The L labels in UTF-8, a zero byte between two of them."""
    price_edges: NDArray[np.float64]
    """(P,) ascending: where one band of prices ends and the next begins."""
    text_model: NDArray[np.uint8]
    """What identifies the language model that made the text vectors, in UTF-8; empty where they were given."""


class ContentTower:
    """Gives items vectors by what is known of them."""

    def __init__(self, weights: ContentWeights) -> None:
        self._weights = weights
        self._label = {name: row for row, name in enumerate(names_of(weights.label_names))}

    @property
    def text_model(self) -> str:
        """The identity of the language model whose vectors the tower reads; empty where callers give them."""
        return text_of(self._weights.text_model)

    @property
    def text_size(self) -> int:
        """How many numbers E a text vector has; 0 where texts say nothing."""
        return len(self._weights.text)

    @property
    def image_size(self) -> int:
        """How many numbers V an image vector has; 0 where images say nothing."""
        return len(self._weights.image)

    def item_vector(self, item: Item, text_vector: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """The vector (D,), of length 1, of an item of the live catalogue; None where nothing of it is known.

        text_vector (E,): what the language model says of its text; its own `text_vector` is used where the tower
        learned from given ones. A vector of another size than the tower reads, or without direction, is left out.
        """
        text = text_vector if self.text_model else item.text_vector
        return self.vector(info_of(item), text, item.image_vector)

    def vector(
        self, info: ItemInfo, text_vector: NDArray[np.float32] | None, image_vector: NDArray[np.float32] | None
    ) -> NDArray[np.float32] | None:
        """As `item_vector`, for an item of an items file."""
        weights = self._weights
        parts = [_direction(text_vector, weights.text), _direction(image_vector, weights.image)]
        rows = [row for name in labels_of(info, weights.price_edges) if (row := self._label.get(name)) is not None]
        if rows:
            parts.append(weights.label[rows].sum(axis=0) / np.sqrt(np.float32(len(rows))))
        there = [part for part in parts if part is not None]
        if not there:
            return None
        joined = np.sum(there, axis=0)
        length = np.linalg.norm(joined)
        return np.asarray(joined / length, np.float32) if length > 0 else None


def _direction(vector: NDArray[np.float32] | None, weight: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """What a vector of any length says, by its direction alone; None where it says nothing to these weights."""
    if vector is None or not len(weight) or len(vector) != len(weight):
        return None
    length = np.linalg.norm(vector)
    if not 0.0 < length < np.inf:
        return None
    return np.asarray((vector / length) @ weight, np.float32)
