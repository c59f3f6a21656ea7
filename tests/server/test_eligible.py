"""Which items may appear: availability, filters and include lists, decided before the best are chosen."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from longtide_server import eligible as eligible_module
from longtide_server import evidence as evidence_module
from longtide_server import recommender as recommender_module
from longtide_server.answers import Query
from longtide_server.eligible import FEW_ITEMS
from longtide_server.errors import EncoderUnavailable
from longtide_server.events import EventType
from longtide_server.items.item import Item
from longtide_server.items.item_filter import HasPrice, HasTag, InCategory, NoneOf, Span
from longtide_server.serving.canary import Bars, try_out
from longtide_server.sources.candidates import Source, nearest_allowed
from longtide_server.sources.repeats import FREQUENCIES, RECENCIES, RepeatWeights

SOON_S = 5.0
RARE = HasTag(frozenset(["rare"]))
COMMON = HasTag(frozenset(["common"]))
ITEMS = 12_000


async def recommended(world, user_id="ann", limit=10, **query):
    answer = await world.recommender.recommend(Query(user_id, limit, **query), SOON_S)
    return [item.item_id for item in answer.recommendations]


async def best_of(world, allowed, limit=10, user_id="ann"):
    """The first of everything that is allowed, in the order that Rank gives it."""
    ranked, _ = await world.recommender.rank(Query(user_id), world.snapshot.catalog.item_ids, SOON_S)
    return [item.item_id for item in ranked if item.item_id in allowed][:limit]


# In the world of five letters


async def test_an_item_is_gone_from_the_very_next_request(world):
    await world.did("ann", "a")
    assert await recommended(world, limit=2) == ["b", "c"]
    world.live.apply([Item("b", available=False)], [])
    assert await recommended(world, limit=2) == ["c", "e"]
    world.live.apply([], ["c"])
    assert await recommended(world, limit=4) == ["e", "d"]
    world.live.apply([Item("b"), Item("c")], [])
    assert await recommended(world, limit=2) == ["b", "c"]


async def test_an_item_appears_and_disappears_with_its_times(world):
    await world.did("ann", "a")
    world.live.apply([Item("b", publish_time_s=2_000.0, expire_time_s=3_000.0)], [])
    for now_s, there in ((1_999.9, False), (2_000.0, True), (2_999.9, True), (3_000.0, False)):
        world.clock.now_s = now_s
        assert ("b" in await recommended(world)) is there


async def test_an_unknown_user_gets_what_is_popular_and_can_be_had(world):
    world.live.apply([Item("a", available=False), Item("c", expire_time_s=1_000.0)], [])
    assert await recommended(world, "nobody", limit=2) == ["b", "d"]


async def test_only_what_passes_appears(world):
    await world.did("ann", "a")
    world.live.apply([Item("d", tags=("rare",)), Item("e", tags=("rare",)), Item("a", tags=("rare",))], [])
    assert await recommended(world, item_filter=RARE) == ["e", "d"]  # a was had; e has cara's vote
    assert await recommended(world, item_filter=NoneOf(frozenset([RARE]))) == ["b", "c"]
    assert await recommended(world, item_filter=InCategory(("letters",))) == ["b", "c"]  # as the snapshot says
    assert await recommended(world, item_filter=HasPrice(Span())) == []


async def test_only_what_is_included_appears(world):
    await world.did("ann", "a")
    assert await recommended(world, include_item_ids=["e", "unknown", "a", "d", "e"]) == ["e", "d"]
    assert await recommended(world, include_item_ids=["unknown"]) == []
    assert await recommended(world, include_item_ids=[]) == []


@pytest.mark.parametrize("user_id", ["ann", "nobody"])
async def test_a_restricted_list_is_the_whole_one_without_what_may_not_appear(world, user_id):
    await world.did("ann", "a")
    had = {"a"} if user_id == "ann" else set()
    for count in range(1, 6):
        for some in itertools.combinations("abcde", count):
            found = await recommended(world, user_id, include_item_ids=some)
            assert found == await best_of(world, set(some) - had, user_id=user_id)


async def test_what_is_allowed_in_one_way_and_not_in_another_does_not_appear(world):
    await world.did("ann", "a")
    world.live.apply([Item(one, tags=("rare",)) for one in "bcd"] + [Item("e", tags=("rare",), available=False)], [])
    query = {"item_filter": RARE, "include_item_ids": ["b", "d", "e"]}
    assert await recommended(world, **query) == ["b", "d"]
    assert await recommended(world, **query, exclude_item_ids=["b"]) == ["d"]
    assert await recommended(world, **query, session_item_ids=["d"]) == ["b"]


async def test_the_sources_say_of_allowed_items_what_they_say_of_all(world):
    await world.did("ann", "a")
    everything = await world.recommender.recommend(Query("ann"), SOON_S)
    some = await world.recommender.recommend(Query("ann", include_item_ids=["c", "d", "e"]), SOON_S)

    def probabilities(answer):
        return {(one.item_id, source): share for one in answer.recommendations for source, share in one.sources}

    unrestricted, restricted = probabilities(everything), probabilities(some)
    same = restricted.keys() & unrestricted.keys()
    assert same >= {("c", Source.NEIGHBORS), ("e", Source.NEIGHBORS), ("d", Source.ENCODER)}
    assert {key: restricted[key] for key in same} == {key: unrestricted[key] for key in same}
    by_item = {item.item_id: item for item in some.recommendations}
    assert [user.user_id for user in by_item["c"].neighbors] == ["bob"]
    assert sum(item.score for item in some.recommendations) == pytest.approx(1.0)


async def test_a_title_is_the_one_that_was_written_last(world):
    world.live.apply([Item("a", title="Alpha")], [])
    answer = await world.recommender.recommend(Query("nobody", 2), SOON_S)
    assert [(item.item_id, item.title) for item in answer.recommendations] == [("a", "Alpha"), ("b", "Title b")]


async def test_a_given_list_keeps_what_cannot_be_had(world):
    await world.did("ann", "a")
    world.live.apply([Item("b", available=False)], ["c"])
    ranked, _ = await world.recommender.rank(Query("ann"), ["d", "c", "b"], SOON_S)
    assert [item.item_id for item in ranked] == ["b", "c", "d"]


async def test_without_the_encoder_the_list_is_still_of_allowed_items(world):
    world.encoder.failure = EncoderUnavailable("down")
    await world.did("ann", "a")
    world.live.apply([Item("b", available=False)], [])
    assert await recommended(world, limit=2) == ["c", "d"]


async def test_a_snapshot_of_which_little_can_be_had_passes_its_canaries(world):
    world.live.apply([], list("bcde"))
    assert (await try_out(world.recommender, Bars(recall=0.0, latency_s=5.0))).canaries == 3


# Among many items: half a turn of the circle is the user's taste, and item-0 is the most popular one


@pytest.fixture
def big_world(make_world):
    """12,000 items on the circle, 0.03 degrees apart, popular in their order."""
    shares = 1.0 / np.arange(1, ITEMS + 1)
    degrees = {f"item-{number}": number * 360.0 / ITEMS for number in range(ITEMS)}
    moments = [("bob", 0, "item-50"), ("cara", 1, "item-6000"), ("dan", 2, "item-7777")]
    follows = {"item-0": {"item-9": 0.5, "item-6001": 0.5}}
    return make_world(degrees=degrees, popularity=tuple(shares / shares.sum()), moments=moments, follows=follows)


def tag(world, numbers, name):
    world.live.apply([Item(f"item-{number}", tags=(name,)) for number in numbers], [])
    return {f"item-{number}" for number in numbers}


@pytest.mark.parametrize("user_id", ["ann", "nobody"])
async def test_a_rare_category_fills_the_list(big_world, user_id):
    await big_world.did("ann", ["item-0"])
    rare = tag(big_world, range(5_900, 6_100, 13), "rare")  # 16 items, at the far side of the circle
    found = await recommended(big_world, user_id, limit=16, item_filter=RARE)
    assert set(found) == rare
    assert found == await best_of(big_world, rare, 16, user_id)


@pytest.mark.parametrize("limit", [10, 1_000])
async def test_a_common_kind_that_is_not_the_users_fills_the_list_with_the_nearest(big_world, limit):
    await big_world.did("ann", ["item-0"])
    common = tag(big_world, range(3_000, 9_000), "common")
    assert len(common) > FEW_ITEMS
    found = await recommended(big_world, limit=limit, item_filter=COMMON)
    assert len(set(found)) == limit
    assert set(found) <= common
    # One that follows, those that similar people chose, then those at both ends of the half circle.
    assert set(found[:3]) == {"item-6001", "item-6000", "item-7777"}
    near_ends = {f"item-{n}" for n in itertools.chain(range(3_000, 3_000 + limit), range(9_000 - limit, 9_000))}
    assert set(found[3:]) <= near_ends


async def test_while_the_nearest_of_a_kind_are_sought_others_have_their_turn(big_world, held):
    await big_world.did("ann", ["item-0"])
    common = tag(big_world, range(3_000, 9_000), "common")
    found, _ = await asyncio.gather(
        recommended(big_world, item_filter=COMMON), held(eligible_module, "nearest_allowed")
    )
    assert set(found) <= common


async def test_to_wait_while_the_nearest_are_sought_is_not_what_an_answer_takes(big_world, monkeypatch):
    """Or a burst of such requests would leave everybody else no time for the encoder."""
    await big_world.did("ann", ["item-0"])
    tag(big_world, range(3_000, 9_000), "common")
    seconds, took = [0], []
    clock = SimpleNamespace(perf_counter=lambda: seconds[0], monotonic=time.monotonic)
    monkeypatch.setattr(recommender_module, "time", clock)
    monkeypatch.setattr(big_world.recommender._patience, "answered", took.append)

    def takes_a_second(*given):
        seconds[0] += 1
        return nearest_allowed(*given)

    monkeypatch.setattr(eligible_module, "nearest_allowed", takes_a_second)
    assert len(await recommended(big_world, item_filter=COMMON)) == 10
    assert (seconds[0], took) == (1, [0])


async def test_while_the_best_of_all_are_sought_others_have_their_turn(big_world, held):
    await big_world.did("ann", ["item-0"])
    few = await recommended(big_world, limit=10)
    many, _ = await asyncio.gather(recommended(big_world, limit=1_000), held(evidence_module, "best_of"))
    assert many[:10] == few


async def test_what_the_sources_bring_of_many_allowed_items_comes_in_the_usual_order(big_world):
    await big_world.did("ann", ["item-0"])
    common = tag(big_world, range(0, ITEMS, 2), "common")
    found = await recommended(big_world, limit=20, item_filter=COMMON)
    assert found == await best_of(big_world, common - {"item-0"}, 20)


async def test_popular_items_that_cannot_be_had_leave_room_for_the_next(big_world):
    big_world.live.apply([Item(f"item-{number}", available=False) for number in range(5_000)], [])
    assert await recommended(big_world, "nobody", limit=3) == ["item-5000", "item-5001", "item-5002"]
    assert len(await recommended(big_world, "nobody", limit=1_000)) == 1_000


async def test_many_unavailable_items_do_not_shorten_the_list(big_world):
    await big_world.did("ann", ["item-0"])
    big_world.live.apply(
        [Item(f"item-{number}", available=False) for number in [*range(2_000), *range(11_000, ITEMS)]], []
    )
    found = await recommended(big_world, limit=300)
    assert len(set(found)) == 300
    assert all(2_000 <= int(item.removeprefix("item-")) < 11_000 for item in found)


async def test_an_include_list_of_10_000_ids(big_world):
    await big_world.did("ann", ["item-0"])
    included = [f"item-{number}" for number in range(2_000, 11_999)] + ["unknown"]
    found = await recommended(big_world, limit=50, include_item_ids=included)
    assert len(set(found)) == 50
    assert set(found) <= set(included)
    assert set(found[:3]) == {"item-6001", "item-6000", "item-7777"}
    assert "item-11998" in found  # the nearest on the one side


async def test_a_list_is_as_long_as_there_are_allowed_items(big_world):
    await big_world.did("ann", ["item-0", "item-1"])
    tag(big_world, range(5), "rare")
    assert sorted(await recommended(big_world, limit=10, item_filter=RARE)) == ["item-2", "item-3", "item-4"]


# What was had


@pytest.fixture
def repeating(make_world, make_snapshot):
    """Whatever was had just now is next in one of two cases, what was had before that in one of ten."""
    hazard = np.full((RECENCIES, FREQUENCIES), 0.1)
    hazard[0] = 0.5
    return make_world(snapshot=replace(make_snapshot(), repeats=RepeatWeights(hazard)))


async def test_what_was_had_is_recommended_where_that_is_asked_for(repeating):
    await repeating.did("ann", "ab")
    assert not {"a", "b"} & {*await recommended(repeating, "ann")}
    answer = await repeating.recommender.recommend(Query("ann", include_seen=True), SOON_S)
    found = {item.item_id: item for item in answer.recommendations}
    assert answer.recommendations[0].item_id == "b"
    assert found["b"].score == 0.5
    assert found["b"].sources == ((Source.REPEATS, 0.5),)
    assert found["a"].sources == ((Source.REPEATS, 0.1),)
    assert {*found} == {*"abcde"}


async def test_what_was_had_must_pass_as_well(repeating, event):
    await repeating.did("ann", "abc")
    assert "c" not in await recommended(repeating, "ann", include_seen=True, exclude_item_ids=["c"])
    assert await recommended(repeating, "ann", include_seen=True, include_item_ids=["a"]) == ["a"]
    repeating.live.apply([Item("b", available=False), Item("a", tags=["rare"])], [])
    assert "b" not in await recommended(repeating, "ann", include_seen=True)
    assert await recommended(repeating, "ann", include_seen=True, item_filter=RARE) == ["a"]


async def test_what_was_disliked_last_does_not_come_again(repeating, event):
    await repeating.did("ann", "abc")
    await repeating.write(event("no", "c", 99.0, type=EventType.DISLIKE))
    assert "c" not in await recommended(repeating, "ann", include_seen=True)
    await repeating.write(event("yes", "c", 100.0))
    assert "c" in await recommended(repeating, "ann", include_seen=True)


async def test_what_may_not_appear_leaves_the_odds_of_the_rest(repeating):
    await repeating.did("ann", "ab")

    async def odds(**query):
        """Of a, which was had, against all that is new."""
        found = (
            await repeating.recommender.recommend(Query("ann", include_seen=True, **query), SOON_S)
        ).recommendations
        return sum(item.score for item in found if item.item_id == "a"), sum(
            item.score for item in found if item.item_id in "cde"
        )

    had, new = await odds()
    assert (had, new) == pytest.approx((0.1, 0.4))  # and b has the other half
    repeating.live.apply([Item("b", available=False)], [])
    assert await odds() == pytest.approx((0.1 / 0.5, 0.4 / 0.5))
    # Of the popularity of c, d and e, .15, .1 and .05, c has half.
    had, new = await odds(include_item_ids=["a", "c"])
    assert new / had == pytest.approx(0.2 / 0.1)


async def test_what_is_new_and_without_events_keeps_a_share(make_world, make_snapshot):
    hazard = np.full((RECENCIES, FREQUENCIES), 0.1)
    snapshot = make_snapshot(popularity=[0.6, 0.4, 0.0, 0.0, 0.0])
    world = make_world(snapshot=replace(snapshot, repeats=RepeatWeights(hazard)))
    await world.did("ann", "ab")
    answer = await world.recommender.recommend(
        Query("ann", include_seen=True, include_item_ids=["a", "d", "e"]), SOON_S
    )
    scores = {item.item_id: item.score for item in answer.recommendations}
    assert {*scores} == {*"ade"}
    assert min(scores.values()) > 0
    assert sum(scores.values()) == pytest.approx(1.0)


async def test_what_was_had_in_the_session_as_well_is_taken_off_once(repeating):
    await repeating.did("ann", "ab")
    found = [
        await repeating.recommender.recommend(
            Query("ann", include_seen=True, include_item_ids=["a", "c"], session_item_ids=session), SOON_S
        )
        for session in (["b"], ["b", "b"])
    ]
    once, twice = ({item.item_id: item.score for item in answer.recommendations} for answer in found)
    assert once == pytest.approx(twice)


async def test_items_of_the_session_are_had(repeating):
    found = await recommended(repeating, "ann", include_seen=True, session_item_ids=["d"])
    assert found[0] == "d"


async def test_an_answer_with_what_was_had_is_not_kept_for_those_who_want_none(repeating):
    await repeating.did("ann", "ab")
    responses = repeating.serving.responses
    answers = [await responses.recommend(Query("ann", include_seen=seen), SOON_S) for seen in (True, False, True)]
    shown = [[item.item_id for item in answer.recommendations] for answer in answers]
    assert shown[0] == shown[2]
    assert ("a" in shown[0], "a" in shown[1]) == (True, False)


async def test_where_nobody_did_anything_twice_nothing_changes(world):
    await world.did("ann", "ab")
    assert await recommended(world, "ann", include_seen=True) == await recommended(world, "ann")
