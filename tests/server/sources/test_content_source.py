"""What content says of items, whoever they are compared with."""

import numpy as np
import pytest

from longtide_server.sources.content_source import ContentSource

# Item 1 is in the east, 2 in the north, of 3 nothing is known, 4 is in the east too.
VECTORS = np.array([[0, 0], [1, 0], [0, 1], [0, 0], [1, 0]], np.float32)


def source(temperature=0.5) -> ContentSource:
    return ContentSource(VECTORS, temperature)


EVERY_ITEM = np.arange(5)


def profile(*items, decay=0.5):
    return source().profile(source().vectors[np.array(items, np.int64)], decay)


def test_the_last_item_counts_most_and_unknown_ones_nothing():
    told = profile(1, 3, 2)
    assert told.weight.tolist() == pytest.approx([0.2, 0.8])  # .25 and 1
    assert told.vectors.tolist() == [[1, 0], [0, 1]]
    assert told.mean.tolist() == pytest.approx([0.2, 0.8])


def test_of_unknown_items_there_is_no_profile():
    assert profile(3) is None
    assert profile() is None


def test_every_item_brings_what_is_like_it():
    said = profile(1, 2).of_items(EVERY_ITEM)
    apart = np.exp(-1 / 0.5)  # a cosine of 0 against one of 1
    assert said[2] / said[1] == pytest.approx((2 / 3 + 1 / 3 * apart) / (1 / 3 + 2 / 3 * apart))
    assert said[1] == said[4]
    assert said[0] == said[3] == 0.0


def test_it_is_a_probability_as_far_as_a_mean_sum_can_tell():
    # Of the items known the sums are 2 + e, 1 + 2e and 2 + e, e = exp(-2).
    said = profile(1).of_items(EVERY_ITEM)
    apart = np.exp(-2)
    mean = ((2 + apart) ** 2 * (1 + 2 * apart)) ** (1 / 3)
    assert said[1] == pytest.approx(1 / mean)
    assert said.sum() == pytest.approx((2 + apart) / mean)


def test_of_an_item_that_nobody_knew_it_says_something_too():
    said = profile(1).of(np.array([[1, 0], [0, 0], [-1, 0]], np.float32))
    assert said[0] == profile(1).of_items(EVERY_ITEM)[1]
    assert said[1] == 0.0
    assert said[2] == pytest.approx(said[0] * np.exp(-4))


def test_no_probability_is_above_1():
    alone = ContentSource(np.array([[0, 0], [1, 0]], np.float32), 0.01)
    told = alone.profile(alone.vectors[[1]], 0.5)
    assert told.of_items(np.array([0, 1])).max() <= 1.0


def test_nothing_is_known_of_any_item():
    nothing = np.zeros((3, 2), np.float32)
    assert ContentSource(nothing, 0.1).profile(nothing[[1, 2]], 0.5) is None


def test_the_nearest_come_with_what_is_said_of_them():
    told = profile(2, 1)
    found = told.nearest(2)
    assert sorted(found.items.tolist()) == [1, 4]
    assert found.probability.tolist() == told.of_items(found.items).tolist()


def test_what_is_not_known_is_never_near():
    assert sorted(profile(1).nearest(10).items.tolist()) == [1, 2, 4]
