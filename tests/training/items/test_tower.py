"""The tower gives a new item the place of those that it is like, and as high a score."""

import numpy as np
import pytest
import torch

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import ContentTower
from longtide_server.training.dataset import Sequences, nothing_held_out
from longtide_server.training.items.tower import fit_tower
from longtide_server.training.learning.content import content_of
from longtide_server.training.learning.model import ModelConfig
from longtide_server.training.learning.train import TrainConfig, train_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS, EACH, USERS, EVENTS = 4, 12, 200, 12
ITEMS = KINDS * EACH
INFOS = {f"i{n}": ItemInfo(tags=(f"kind {n % KINDS}", f"shelf {n % 5}")) for n in range(1, ITEMS + 1)}


@pytest.fixture(scope="module")
def world():
    """Everybody likes one kind of item; of which kind an item is, its tags say. Item n has number n."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, KINDS, USERS)
    items = KINDS * rng.integers(1, EACH, (USERS, EVENTS)) + kinds[:, None]
    sequences = Sequences(
        owners=tuple(f"user:u{n}" for n in range(USERS)),
        item_ids=tuple(INFOS),
        offsets=np.arange(0, USERS * EVENTS + 1, EVENTS),
        items=items.reshape(-1).astype(np.int64),
        types=np.ones(USERS * EVENTS, np.int64),
        times=np.arange(USERS * EVENTS, dtype=np.float64),
        gaps=np.zeros(USERS * EVENTS, np.float32),
        values=np.full(USERS * EVENTS, np.nan, np.float32),
    )
    settings = TrainConfig(epochs=6, learning_rate=0.01, batch_events=400, seed=1)
    config = ModelConfig(ITEMS, dim=16, hidden=16, blocks=1)
    content = content_of(sequences.item_ids, INFOS)
    model = train_encoder(config, settings, nothing_held_out(sequences), lambda _: None, content=content)
    return sequences, settings, model


def test_a_new_item_is_near_the_items_of_its_kind(world):
    sequences, settings, model = world
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tower = ContentTower(fit_tower(model, sequences, settings)[0])
    embeddings = model.item_embeddings().detach().numpy()
    for kind in range(KINDS):
        vector = tower.vector(ItemInfo("new", tags=(f"kind {kind}", "unheard of")), None, None)
        cosine = embeddings[KINDS : ITEMS - KINDS] @ vector
        of_kind = np.arange(KINDS, ITEMS - KINDS) % KINDS == kind
        assert cosine[of_kind].min() > cosine[~of_kind].max()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_same_seed_gives_the_same_tower(world):
    sequences, settings, model = world
    first, second = (fit_tower(model, sequences, settings)[0] for _ in range(2))
    np.testing.assert_array_equal(first.label, second.label)


def test_without_content_there_is_no_tower(world):
    sequences, settings, _ = world
    model = train_encoder(ModelConfig(ITEMS, dim=4), TrainConfig(epochs=0), nothing_held_out(sequences), lambda _: None)
    with pytest.raises(ValueError, match="without content"):
        fit_tower(model, sequences, settings)
