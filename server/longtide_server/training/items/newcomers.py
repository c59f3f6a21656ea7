"""Items without events, as a snapshot holds them: with the vectors that their content gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import ContentTower, ContentWeights
from longtide_server.training.dataset import Sequences
from longtide_server.training.items.known_items import NewItems
from longtide_server.training.items.tower import fit_tower
from longtide_server.training.learning.model import Encoder
from longtide_server.training.learning.train import TrainConfig


@dataclass(frozen=True, slots=True, eq=False)
class Newcomers:
    """C items without events, and what gives items their vectors by content."""

    content: ContentWeights | None
    known: NDArray[np.float32]
    """(I + 1, D) what it makes of the items with events."""
    item_ids: tuple[str, ...]
    vectors: NDArray[np.float32]
    """(C, D), of length 1."""


def newcomers_of(
    model: Encoder, sequences: Sequences, settings: TrainConfig, infos: Mapping[str, ItemInfo], new: NewItems
) -> Newcomers:
    """Fit the tower of an encoder that was trained on the sequences, where it has content, and place the new items of
    which that says something."""
    if model.items.content is None:
        return Newcomers(None, np.zeros((0, 0), np.float32), (), np.zeros((0, model.dim), np.float32))
    weights, known = fit_tower(model, sequences, settings)
    tower = ContentTower(weights)
    found: dict[str, NDArray[np.float32]] = {}
    for row, item_id in enumerate(new.item_ids):
        text = None if new.text is None else new.text[row]
        image = None if new.image is None else new.image[row]
        if (vector := tower.vector(infos.get(item_id, ItemInfo()), text, image)) is not None:
            found[item_id] = vector
    vectors = np.array(list(found.values()), np.float32).reshape(len(found), model.dim)
    return Newcomers(weights, known, tuple(found), vectors)
