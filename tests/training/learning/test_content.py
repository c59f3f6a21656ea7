"""Content as arrays, and the part of an item's vector that it makes: the same in torch and in numpy."""

import numpy as np
import pytest
import torch

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import ContentTower
from longtide_server.training.learning.content import ContentPart, content_of, price_edges

pytestmark = pytest.mark.usefixtures("one_thread")

INFOS = {
    "a": ItemInfo(tags=("red", "big"), brand="Lumo"),
    "b": ItemInfo(tags=("red",), brand="Lumo"),
    "c": ItemInfo(tags=("red", "odd"), brand="other"),
    "d": ItemInfo("A title alone"),
    "of no log": ItemInfo(tags=("big", "odd")),
}


def test_labels_that_two_items_of_the_log_have_are_learned_the_most_frequent_first():
    content = content_of("abcde", INFOS)
    assert content.names == ("tag:red", "brand:Lumo")
    assert content.labels.tolist() == [0, 1, 0, 1, 0]
    assert content.offsets.tolist() == [0, 0, 2, 4, 5, 5, 5]  # padding, a, b, c, d, e
    assert content.known.tolist() == [False, True, True, True, False, False]


def test_what_separates_labels_in_a_file_is_in_none():
    content = content_of("ab", {item: ItemInfo(tags=("torn\0label", "whole")) for item in "ab"})
    assert content.names == ("tag:whole",)


def test_nothing_known_is_no_content():
    assert content_of("ab", {}) is None
    assert content_of("d", INFOS) is None
    assert content_of("d", INFOS, text=np.zeros((2, 3), np.float32)) is None


def test_kinds_of_vectors_that_no_item_has_are_not_learned():
    text = np.array([[0, 0], [0, 0], [1, 0]], np.float32)
    content = content_of("xy", {}, text=text, image=np.zeros((3, 5), np.float32), text_model="model")
    assert (content.text.shape, content.image.shape, content.text_model) == ((3, 2), (3, 0), "model")
    assert content.known.tolist() == [False, False, True]


def test_bands_hold_about_equally_many_prices():
    edges = price_edges(list(range(1, 101)))
    assert np.bincount(np.searchsorted(edges, np.arange(1, 101), side="right")).tolist() == [10] * 10
    assert price_edges([5.0] * 7).tolist() == [5.0]
    assert price_edges([]).tolist() == []


def test_a_price_is_a_label_of_its_band():
    content = content_of("abcd", {item: ItemInfo(price=1.0 if item in "ab" else 9.0) for item in "abcd"})
    assert content.price_edges.tolist() == [1.0, 9.0]
    assert [content.names[label] for label in content.labels] == ["price:1", "price:1", "price:2", "price:2"]


@torch.inference_mode()
def test_what_is_published_says_what_was_trained():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    text, image = (rng.normal(size=(6, size)).astype(np.float32) for size in (3, 2))
    for vectors in (text, image):
        vectors[[0, 4]] = 0
        vectors[1:] /= np.maximum(np.linalg.norm(vectors[1:], axis=1, keepdims=True), 1e-9)
    content = content_of("abcde", INFOS, text, image, "model")
    part = ContentPart(8, content)
    expected = torch.nn.functional.normalize(part(), dim=1).numpy()
    tower = ContentTower(part.weights())
    assert tower.text_model == "model"
    for row, item in enumerate("abc", 1):
        np.testing.assert_allclose(tower.vector(INFOS[item], text[row], image[row]), expected[row], atol=1e-6)
    assert tower.vector(INFOS["d"], text[4], image[4]) is None
    assert expected[[0, 4]].tolist() == [[0.0] * 8] * 2
