"""Text embeddings on disk: kept by model and text, whatever happens to the process or to a file."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from longtide_server.errors import InvalidInput
from longtide_server.items.text_cache import TextCache, cache_folder

ONE, TWO = np.eye(2, dtype=np.float32)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def cache(tmp_path, warnings):
    return TextCache(tmp_path, warnings.append)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


def test_what_was_written_is_read_again_by_another_process_too(cache, tmp_path, warnings):
    cache.write("model", ["a", "ß"], np.stack([ONE, TWO]))
    again = TextCache(tmp_path, warnings.append).read("model", ["ß", "never", "a"])
    assert {text: vector.tolist() for text, vector in again.items()} == {"a": [1, 0], "ß": [0, 1]}
    assert warnings == []


def test_an_empty_cache_knows_nothing_and_makes_no_folder(cache, tmp_path, warnings):
    assert cache.read("model", ["a"]) == {}
    assert list(tmp_path.iterdir()) == warnings == []


def test_models_share_nothing(cache):
    cache.write("model", ["a"], ONE[None])
    assert cache.read("another", ["a"]) == {}


def test_two_writers_of_the_same_texts_do_no_harm(cache, tmp_path, warnings):
    other = TextCache(tmp_path, warnings.append)
    cache.write("model", ["a", "b"], np.stack([ONE, TWO]))
    other.write("model", ["a", "b"], np.stack([ONE, TWO]))
    other.write("model", ["b", "c"], np.stack([TWO, ONE]))
    assert {text: vector.tolist() for text, vector in cache.read("model", ["a", "b", "c"]).items()} == {
        "a": [1, 0],
        "b": [0, 1],
        "c": [1, 0],
    }
    assert warnings == []


def test_a_file_is_not_read_again_for_what_it_does_not_hold(cache, tmp_path, warnings):
    cache.write("model", ["a"], ONE[None])
    assert cache.read("model", ["b"]) == {}
    (shard,) = shards(tmp_path)
    shard.write_bytes(b"damaged")
    assert cache.read("model", ["b"]) == {} and warnings == []
    assert cache.read("model", ["a", "b"]) == {}
    assert warnings == [f"{shard} is damaged and is removed; its texts are embedded again"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "replaced"])
def test_a_damaged_file_is_removed_with_a_warning_and_the_others_are_read(cache, tmp_path, warnings, damage):
    cache.write("model", ["a"], ONE[None])
    (damaged,) = shards(tmp_path)
    cache.write("model", ["b"], TWO[None])
    content = damaged.read_bytes()
    flipped = bytes([content[0], content[1] ^ 1]) + content[2:]
    damaged.write_bytes({"cut": content[:-1], "flipped": flipped, "emptied": b"", "replaced": b"hello"}[damage])
    assert list(cache.read("model", ["a", "b"])) == ["b"]
    assert warnings == [f"{damaged} is damaged and is removed; its texts are embedded again"]
    assert not damaged.exists()
    assert list(cache.read("model", ["a", "b"])) == ["b"]
    assert len(warnings) == 1


def test_what_a_killed_process_left_is_not_read_and_goes_after_a_day(cache, tmp_path, warnings):
    cache.write("model", ["a"], ONE[None])
    (shard,) = shards(tmp_path)
    fresh, old = shard.with_name("0" * 32 + ".partial"), shard.with_name("1" * 32 + ".partial")
    for path in (fresh, old):
        path.write_bytes(shard.read_bytes()[:50])
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    assert list(cache.read("model", ["a"])) == ["a"]
    assert fresh.exists() and not old.exists()
    assert warnings == []


def test_a_place_that_cannot_be_written_is_said_once(tmp_path, warnings):
    place = tmp_path / "file"
    place.write_text("not a folder")
    cache = TextCache(place, warnings.append)
    assert cache.read("model", ["a"]) == {}
    cache.write("model", ["a"], ONE[None])
    cache.write("model", ["b"], ONE[None])
    read, written = warnings
    assert read.startswith("Text embeddings of earlier runs are not used: ") and read.endswith("Not a directory")
    assert written.startswith("Text embeddings are not kept: ") and written.endswith("Not a directory")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"LONGTIDE_CACHE": "/fast/disk", "XDG_CACHE_HOME": "/xdg"}, "/fast/disk"),
        ({"LONGTIDE_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/longtide"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/longtide"),
        ({}, "/home/me/.cache/longtide"),
    ],
)
def test_the_environment_says_where(monkeypatch, environment, folder):
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder(environment) == Path(folder)


def test_without_a_home_a_place_must_be_named(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InvalidInput, match="LONGTIDE_CACHE: must name a folder"):
        cache_folder({})
