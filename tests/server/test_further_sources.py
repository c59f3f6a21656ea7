"""What counts in an answer, as the request wishes: sources switched off or on, content, trends, declared interests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longtide_server.answers import Query
from longtide_server.items.item import Item
from longtide_server.items.item_filter import HasTag, InCategory
from longtide_server.new_items.new_items import NewItems
from longtide_server.new_items.newcomers import Newcomers
from longtide_server.ranking import Fusion
from longtide_server.recommender import Recommender
from longtide_server.sources.candidates import UNWEIGHTED, Source

SOON_S = 5.0
OFF = tuple((source, 0.0) for source in Source if source not in UNWEIGHTED)


def only(source, weight=1.0):
    """This source, and no other."""
    return tuple((one, weight if one is source else 0.0) for one, _ in OFF)


async def answer(world, user_id="ann", limit=10, **query):
    return await world.recommender.recommend(Query(user_id, limit, **query), SOON_S)


async def recommended(world, user_id="ann", **query):
    return [item.item_id for item in (await answer(world, user_id, **query)).recommendations]


@pytest.fixture
def described(make_world, make_snapshot, request):
    """A world in which it is known what items are: a and e are the same thing, b is its opposite, of c nothing is.

    A parameter is the fusion.
    """
    vectors = np.array([[0, 0], [1, 0], [-1, 0], [0, 0], [0.6, 0.8], [1, 0]], np.float32)
    fusion = {"fusion": request.param} if hasattr(request, "param") else {}
    return make_world(snapshot=replace(make_snapshot(**fusion), content_vectors=vectors))


async def test_a_source_alone_decides(world):
    await world.did("ann", "a")
    assert await recommended(world, limit=1, source_weights=only(Source.TRANSITIONS)) == ["b"]
    assert (await recommended(world, limit=2, source_weights=only(Source.NEIGHBORS))) == ["c", "e"]
    assert await recommended(world, limit=3, source_weights=only(Source.POPULARITY)) == ["b", "c", "d"]


async def test_a_source_that_is_switched_off_is_named_on_no_item(world):
    await world.did("ann", "a")
    found = await answer(world, source_weights=((Source.TRANSITIONS, 0.0),))
    assert Source.TRANSITIONS not in {source for item in found.recommendations for source, _ in item.sources}


async def test_without_encoder_and_neighbors_the_encoder_is_not_called(world):
    await world.did("ann", "a")
    found = await answer(world, source_weights=((Source.ENCODER, 0.0), (Source.NEIGHBORS, 0.0)))
    assert found.recommendations[0].item_id == "b"
    assert found.degraded_reason == ""
    assert world.encoder.calls == []


async def test_content_brings_what_is_like_the_last_items(described):
    await described.did("ann", "a")
    found = await answer(described, source_weights=only(Source.CONTENT))
    assert [item.item_id for item in found.recommendations][:2] == ["e", "d"]
    assert found.recommendations[0].sources[0][0] is Source.CONTENT


async def test_content_counts_only_where_it_has_a_weight(described):
    await described.did("ann", "a")
    found = await answer(described)
    assert all(Source.CONTENT not in dict(item.sources) for item in found.recommendations)


async def test_content_speaks_for_items_without_events(described):
    """Of d and e nobody has had any, as it were: e is the same thing as a, d is less like it."""
    manifest = replace(described.snapshot.manifest, item_count=3, new_item_count=2)
    await described.did("ann", "a")
    odds = []
    for vectors in (described.snapshot.content_vectors, None):
        snapshot = replace(described.snapshot, manifest=manifest, content_vectors=vectors)
        found = (await Recommender(snapshot, described.states).recommend(Query("ann", 5), SOON_S)).recommendations
        of_new = {item.item_id: item for item in found if item.item_id in "de"}
        odds.append(of_new["e"].score / of_new["d"].score)
        assert (Source.CONTENT in dict(of_new["e"].sources)) == (vectors is not None)
    assert odds[0] > 2 * odds[1]


async def test_content_knows_a_session_without_the_encoder(described):
    asked = {"session_item_ids": ["a"], "source_weights": only(Source.CONTENT)}
    assert (await recommended(described, "new", limit=1, **asked)) == ["e"]


# Whoever is known by new items alone


@pytest.fixture
def fresh(described):
    """What is recommended where x, which is the same thing as a, and y, which d is like, are new."""
    newcomers = Newcomers(len(described.snapshot.catalog) + 1, 2)
    newcomers.put("x", np.array([1, 0], np.float32))
    newcomers.put("y", np.array([0, 1], np.float32))
    described.live.apply([Item("x", tags=("jazz",)), Item("y")], [])
    temperature = described.snapshot.manifest.encoder.temperature
    new = NewItems(newcomers, described.live, temperature, lambda: described.clock.now_s)
    recommender = Recommender(described.snapshot, described.states, live=described.live, new=new)

    async def answer(user_id="new", limit=1, **query):
        found = await recommender.recommend(Query(user_id, limit, **query), SOON_S)
        return [(item.item_id, item.sources[0][0]) for item in found.recommendations]

    return answer


async def test_a_new_item_says_what_its_first_users_like(described, fresh):
    assert await fresh() == [("a", Source.POPULARITY)]
    await described.did("bea", "y")
    assert await fresh("bea") == [("d", Source.CONTENT)]
    assert await fresh(session_item_ids=["y"]) == [("d", Source.CONTENT)]


@pytest.mark.parametrize("described", [Fusion(0.001, 0.0, 0.3, popularity=0.2)], indirect=True)
async def test_a_new_item_says_that_where_the_encoder_has_next_to_no_say(described, fresh):
    await described.did("bea", "y")
    assert await fresh("bea") == [("d", Source.CONTENT)]


async def test_content_stays_off_where_the_request_wants_it(described, fresh):
    await described.did("bea", "y")
    asked = {"source_weights": ((Source.CONTENT, 0.0),), "include_item_ids": list("abcde")}
    assert await fresh("bea", **asked) == [("a", Source.POPULARITY)]


async def test_new_and_known_items_count_in_the_order_of_their_times(described, fresh):
    asked = {"source_weights": only(Source.CONTENT), "include_item_ids": ["d", "e"]}
    await described.did("bea", "ay")
    await described.did("cid", "ya")
    assert [item_id for item_id, _ in await fresh("bea", **asked)] == ["d"]
    assert [item_id for item_id, _ in await fresh("cid", **asked)] == ["e"]


async def test_interests_count_until_the_encoder_knows_something(described, fresh):
    described.live.apply([Item("c", tags=("jazz",))], [])
    asked = {"interests": HasTag(frozenset(["jazz"])), "exclude_item_ids": ["x"]}
    await described.did("bea", "?")
    assert await fresh("bea", **asked) == [("c", Source.INTERESTS)]
    await described.did("bea", "d")
    assert (await fresh("bea", **asked))[0][1] is not Source.INTERESTS


async def test_new_items_are_of_interest_too(described, fresh):
    jazz = HasTag(frozenset(["jazz"]))
    assert await fresh(interests=jazz) == [("x", Source.INTERESTS)]
    described.live.apply([Item("c", tags=("jazz",))], [])
    both = await fresh(interests=jazz, limit=2)
    assert sorted(item_id for item_id, _ in both) == ["c", "x"]


# Trends and interests


async def test_what_trends_comes_first_where_it_is_asked_for(world):
    for user in ("bea", "cid", "dan"):
        await world.did(user, "d")
    assert (await recommended(world, "new", limit=1)) == ["a"]
    assert (await recommended(world, "new", limit=1, source_weights=((Source.TRENDING, 1.0),))) == ["d"]


async def test_an_answer_with_trends_is_worked_out_every_time(world):
    asked = Query("new", 1, source_weights=((Source.TRENDING, 1.0),))
    await world.did("bea", "d")
    first = await world.serving.responses.recommend(asked, SOON_S)
    await world.did("cid", "eee")
    second = await world.serving.responses.recommend(asked, SOON_S)
    assert [one.recommendations[0].item_id for one in (first, second)] == ["d", "e"]


async def test_answers_for_other_weights_are_kept_apart(world):
    await world.did("ann", "a")
    usual = await world.serving.responses.recommend(Query("ann", 1), SOON_S)
    other = await world.serving.responses.recommend(Query("ann", 1, source_weights=only(Source.NEIGHBORS)), SOON_S)
    assert [one.recommendations[0].item_id for one in (usual, other)] == ["b", "c"]


async def test_somebody_new_gets_what_is_popular_among_what_they_like(world):
    world.live.apply([Item("d", tags=("jazz",)), Item("e", tags=("jazz",))], [])
    found = await answer(world, "new", limit=3, interests=HasTag(frozenset(["jazz"])))
    assert [item.item_id for item in found.recommendations] == ["d", "e", "a"]
    assert [item.sources[0][0] for item in found.recommendations] == [
        Source.INTERESTS, Source.INTERESTS, Source.POPULARITY,
    ]  # fmt: skip


async def test_interests_count_only_for_those_of_whom_nothing_is_known(world):
    world.live.apply([Item("d", tags=("jazz",))], [])
    jazz = HasTag(frozenset(["jazz"]))
    await world.did("ann", "a")
    assert await recommended(world, interests=jazz) == await recommended(world)
    session = {"session_item_ids": ["a"]}
    assert await recommended(world, "new", interests=jazz, **session) == await recommended(world, "new", **session)


async def test_interests_bring_nothing_that_may_not_appear(world):
    world.live.apply([Item("d", tags=("jazz",), available=False), Item("e", tags=("jazz",))], [])
    asked = {"interests": HasTag(frozenset(["jazz"])), "exclude_item_ids": ["a"], "limit": 2}
    assert await recommended(world, "new", **asked) == ["e", "b"]
    assert await recommended(world, "new", **asked, item_filter=InCategory(("letters",))) == ["b", "c"]


async def test_of_interest_to_nobody_is_no_interest(world):
    assert await recommended(world, "new", interests=HasTag(frozenset(["?"]))) == await recommended(world, "new")


async def test_an_answer_changes_when_the_items_of_interest_do(world):
    asked = Query("new", 1, interests=HasTag(frozenset(["jazz"])))
    first = await world.serving.responses.recommend(asked, SOON_S)
    world.live.apply([Item("e", tags=("jazz",))], [])
    second = await world.serving.responses.recommend(asked, SOON_S)
    assert [one.recommendations[0].item_id for one in (first, second)] == ["a", "e"]


def test_a_snapshot_of_before_counts_no_further_source():
    assert Fusion().weights[Source.RELATIONS - 1 : Source.INTERESTS - 1].tolist() == [0.0, 0.0, 0.0]
