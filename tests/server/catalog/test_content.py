"""What an item's content says: labels by hand, and a tower whose weights are directions to be seen by eye."""

import numpy as np
import pytest

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import ContentTower, ContentWeights, info_of, labels_of
from longtide_server.items.item import Item
from longtide_server.items.text_arrays import bytes_of, bytes_of_names

NO_EDGES = np.zeros(0)
EAST, NORTH, UP = np.eye(3, dtype=np.float32)


def tower(text=(), image=(), labels=None, price_edges=(), text_model="model"):
    labels = labels or {}
    return ContentTower(
        ContentWeights(
            text=np.array(text, np.float32).reshape(-1, 3),
            image=np.array(image, np.float32).reshape(-1, 3),
            label=np.array(list(labels.values()), np.float32).reshape(-1, 3),
            label_names=bytes_of_names(labels),
            price_edges=np.array(price_edges, np.float64),
            text_model=bytes_of(text_model),
        )
    )


# Labels


def test_a_category_brings_all_above_it_and_none_comes_twice():
    info = ItemInfo(categories=("Beauty > Skin > Masks", "Beauty > Hair", "New"))
    assert labels_of(info, NO_EDGES) == (
        "category:Beauty",
        "category:Beauty > Skin",
        "category:Beauty > Skin > Masks",
        "category:Beauty > Hair",
        "category:New",
    )


def test_tags_brand_domain_attributes_and_facts_are_labels_of_their_own_kind():
    words = {"attributes": (("colour", "red"),), "facts": (("maker", "red"),)}
    info = ItemInfo(tags=("red",), brand="red", domain="red", **words)
    assert labels_of(info, NO_EDGES) == ("tag:red", "brand:red", "domain:red", "colour=red", "maker=red")


@pytest.mark.parametrize(("price", "band"), [(0.0, 0), (9.99, 0), (10.0, 1), (19.0, 1), (20.0, 2), (1e9, 2)])
def test_a_price_is_in_a_band(price, band):
    assert labels_of(ItemInfo(price=price), np.array([10.0, 20.0])) == (f"price:{band}",)


def test_what_is_not_known_is_no_label():
    assert labels_of(ItemInfo("A title", description="words"), np.array([10.0])) == ()
    assert labels_of(ItemInfo(price=3.0), NO_EDGES) == ()


def test_a_live_item_has_the_labels_of_its_row_in_an_items_file():
    item = Item(
        "i1",
        title="Clay mask",
        categories=(("Beauty", "Masks"), ("New",)),
        tags=("vegan",),
        brand="Lumo",
        price=12.5,
        attributes={"colour": "green", "grams": 50.0, "refill": True},
        domain="shop",
    )
    assert info_of(item) == ItemInfo(
        "Clay mask", ("Beauty > Masks", "New"), "", ("vegan",), "Lumo", 12.5, "shop", (("colour", "green"),)
    )


# Vectors


def test_a_vector_joins_text_image_and_labels_and_has_length_1():
    made = tower(text=[EAST, -EAST], image=[4 * NORTH], labels={"tag:a": 6 * UP, "tag:b": 6 * UP})
    item = Item("i", tags=("a", "b", "never seen"), image_vector=np.array([0.1], np.float32))
    # EAST by the first number of the text, 4 NORTH by the image's direction, 12 UP / sqrt(2 labels)
    joined = np.array([1.0, 4.0, 12 / np.sqrt(2)])
    found = made.item_vector(item, np.array([7.0, 0.0], np.float32))
    assert found.tolist() == pytest.approx((joined / np.linalg.norm(joined)).tolist())
    assert found.dtype == np.float32


def test_given_text_vectors_count_only_where_the_tower_learned_from_given_ones():
    item = Item("i", text_vector=np.array([0.0, 2.0], np.float32))
    read = np.array([1.0, 0.0], np.float32)
    assert tower(text=[EAST, NORTH]).item_vector(item, read).tolist() == EAST.tolist()
    assert tower(text=[EAST, NORTH]).item_vector(item, None) is None
    assert tower(text=[EAST, NORTH], text_model="").item_vector(item, read).tolist() == NORTH.tolist()


@pytest.mark.parametrize("vector", [None, [1.0], [1.0, 2.0, 3.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_vector_that_the_tower_cannot_read_is_left_out(vector):
    text = None if vector is None else np.array(vector, np.float32)
    assert tower(text=[EAST, NORTH]).item_vector(Item("i"), text) is None
    with_label = tower(text=[EAST, NORTH], labels={"tag:a": UP})
    assert with_label.item_vector(Item("i", tags=("a",)), text).tolist() == UP.tolist()


def test_an_item_of_which_nothing_is_known_has_no_vector():
    assert tower(labels={"tag:a": UP}).item_vector(Item("i", tags=("b",)), None) is None
    assert tower().item_vector(Item("i", title="Up", tags=("b",)), None) is None
    assert tower(labels={"tag:a": UP, "tag:b": -UP}).item_vector(Item("i", tags=("a", "b")), None) is None


def test_a_tower_says_what_it_reads():
    made = tower(text=[EAST, NORTH], image=[UP], text_model="mödel")
    assert (made.text_model, made.text_size, made.image_size) == ("mödel", 2, 1)
