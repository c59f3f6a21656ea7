import numpy as np
import pytest

from longtide_server.training.judging.slices import (
    HISTORY_LENGTHS,
    Slice,
    doubling_lengths,
    members,
    target_popularities,
)


def named(numbers, ranges) -> dict[str, list[int]]:
    """The numbers by the name of their range."""
    values = np.array(numbers)
    return {part.name: values[inside].tolist() for part, inside in members(values, ranges)}


def test_history_is_cold_short_medium_or_long():
    assert named([50, 0, 1, 49, 9, 10, 2_000], HISTORY_LENGTHS) == {
        "cold": [0],
        "short": [1, 9],
        "medium": [49, 10],
        "long": [50, 2_000],
    }


def test_a_range_without_anyone_is_left_out():
    assert named([3, 60], HISTORY_LENGTHS) == {"short": [3], "long": [60]}


def test_head_is_a_fifth_of_the_items_tail_the_lower_half_and_0_is_new():
    assert named(range(11), target_popularities(10)) == {
        "head": [1, 2],
        "mid": [3, 4, 5],
        "tail": [6, 7, 8, 9, 10],
        "new": [0],
    }


@pytest.mark.parametrize("item_count", [1, 2, 3, 4, 7, 99, 100])
def test_every_target_is_in_one_range_and_someone_is_in_the_head(item_count):
    found = named(range(item_count + 1), target_popularities(item_count))
    assert sorted(target for part in found.values() for target in part) == list(range(item_count + 1))
    assert len(found["head"]) == -(-item_count // 5)


def test_lengths_double_up_to_the_longest():
    assert [(part.low, part.high) for part in doubling_lengths(5)] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    assert [(part.low, part.high) for part in doubling_lengths(8)][-1] == (8, 15)
    assert [(part.low, part.high) for part in doubling_lengths(0)] == [(0, 0)]


@pytest.mark.parametrize(("low", "high", "words"), [(0, 0, "0"), (10, 49, "10 to 49"), (50, None, "50 or more")])
def test_a_span_is_said_in_words(low, high, words):
    assert Slice("any", low, high, 1, {}).span == words
