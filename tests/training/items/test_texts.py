"""From what is written about items to vectors: order, duplicates, empty texts, the cache, and what a person is told."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.catalog.content import item_text
from longtide_server.errors import InvalidInput
from longtide_server.items.text_cache import TextCache
from longtide_server.training.display import TrainingDisplay
from longtide_server.training.items.texts import (
    BATCH_TEXTS,
    TextNotice,
    TextProgress,
    embed_texts,
    item_vectors,
)


class Letters:
    """A TextModel that counts the a, b and c of a text, and remembers what it was asked."""

    def __init__(self, identity: str = "letters") -> None:
        self.identity = identity
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(texts))
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32)


@pytest.fixture
def reports():
    return []


@pytest.fixture
def cache(tmp_path, reports):
    return TextCache(tmp_path, reports.append)


def embed(texts: Sequence[str], model: Letters, cache: TextCache) -> list[list[float]]:
    return embed_texts(texts, model, cache, lambda _: None).tolist()


# What is read


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (ItemInfo(), ""),
        (ItemInfo("Up"), "Up"),
        (ItemInfo("Up", ("Animation", "Drama")), "Up. Animation, Drama"),
        (ItemInfo("", ("Drama",)), "Drama"),
        (ItemInfo("Mr. No.", ("Drama",), "He says no."), "Mr. No. Drama. He says no"),
        (ItemInfo("...", (), "It waits."), "It waits"),
    ],
)
def test_an_item_reads_as_title_categories_description(info, text):
    assert item_text(info) == text


# How it is embedded


def test_rows_are_unit_vectors_in_the_order_of_the_texts(cache):
    assert embed(["a", "bbb", "c"], Letters(), cache) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert embed_texts(["aaabbbb"], Letters(), cache, lambda _: None).tolist() == [pytest.approx([0.6, 0.8, 0])]
    assert embed_texts(["a"], Letters(), cache, lambda _: None).dtype == np.float32


def test_an_empty_text_is_zeros_and_is_not_encoded(cache):
    model = Letters()
    assert embed(["", "a", ""], model, cache) == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert model.batches == [["a"]]


def test_a_text_is_encoded_once_however_often_it_occurs(cache):
    model = Letters()
    assert embed(["a", "b", "a", "a"], model, cache) == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert sorted(model.batches[0]) == ["a", "b"]


def test_the_longest_go_first_in_batches(cache):
    model = Letters()
    texts = ["a" * length for length in range(1, BATCH_TEXTS + 3)]
    assert embed(texts, model, cache) == [[1, 0, 0]] * len(texts)
    assert [len(batch) for batch in model.batches] == [BATCH_TEXTS, 2]
    assert [len(text) for batch in model.batches for text in batch] == list(range(BATCH_TEXTS + 2, 0, -1))


def test_the_share_done_is_reported_and_begins_with_what_the_cache_has(cache, reports):
    texts = ["a" * length for length in range(1, 2 * BATCH_TEXTS + 1)]
    embed(texts[-BATCH_TEXTS:], Letters(), cache)
    embed_texts(texts, Letters(), cache, reports.append)
    assert reports == [TextProgress(0.5, 2 * BATCH_TEXTS), TextProgress(1.0, 2 * BATCH_TEXTS)]


@pytest.mark.parametrize("number", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused_and_not_kept(cache, number):
    class Broken(Letters):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.full((len(texts), 3), number, np.float32)

    with pytest.raises(InvalidInput, match="the model gives 'a' a vector without direction"):
        embed(["a"], Broken(), cache)
    assert cache.read("letters", ["a"]) == {}


# What is kept


def test_what_is_in_the_cache_is_not_encoded_again(cache):
    embed(["a", "b"], Letters(), cache)
    model = Letters()
    assert embed(["b", "c", "a"], model, cache) == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert model.batches == [["c"]]


def test_another_model_reads_for_itself(cache):
    embed(["a"], Letters(), cache)
    model = Letters("other letters")
    embed(["a"], model, cache)
    assert model.batches == [["a"]]


def test_a_process_killed_in_the_middle_loses_the_batch_it_was_at(cache, tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_texts import BATCH_TEXTS, Letters, TextCache, embed_texts

class Mortal(Letters):
    def encode(self, texts):
        if len(self.batches) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts)

texts = ["a" * length for length in range(1, 4 * BATCH_TEXTS + 1)]
embed_texts(texts, Mortal(), TextCache(Path({str(tmp_path)!r}), print), lambda _: None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    model = Letters()
    texts = ["a" * length for length in range(1, 4 * BATCH_TEXTS + 1)]
    assert embed(texts, model, cache) == [[1, 0, 0]] * len(texts)
    assert [len(batch) for batch in model.batches] == [BATCH_TEXTS, BATCH_TEXTS]


# For the items of a log


INFOS = {"x": ItemInfo("a"), "y": ItemInfo("", ("b",)), "not in the log": ItemInfo("c")}


@pytest.fixture
def letters(monkeypatch, tmp_path):
    """The default model is one that counts letters."""
    model = Letters()
    monkeypatch.setenv("LONGTIDE_CACHE", str(tmp_path))
    monkeypatch.setattr("longtide_server.training.items.texts.default_model", lambda: model)
    return model


def test_items_get_the_rows_of_their_numbers_and_padding_zeros(letters, reports):
    vectors = item_vectors(("y", "unknown", "x"), INFOS, None, reports.append)
    assert vectors is not None
    assert vectors.vectors.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert vectors.vectors.dtype == np.float32
    assert vectors.model == "letters"
    assert reports == [TextProgress(0.0, 2), TextProgress(1.0, 2)]


def test_without_text_there_are_no_vectors_and_nothing_to_say(letters, reports):
    assert item_vectors(("unknown",), INFOS, None, reports.append) is None
    assert item_vectors(("x",), INFOS, "none", reports.append) is None
    assert reports == letters.batches == []


def test_a_model_that_is_named_for_nothing_is_said(reports):
    assert item_vectors(("unknown",), INFOS, "some/model", reports.append) is None
    assert reports == [
        TextNotice("--text-model is not used: no item of the log has a title, categories or a description")
    ]


def test_without_the_extra_it_is_said_once_and_the_work_goes_on(monkeypatch, reports):
    monkeypatch.setattr("longtide_server.training.items.texts.default_model", lambda: None)
    assert item_vectors(("x", "y"), INFOS, None, reports.append) is None
    assert reports == [
        TextNotice(
            "The items' texts are not used: a language model to read them comes with pip install 'longtide[text]'"
        )
    ]


def test_a_damaged_cache_is_a_notice(letters, reports, tmp_path):
    item_vectors(("x", "y"), INFOS, None, lambda _: None)
    (shard,) = tmp_path.rglob("*.npz")
    shard.write_bytes(b"")
    vectors = item_vectors(("x", "y"), INFOS, None, reports.append)
    assert vectors is not None and len(letters.batches) == 2
    assert reports[0] == TextNotice(f"{shard} is damaged and is removed; its texts are embedded again")


# What a person sees


@pytest.mark.parametrize("terminal", [False, True])
def test_the_display_says_what_it_reads_once_and_notices_as_they_are(terminal):
    console = Console(file=StringIO(), force_terminal=terminal, width=200, color_system=None)
    with TrainingDisplay(console) as display:
        for report in (TextProgress(0.0, 1_200), TextProgress(0.5, 1_200), TextProgress(1.0, 1_200)):
            display(report)
        display(TextNotice("a [notice]"))
    written = console.file.getvalue()
    assert written.count("Reading 1,200 item texts") == 1
    assert "a [notice]" in written
