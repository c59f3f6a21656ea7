"""What is known of items as arrays, and the part that it has in the vectors of items with events.

It is trained together with the encoder: an item's vector is an embedding of its number joined with what its text, image
and labels say (as in LightFM, Kula 2015). Alone it is half a vector: see `tower` for what items without events get.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import ContentWeights, labels_of
from longtide_server.items.text_arrays import SEPARATOR, bytes_of, bytes_of_names

MOST_LABELS = 20_000
LEAST_ITEMS = 2
"""Of a label, to be learned: what one item has alone says nothing of another."""
PRICE_BANDS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What is known of items 1 to I, in rows by their numbers; row 0 is padding, and has nothing."""

    text: NDArray[np.float32]
    """(I + 1, E) unit vectors, zeros where there is none; E is 0 where texts are not used."""
    image: NDArray[np.float32]
    """(I + 1, V) unit vectors, zeros where there is none."""
    labels: NDArray[np.int64]
    """(N,) labels of all items, item after item: rows of `names`."""
    offsets: NDArray[np.int64]
    """(I + 2,) item i has the labels at offsets[i] to offsets[i + 1]."""
    names: tuple[str, ...]
    """L labels that at least two of the items have, the most frequent first."""
    price_edges: NDArray[np.float64]
    """(P,) where one band of prices ends and the next begins."""
    text_model: str = ""
    """Identifies the language model that made the text vectors; empty where they were given."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(I + 1,) of which items something is known."""
        found: NDArray[np.bool_] = self.text.any(axis=1) | self.image.any(axis=1) | (np.diff(self.offsets) > 0)
        return found


def content_of(
    item_ids: Sequence[str],
    infos: Mapping[str, ItemInfo],
    text: NDArray[np.float32] | None = None,
    image: NDArray[np.float32] | None = None,
    text_model: str = "",
) -> Content | None:
    """What is known of the items; None when that is nothing.

    text (I + 1, E), image (I + 1, V): zeros where there is none.
    """
    known = [infos.get(item_id, ItemInfo()) for item_id in item_ids]
    edges = price_edges([info.price for info in known if info.price is not None])
    labels = [labels_of(info, edges) for info in known]
    counts = Counter(label for found in labels for label in found if SEPARATOR not in label)
    names = tuple(name for name, count in counts.most_common(MOST_LABELS) if count >= LEAST_ITEMS)
    row = {name: place for place, name in enumerate(names)}
    rows = [[row[label] for label in found if label in row] for found in labels]
    nothing = np.zeros((len(item_ids) + 1, 0), np.float32)
    content = Content(
        text=nothing if text is None or not text.any() else text,
        image=nothing if image is None or not image.any() else image,
        labels=np.array([label for found in rows for label in found], np.int64),
        offsets=np.cumsum([0, 0, *map(len, rows)]).astype(np.int64),
        names=names,
        price_edges=edges,
        text_model=text_model,
    )
    return content if content.known.any() else None


def price_edges(prices: Sequence[float]) -> NDArray[np.float64]:
    """(P,) ascending, none twice: edges of bands that hold about equally many of the prices."""
    if not prices:
        return np.zeros(0)
    return np.unique(
        np.quantile(np.array(prices, np.float64), np.arange(1, PRICE_BANDS) / PRICE_BANDS, method="higher")
    )


class ContentPart(nn.Module):
    """What content says of each item, as vectors; the content itself is not trained."""

    def __init__(self, dim: int, content: Content) -> None:
        super().__init__()
        self._names, self._price_edges, self._text_model = content.names, content.price_edges, content.text_model
        self.text: Tensor
        self.image: Tensor
        self.labels: Tensor
        self.offsets: Tensor
        self.counts: Tensor
        self.shares: Tensor
        counts = np.diff(content.offsets)
        for name, array in (
            ("text", content.text),
            ("image", content.image),
            ("labels", content.labels),
            ("offsets", content.offsets[:-1]),
            ("counts", counts),
            ("shares", np.repeat(1.0 / np.sqrt(np.maximum(counts, 1.0)), counts).astype(np.float32)),
        ):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        scale = dim**-0.5  # every kind of content begins with length 1
        self.text_weight = _weight(content.text.shape[1], dim, scale)
        self.image_weight = _weight(content.image.shape[1], dim, scale)
        self.label_embedding = _weight(len(content.names), dim, scale)

    def forward(self) -> Tensor:
        """(I + 1, D); zeros for items of which nothing is known."""
        found = self.text @ self.text_weight + self.image @ self.image_weight
        if len(self.label_embedding):
            found = found + embedding_bag(
                self.labels, self.label_embedding, self.offsets, mode="sum", per_sample_weights=self.shares
            )
        return found

    def some(self, rows: Tensor) -> Tensor:
        """(R, D) the same of items (R,)."""
        found = self.text[rows] @ self.text_weight + self.image[rows] @ self.image_weight
        if len(self.label_embedding):
            count = self.counts[rows]  # (R,)
            begin = torch.cumsum(count, dim=0) - count
            row = torch.repeat_interleave(count)  # (N,)
            label = torch.arange(len(row), device=rows.device) + (self.offsets[rows] - begin)[row]
            found = found + embedding_bag(
                self.labels[label], self.label_embedding, begin, mode="sum", per_sample_weights=self.shares[label]
            )
        return found

    def weights(self) -> ContentWeights:
        """The same as arrays, for a server that has no torch."""
        return ContentWeights(
            text=_array(self.text_weight),
            image=_array(self.image_weight),
            label=_array(self.label_embedding),
            label_names=bytes_of_names(self._names),
            price_edges=self._price_edges,
            text_model=bytes_of(self._text_model),
        )


def _weight(rows: int, dim: int, scale: float) -> nn.Parameter:
    return nn.Parameter(scale * torch.randn(rows, dim), requires_grad=rows > 0)


def _array(weight: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = weight.detach().cpu().numpy()
    return array
