"""What somebody is interested in, by what the items of their events are."""

import asyncio
from array import array

import pytest

from longtide_server import recommender as recommender_module
from longtide_server.errors import Unavailable
from longtide_server.events import EventType
from longtide_server.interest_profile import EVENTS_READ, Interest, liked_lately, profile_of
from longtide_server.items.item import Item
from longtide_server.users.user_state import UserState

SOON_S = 5.0
WORDS = {
    1: (("category", ("Books",)), ("category", ("Books", "Crime")), ("language", "en")),
    2: (("tag", "vegan"), ("brand", "Mill")),
    3: (),
}


def profile(items, types=None, limit=10):
    user = UserState("user:ann", items=array("i", items), types=array("B", types or [EventType.VIEW] * len(items)))
    return profile_of(liked_lately(user), WORDS, limit, "")


def shares(interests):
    return {one.word: pytest.approx(one.share) for one in interests}


def test_an_item_stands_for_all_that_it_is_and_nothing_else():
    found = profile([1])
    assert found.long_term == found.short_term
    assert found.long_term == (Interest(("category", ("Books",)), 1.0), Interest(("category", ("Books", "Crime")), 1.0))


def test_lately_an_event_counts_half_as_much_as_one_that_is_5_events_later():
    found = profile([1] + [2] * 5)
    later = sum(0.5 ** (age / 5) for age in range(5))
    assert shares(found.short_term)["tag", "vegan"] == later / (later + 0.5)
    assert found.short_term[0].word in {("tag", "vegan"), ("brand", "Mill")}


def test_over_the_whole_history_hardly_less():
    found = profile([1] * 6 + [2] * 5)
    assert found.long_term[0].word == ("category", ("Books",))
    assert shares(found.long_term)["tag", "vegan"] == pytest.approx(5 / 11, abs=0.01)
    assert found.short_term[0].word[0] in {"tag", "brand"}


def test_dislikes_and_items_of_which_nothing_is_known_count_nothing():
    found = profile([1, 3, 2], [EventType.VIEW, EventType.VIEW, EventType.DISLIKE])
    assert {one.word[0] for one in found.long_term} == {"category"}
    assert found.long_term[0].share == 1.0
    assert profile([3]).long_term == profile([]).short_term == ()


def test_only_so_many_and_only_the_last_events():
    assert len(profile([1, 2], limit=1).long_term) == len(profile([1, 2], limit=1).short_term) == 1
    found = profile([1] + [2] * EVENTS_READ)
    assert {one.word[0] for one in found.long_term} == {"tag", "brand"}


async def test_the_catalogue_of_now_says_what_items_are(world):
    await world.did("ann", "ab")
    world.live.apply([Item("a", tags=("vegan",)), Item("b", brand="Mill")], [])
    found = await world.recommender.interests("user:ann", 10, SOON_S)
    assert [one.word for one in found.short_term] == [("brand", "Mill"), ("tag", "vegan")]
    world.live.apply([], ["b"])
    found = await world.recommender.interests("user:ann", 10, SOON_S)
    assert found.long_term == (Interest(("tag", "vegan"), 1.0),)


async def test_while_the_log_is_away_the_answer_is_by_what_is_remembered_and_says_so(world):
    await world.did("ann", "a")
    world.live.apply([Item("a", tags=("vegan",))], [])
    await world.recommender.interests("user:ann", 10, SOON_S)
    world.store.failure, world.store.shared = Unavailable("locked"), True
    found = await world.recommender.interests("user:ann", 10, SOON_S)
    assert [one.word for one in found.long_term] == [("tag", "vegan")]
    assert found.degraded_reason == "the event log could not be asked: locked"


async def test_while_many_items_are_looked_up_others_have_their_turn(world, monkeypatch):
    await world.did("ann", "abcde")
    monkeypatch.setattr(recommender_module, "ITEMS_AT_ONCE", 1)
    asking = asyncio.create_task(world.recommender.interests("user:ann", 10, SOON_S))
    turns = 0
    while not asking.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 5
