"""New items and where they stand, on a plane."""

import math

import numpy as np
import pytest

from longtide_server.new_items import newcomers
from longtide_server.new_items.newcomers import PRIOR_EVENTS, Claim, Newcomers, Pulled

EAST, NORTH = np.array([1, 0], np.float32), np.array([0, 1], np.float32)


@pytest.fixture
def new():
    return Newcomers(first=6, dim=2)


def test_an_item_begins_where_its_content_places_it(new):
    assert new.put("x", EAST)
    assert new.put("y", NORTH)
    assert new.vectors.tolist() == [[1, 0], [0, 1]]
    assert [new.item_id(number) for number in (6, 7)] == ["x", "y"]
    assert ("x" in new, "z" in new, len(new)) == (True, False, 2)


def test_people_pull_it_towards_what_they_wanted(new):
    new.put("x", EAST)
    for _ in range(int(PRIOR_EVENTS)):
        new.please("x", NORTH)
    assert new.vectors[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    for _ in range(1_000):
        new.please("x", NORTH)
    assert new.vectors[0].tolist() == pytest.approx([0, 1], abs=0.01)
    assert new.events[0] == PRIOR_EVENTS + 1_000


def test_another_run_goes_on_where_people_pulled_it(new):
    for item_id in "xyz":
        new.put(item_id, EAST)
    for _ in range(int(PRIOR_EVENTS)):
        new.please("x", NORTH)
    for _ in range(3):
        new.please("y", NORTH)
    new.please("z", NORTH)  # one person's wish is nobody's business
    after = Newcomers(first=9, dim=2, pulled=new.pulled()())
    assert after.pulled()() == new.pulled()()  # also while they have not been put yet
    after.put("x", EAST)
    assert after.vectors[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert after.events[0] == PRIOR_EVENTS
    assert set(after.pulled()()) == {"x", "y"}


def test_what_was_done_to_an_item_that_has_gone_does_not_come_back(new):
    new.put("x", EAST)
    for _ in range(3):
        new.please("x", NORTH)
    after = Newcomers(first=6, dim=2, pulled=new.pulled()())
    after.put("x", EAST)
    after.remove("x")
    after.put("x", EAST)
    assert after.vectors[0].tolist() == [1, 0]
    gone = Newcomers(first=6, dim=2, pulled=new.pulled()())
    gone.remove("x")
    gone.put("x", EAST)
    assert gone.vectors[0].tolist() == [1, 0]


def test_what_was_done_in_another_space_is_left_out(new):
    new.put("x", EAST)
    for _ in range(3):
        new.please("x", NORTH)
    after = Newcomers(first=6, dim=3, pulled=new.pulled()())
    after.put("x", np.array([1, 0, 0], np.float32))
    assert after.vectors[0].tolist() == [1, 0, 0]


def test_no_more_is_handed_on_than_there_is_room_for(new, monkeypatch):
    monkeypatch.setattr(newcomers, "MAX_NEWCOMERS", 3)
    before = {f"gone-{n}": Pulled(3, np.zeros(2, np.float32).tobytes()) for n in range(3)}
    after = Newcomers(first=6, dim=2, pulled=before)
    after.put("x", EAST)
    for _ in range(3):
        after.please("x", NORTH)
    found = after.pulled()()
    assert len(found) == 3
    assert "x" in found


def test_what_people_did_stays_when_it_is_described_anew(new):
    new.put("x", EAST)
    for _ in range(int(PRIOR_EVENTS)):
        new.please("x", NORTH)
    new.put("x", -EAST)
    assert new.vectors[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_an_item_that_has_gone_has_no_vector_and_leaves_nothing_but_its_place(new):
    new.put("x", EAST)
    new.put("y", NORTH)
    new.please("x", NORTH)
    new.remove("x")
    assert new.vectors.tolist() == [[0, 0], [0, 1]]
    assert new.places().tolist() == [1]
    new.please("x", NORTH)
    new.remove("x")
    assert new.vectors[0].tolist() == [0, 0]
    new.put("z", EAST)
    assert (new.item_id(6), new.vectors[0].tolist(), new.events[0]) == ("z", [1, 0], 0)


def test_there_is_room_for_many_but_not_for_any_number(new, monkeypatch):
    monkeypatch.setattr(newcomers, "MAX_NEWCOMERS", 200)
    for number in range(200):
        assert new.put(f"i{number}", EAST if number % 2 else NORTH)
    assert not new.has_room_for("one too many")
    assert not new.put("one too many", EAST)
    assert new.put("i7", NORTH)
    assert new.vectors.shape == (200, 2)
    assert new.vectors[198].tolist() == [0, 1]


def test_its_revision_says_when_an_answer_may_be_another(new):
    new.put("x", EAST)
    first = new.revision
    new.please("x", NORTH)
    new.put("x", EAST)  # which says nothing new
    assert new.revision == first
    new.remove("x")
    assert new.revision > first


def test_who_may_not_be_recommended_any_more_is_the_first_to_go_and_then_who_was_written_first(new):
    for item_id, written_s in (("x", 3.0), ("y", 1.0), ("z", 2.0)):
        new.put(item_id, EAST, Claim(written_s))
    assert new.weakest(now_s=10.0) == ("y", Claim(1.0))
    new.put("y", EAST, Claim(4.0))  # where it was, but written again
    assert new.weakest(now_s=10.0) == ("z", Claim(2.0))
    new.renew("x", Claim(3.0, until_s=20.0))
    assert (new.weakest(now_s=19.0)[0], new.in_need(now_s=19.0)) == ("z", 3)
    assert (new.weakest(now_s=20.0)[0], new.in_need(now_s=20.0)) == ("x", 2)
    new.remove("x")
    assert (new.weakest(now_s=20.0)[0], new.in_need(now_s=20.0)) == ("z", 2)


def test_a_claim_is_the_stronger_the_later_it_was_written_but_for_those_that_may_not_be_recommended():
    assert Claim(1.0).at(0.0) < Claim(2.0).at(0.0)
    assert Claim(2.0, until_s=5.0).at(5.0) < Claim(1.0).at(5.0)
    assert Claim(1.0, -math.inf).at(0.0) < Claim(2.0, -math.inf).at(0.0)


def test_what_people_did_to_an_item_that_gave_up_its_place_counts_when_it_is_back(new, monkeypatch):
    monkeypatch.setattr(newcomers, "MAX_NEWCOMERS", 1)
    new.put("x", EAST)
    for _ in range(int(PRIOR_EVENTS)):
        new.please("x", NORTH)
    new.give_up("x")
    assert "x" not in new
    new.put("y", EAST)
    new.please("y", NORTH)  # one person's wish is nobody's business
    new.give_up("y")
    assert list(new.pulled()()) == ["x"]
    new.put("x", EAST)
    assert new.vectors[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert new.events[0] == PRIOR_EVENTS
