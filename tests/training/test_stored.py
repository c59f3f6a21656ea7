"""What training reads of the items of a store."""

import numpy as np
import pytest

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.items.item import Item
from longtide_server.stores import open_stores
from longtide_server.training import stored
from longtide_server.training.stored import read_catalogue


async def test_what_people_and_language_models_read_is_read_page_by_page(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PAGE_ITEMS", 2)
    stores = await open_stores(f"sqlite:///{tmp_path / 'events.db'}")
    full = Item(
        "a",
        title="Clay mask",
        description="For the face.",
        categories=(("Beauty", "Masks"), ("Gifts",)),
        tags=("vegan", "new"),
        brand="Lumo",
        price=12.5,
        available=False,
        image_vector=np.array([3, 4], np.float32),
    )
    await stores.items.upsert([full, *(Item(item_id, title=item_id.upper()) for item_id in "bcde")], None, 0.0)
    await stores.items.delete(["d"])
    counts = []
    found = await read_catalogue(stores.items, counts.append)
    infos = found.infos
    await stores.events.close()
    assert infos["a"] == ItemInfo(
        "Clay mask", ("Beauty > Masks", "Gifts"), "For the face.", ("vegan", "new"), "Lumo", 12.5
    )
    assert [(item_id, info.title) for item_id, info in infos.items()] == [
        ("a", "Clay mask"),
        ("b", "B"),
        ("c", "C"),
        ("e", "E"),
    ]
    assert counts == [2, 4]
    assert found.vectors.image_of(["b", "a"]).tolist() == [[0, 0], [0, 0], pytest.approx([0.6, 0.8])]


async def test_of_no_items_nothing_is_known(tmp_path):
    stores = await open_stores(f"sqlite:///{tmp_path / 'events.db'}")
    assert (await read_catalogue(stores.items, lambda _: None)).infos == {}
    await stores.events.close()
