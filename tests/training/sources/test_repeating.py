"""Repeats are counted as they were, and where little is known, as what is near."""

import numpy as np
import pytest

from longtide_server.training.dataset import Sequences
from longtide_server.training.sources import repeating
from longtide_server.training.sources.repeating import count_repeats


def sequences(*words):
    """A user a word, an item a letter."""
    text = "".join(words)
    letters = sorted(set(text))
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(len(words))),
        item_ids=tuple(letters),
        offsets=np.cumsum([0, *map(len, words)]),
        items=np.array([letters.index(letter) + 1 for letter in text], np.int64),
        types=np.ones(len(text), np.int64),
        times=np.arange(len(text), dtype=np.float64),
        gaps=np.zeros(len(text), np.float32),
        values=np.full(len(text), np.nan, np.float32),
    )


def test_a_log_without_repeats_says_nothing():
    assert count_repeats(sequences("abc", "cba")) is None


def test_shares_are_counted_by_class(monkeypatch):
    monkeypatch.setattr(repeating, "PRIOR", 1e-9)
    hazard = count_repeats(sequences("aab")).hazard
    # After a: a had just now, once; it was next. After aa: a had just now, twice; it was not.
    assert hazard[0, :2].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_what_is_not_known_is_like_what_is_near():
    hazard = count_repeats(sequences(*["aa"] * 500, *["ab"] * 500)).hazard
    assert hazard == pytest.approx(np.full(hazard.shape, 0.5))


def test_what_is_known_well_is_believed():
    hazard = count_repeats(sequences(*["aab"] * 2_000)).hazard
    assert hazard[0, 0] > 0.95
    assert hazard[0, 1] < 0.05


def test_only_so_many_moments_are_looked_at(monkeypatch):
    monkeypatch.setattr(repeating, "MOMENTS", 100)
    hazard = count_repeats(sequences(*["aab"] * 2_000)).hazard
    assert 0.5 < hazard[0, 0] < 0.95  # of some 50 moments
