"""Counts that fade: with a half-life of ten seconds, by hand."""

import pytest

import longtide_server.sources.trending
from longtide_server.catalog.catalog import Catalog, ItemInfo
from longtide_server.event_store import Appended, Version, Written
from longtide_server.sources.trending import Trending

CATALOG = Catalog(("a", "b", "c"), (ItemInfo(),) * 3)


class Clock:
    now_s = 1_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def trending(clock):
    return Trending(CATALOG, clock, half_life_s=10.0)


@pytest.fixture
def happened(event, trending):
    def write(item_id, time_s, times=1):
        events = [event(f"e{n}", item_id, time_s) for n in range(times)]
        trending.apply(Written(times, 0, {"user:ann": Appended(Version(), Version(), events)}))

    return write


def shares(trending, count=10):
    votes = trending.votes(count)
    return dict(zip(votes.items.tolist(), votes.probability.tolist(), strict=True))


def test_before_anything_happens_nothing_trends(trending):
    assert shares(trending) == {}


def test_an_event_counts_half_after_a_half_life(trending, happened):
    happened("a", 990.0)
    happened("b", 1_000.0)
    assert shares(trending) == pytest.approx({1: 1 / 3, 2: 2 / 3})


def test_of_old_events_it_takes_many(trending, happened):
    happened("a", 980.0, times=12)
    happened("b", 1_000.0, times=1)
    assert shares(trending) == pytest.approx({1: 3 / 4, 2: 1 / 4})


def test_a_clock_that_is_ahead_gains_nothing(trending, happened):
    happened("a", 5_000.0)
    happened("b", 1_000.0)
    assert shares(trending) == pytest.approx({1: 1 / 2, 2: 1 / 2})


def test_what_is_not_in_the_catalogue_does_not_trend(trending, happened):
    happened("?", 1_000.0, times=5)
    assert shares(trending) == {}


def test_only_the_best(trending, happened):
    happened("a", 1_000.0, times=3)
    happened("b", 1_000.0, times=2)
    happened("c", 1_000.0, times=1)
    assert shares(trending, count=2) == pytest.approx({1: 3 / 6, 2: 2 / 6})


def test_after_a_long_time_the_old_is_nothing_and_the_new_is_counted(trending, happened, clock):
    happened("a", 1_000.0, times=1_000)
    for _ in range(3):
        clock.now_s += 10.0 * 400
        happened("b", clock.now_s)
    assert shares(trending)[2] == pytest.approx(1.0)
    clock.now_s += 1e9
    happened("c", clock.now_s)
    assert shares(trending)[3] == pytest.approx(1.0)


# New items


def test_what_the_catalogue_does_not_have_is_counted_beyond_it(trending, happened):
    happened("a", 1_000.0)
    happened("new", 990.0, times=2)
    happened("newer", 1_000.0, times=2)
    assert shares(trending) == pytest.approx({1: 1 / 4})
    assert trending.beyond(10) == pytest.approx({"newer": 2 / 4, "new": 1 / 4})
    assert list(trending.beyond(1)) == ["newer"]


def test_counts_of_new_items_outlive_a_long_silence_as_others_do(trending, happened, clock):
    happened("a", 1_000.0)
    happened("new", 1_000.0)
    clock.now_s += 600 * 10.0
    happened("a", clock.now_s)
    assert trending.beyond(10) == pytest.approx({"new": 0.0})
    assert shares(trending)[1] == pytest.approx(1.0)


def test_of_too_many_new_items_those_stay_to_which_most_turn(trending, happened, monkeypatch):
    monkeypatch.setattr(longtide_server.sources.trending, "MAX_BEYOND", 4)
    happened("much", 1_000.0, times=3)
    for number in range(20):
        happened(f"once {number}", 1_000.0)
    found = trending.beyond(100)
    assert len(found) <= 4
    assert next(iter(found)) == "much"


def test_another_one_goes_on_with_what_was_counted(trending, happened, clock):
    happened("a", 990.0, times=4)
    happened("b", 1_000.0)
    happened("new", 1_000.0, times=2)
    clock.now_s = 1_010.0
    counts = trending.counts()
    assert (counts.at_s, counts.of) == (1_010.0, pytest.approx({"a": 1.0, "b": 0.5, "new": 1.0}))
    clock.now_s = 1_020.0
    after = Trending(Catalog(("b", "new"), (ItemInfo(),) * 2), clock, half_life_s=10.0, before=counts)
    assert after.counts().of == pytest.approx({"a": 0.5, "b": 0.25, "new": 0.5})
    assert shares(after) == pytest.approx({1: 1 / 5, 2: 2 / 5})
    assert after.beyond(10) == pytest.approx({"a": 2 / 5})


def test_what_counts_next_to_nothing_is_not_handed_on(trending, happened, clock):
    happened("a", 1_000.0)
    clock.now_s = 1_300.0
    assert trending.counts().of == {}


def test_a_clock_that_was_set_back_makes_nothing_count_for_more(trending, happened, clock):
    happened("a", 1_000.0)
    counts = trending.counts()
    clock.now_s = 500.0
    assert Trending(CATALOG, clock, half_life_s=10.0, before=counts).counts().of == {"a": 1.0}


def test_those_to_which_most_turn_are_handed_on(trending, happened, clock, monkeypatch):
    monkeypatch.setattr(longtide_server.sources.trending, "MAX_HANDED_ON", 1)
    happened("a", 1_000.0)
    happened("b", 1_000.0, times=2)
    counts = trending.counts()
    assert (counts.of, counts.rest) == ({"b": 2.0}, 1.0)
    after = Trending(CATALOG, clock, half_life_s=10.0, before=counts)
    assert shares(after) == pytest.approx({2: 2 / 3})  # of all that happened
    clock.now_s = 1_010.0
    assert after.counts().rest == pytest.approx(0.5)
