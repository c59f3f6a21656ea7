"""What training reads of the items of a store."""

import numpy as np

from longtide_server.catalog import ItemInfo
from longtide_server.item import Item
from longtide_server.stores import open_stores
from longtide_server.training import stored
from longtide_server.training.stored import read_item_infos


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
        text_vector=np.ones(3, np.float32),
    )
    await stores.items.upsert([full, *(Item(item_id, title=item_id.upper()) for item_id in "bcde")], None, 0.0)
    await stores.items.delete(["d"])
    counts = []
    infos = await read_item_infos(stores.items, counts.append)
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


async def test_of_no_items_nothing_is_known(tmp_path):
    stores = await open_stores(f"sqlite:///{tmp_path / 'events.db'}")
    assert await read_item_infos(stores.items, lambda _: None) == {}
    await stores.events.close()
