"""What is known of items beside the log: given vectors, texts that a model reads, and items without events."""

import numpy as np
import pytest

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.errors import LogError
from longtide_server.items.item import Item
from longtide_server.training.items import known_items as module
from longtide_server.training.items.known_items import (
    NOTHING_GIVEN,
    NOTHING_KNOWN,
    described,
    known_items,
    read_vectors,
)
from longtide_server.training.items.texts import TextNotice, TextVectors

INFOS = {"a": ItemInfo(tags=("red",)), "new": ItemInfo(tags=("red",)), "b": ItemInfo(tags=("red",))}


def known(item_ids, infos=INFOS, given=NOTHING_GIVEN, told=None):
    return known_items(item_ids, infos, given, "none", [].append if told is None else told.append)


@pytest.fixture
def vectors(tmp_path):
    """Writes arrays and reads them back."""

    def written(**arrays):
        np.savez(tmp_path / "vectors.npz", **arrays)
        return read_vectors(tmp_path / "vectors.npz")

    return written


def test_items_of_the_file_that_have_no_event_are_new():
    found = known(["b", "a"])
    assert found.content.names == ("tag:red",)
    assert found.new.item_ids == ("new",)
    assert found.new.text is found.new.image is None


def test_where_nothing_is_known_of_the_log_there_is_nothing_to_learn_and_nothing_new():
    assert known(["x", "y"]) is NOTHING_KNOWN
    assert known(["x", "y"], {}) is NOTHING_KNOWN


def test_items_that_few_of_the_log_are_among_look_like_a_slip_of_ids():
    told = []
    known(["0a", "0b", "c"], told=told)
    assert told == [
        TextNotice(
            "Of 3 items with events, 0 are described. Are the ids the same? The log has '0a', the items' side 'a'"
        )
    ]
    assert known(["a", "b", "c"], told=told) is not NOTHING_KNOWN
    assert len(told) == 1


def test_given_vectors_are_rows_by_item_of_length_1(vectors):
    given = vectors(item_id=["new", "b", "of nothing"], image=[[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]])
    found = known(["b", "a"], given=given)
    assert found.content.image == pytest.approx(np.array([[0, 0], [0, 1], [0, 0]]))
    assert found.new.image == pytest.approx(np.array([[0.6, 0.8]]))
    assert found.content.text.shape == (3, 0) and found.new.text is None


def test_a_file_of_images_leaves_the_text_vectors_that_the_items_brought(vectors):
    items = [Item("a", text_vector=np.float32([0, 2])), Item("b", text_vector=np.float32([3, 0]))]
    ours = described([*items, Item("c", image_vector=np.float32([1, 0]))]).vectors
    images = ours.with_kinds_of(vectors(item_id=["b", "d"], image=np.eye(2)))
    assert images.text_of("abcd").tolist() == [[0, 0], [0, 1], [1, 0], [0, 0], [0, 0]]
    assert images.image_of("abcd").tolist() == [[0, 0], [0, 0], [1, 0], [0, 0], [0, 1]]  # c's was of another kind
    texts = ours.with_kinds_of(vectors(item_id=["b"], text=[[1.0, 0.0, 0.0]]))
    assert texts.text_of("ab").tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert texts.image_of("c").tolist() == [[0, 0], [1, 0]]


def test_given_texts_need_no_model(vectors, monkeypatch):
    monkeypatch.setattr(module, "item_vectors", pytest.fail)
    given = vectors(item_id=np.array([1, 2]), text=np.eye(2, dtype=np.float16))
    found = known_items(["1", "2"], {"3": ItemInfo("A title")}, given, None, lambda _: None)
    assert found.content.text.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert found.content.text_model == ""
    assert found.new.text.tolist() == [[0, 0]]


def test_vectors_of_other_ids_look_like_a_slip_and_leave_the_texts_to_the_model(vectors, monkeypatch):
    read = TextVectors(np.eye(3, 2, -1, dtype=np.float32), "a model")
    monkeypatch.setattr(module, "item_vectors", lambda *_: read)
    told = []
    given = vectors(item_id=["1", "SKU-1", "SKU-2"], text=np.eye(3, 2, -1), image=np.eye(3, 2, -1))  # none of "1"
    found = known_items(["1", "2"], {"1": ItemInfo("One"), "2": ItemInfo("Two")}, given, None, told.append)
    assert (found.content.text.tolist(), found.content.text_model) == ([[0, 0], [1, 0], [0, 1]], "a model")
    assert told == [
        TextNotice(
            f"Of 2 items with events, 0 have {kind} vectors. Are the ids the same? The log has '1', the vectors 'SKU-1'"
        )
        for kind in ("text", "image")
    ]


def test_vectors_of_a_few_items_are_no_slip(vectors):
    told = []
    known(["a", "b", "c", "d", "e"], {}, vectors(item_id=["b", "new"], image=np.eye(2)), told)
    assert told == []


def test_more_new_items_than_a_snapshot_holds_are_left_out_and_said(monkeypatch):
    monkeypatch.setattr(module, "MOST_NEW_ITEMS", 2)
    infos = {**INFOS, **{f"new {number}": ItemInfo() for number in range(5)}}
    told = []
    assert known(["a", "b"], infos, told=told).new.item_ids == ("new", "new 0")
    assert told == [TextNotice("Of 6 items without events, the first 2 of the file count")]


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"item_id": ["a"]}, "holds item_id; item_id, and text or image, are needed"),
        ({"text": [[1.0]]}, "holds text; item_id, and text or image, are needed"),
        ({"item_id": ["a", "a"], "text": [[1.0], [2.0]]}, "item_id holds an item twice"),
        ({"item_id": [b"a"], "text": [[1.0]]}, "item_id is |S1 of shape (1,); ids are text"),
        ({"item_id": [1.5], "text": [[1.0]]}, "item_id is float64 of shape (1,); ids are text"),
        ({"item_id": "a", "text": [[1.0]]}, "item_id is <U1 of shape (); ids are text"),
        ({"item_id": ["a"], "text": [[1.0], [2.0]]}, "text is float64 of shape (2, 1); real numbers in 1 rows"),
        ({"item_id": ["a"], "text": [1.0]}, "text is float64 of shape (1,); real numbers in 1 rows"),
        ({"item_id": ["a"], "image": [["x"]]}, "real numbers in 1 rows are needed"),
        ({"item_id": ["a"], "image": [[np.nan]]}, "image holds numbers that are not finite"),
        ({"item_id": np.array([object()]), "image": [[1.0]]}, "is not an .npz file"),
    ],
)
def test_a_wrong_file_is_an_error_in_words(vectors, arrays, what):
    with pytest.raises(LogError) as caught:
        vectors(**arrays)
    assert what in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 but no more", b"\x93NUMPY"])
def test_a_file_that_is_none_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "vectors.npz").write_bytes(content)
    with pytest.raises(LogError, match=r"is not an \.npz file"):
        read_vectors(tmp_path / "vectors.npz")


def test_a_single_array_is_said(tmp_path):
    with (tmp_path / "vectors.npz").open("wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(LogError, match=r"is not an \.npz file"):
        read_vectors(tmp_path / "vectors.npz")
