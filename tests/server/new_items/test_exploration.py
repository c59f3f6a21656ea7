"""Places for new items: as many as the share says, drawn by how they suit, the same for the same question."""

import numpy as np
import pytest

from longtide_server.new_items.exploration import explore

SHOWN = np.arange(1, 11)
POOL = np.array([101, 102])
SUITS = np.array([3.0, 1.0])


def over_people(share, count=2_000, pool=POOL, suits=SUITS):
    return [explore(f"user:{n}", 0, share, SHOWN, pool, suits) for n in range(count)]


def test_off_is_off():
    assert all(drawn == () for drawn in over_people(0.0))


def test_the_share_is_that_of_the_places_after_the_first():
    many = np.arange(101, 1_101)  # so that hardly any is drawn twice
    assert np.mean([len(drawn) for drawn in over_people(0.1, pool=many, suits=np.ones(1_000))]) == pytest.approx(
        0.9, abs=0.1
    )
    places = [one.place for drawn in over_people(0.1) for one in drawn]
    assert min(places) == 1
    assert max(places) == 9


def test_it_says_how_likely_it_was_to_show_an_item():
    drawn = over_people(0.1, count=20_000)
    for number, chance in ((101, 0.75), (102, 0.25)):
        [said] = {one.propensity for many in drawn for one in many if one.number == number}
        assert said == pytest.approx(1 - (1 - 0.1 * chance) ** 9)
        often = np.mean([any(one.number == number for one in many) for many in drawn])
        assert often == pytest.approx(said, abs=0.015)


def test_the_same_question_has_the_same_answer_until_something_happens():
    answers = {explore("user:ann", 7, 0.5, SHOWN, POOL, SUITS) for _ in range(10)}
    assert len(answers) == 1
    assert len({explore("user:ann", moment, 0.5, SHOWN, POOL, SUITS) for moment in range(50)}) > 10


def test_no_item_twice_and_none_that_is_shown_already():
    for drawn in over_people(1.0, pool=np.array([5, 101, 102]), suits=np.array([9.0, 1.0, 1.0])):
        assert {one.number for one in drawn} <= {101, 102}
        assert len({one.number for one in drawn}) == len({one.place for one in drawn}) == len(drawn)


def test_without_new_items_or_places_nothing_is_drawn():
    assert explore("user:ann", 0, 1.0, SHOWN, POOL[:0], SUITS[:0]) == ()
    assert explore("user:ann", 0, 1.0, SHOWN[:1], POOL, SUITS) == ()
    assert explore("user:ann", 0, 1.0, SHOWN[:0], POOL, SUITS) == ()
