"""The life of a request, in a world that can be worked out by eye, and on a snapshot that was really trained."""

import asyncio
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from longtide_server import recommender as recommender_module
from longtide_server.answers import Link, Query
from longtide_server.encoder import AnswerSizes
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded
from longtide_server.items.text_arrays import bytes_of_names
from longtide_server.patience import MARGIN_S
from longtide_server.ranking import Fusion
from longtide_server.recommender import Recommender
from longtide_server.snapshot import ENCODER
from longtide_server.sources.candidates import Source
from longtide_server.sources.relations import RelationArrays, Relations
from longtide_server.users.user_states import UserStates

SOON_S = 5.0


async def recommend(world, user_id="ann", timeout_s=SOON_S, **query):
    return await world.recommender.recommend(Query(user_id, **query), timeout_s)


def items(answer):
    return [item.item_id for item in answer.recommendations]


def sources(answer):
    """Which sources brought each item."""
    return {item.item_id: {source for source, _ in item.sources} for item in answer.recommendations}


async def test_an_unknown_user_gets_popular_items(world):
    answer = await recommend(world, "nobody", limit=3)
    assert items(answer) == ["a", "b", "c"]
    assert sources(answer) == {item: {Source.POPULARITY} for item in "abc"}
    assert [item.sources[0][1] for item in answer.recommendations] == [0.4, 0.3, 0.15]
    assert answer.degraded_reason == ""
    assert world.encoder.calls == []


async def test_every_source_says_what_it_brings(world):
    await world.did("ann", "a")
    answer = await recommend(world)
    assert items(answer)[0] == "b"  # it is near to a, and it follows a
    found = {item.item_id: dict(item.sources) for item in answer.recommendations}
    # bob was exactly here and went on to c, cara was 10 degrees away and went on to e: votes over temperature .5.
    assert found["b"][Source.TRANSITIONS] == pytest.approx(1.0)
    assert found["c"][Source.NEIGHBORS] == pytest.approx(0.5076, abs=1e-3)
    assert found["e"][Source.NEIGHBORS] == pytest.approx(0.4924, abs=1e-3)
    assert Source.NEIGHBORS not in found["b"]
    # Cosines with a: 1, .866, .5, 0, -1; the encoder's softmax at temperature .5.
    assert found["b"][Source.ENCODER] == pytest.approx(0.3345, abs=1e-3)
    assert found["d"][Source.ENCODER] == pytest.approx(0.0592, abs=1e-3)


@pytest.fixture
def linked_world(make_world, make_snapshot):
    """a and e have one author, and only that counts."""
    relations = Relations(
        RelationArrays(
            offsets=np.array([0, 0, 1, 1, 1, 1, 2]),
            entity=np.zeros(2, np.int32),
            relation=np.zeros(2, np.int32),
            member_offsets=np.array([0, 2]),
            members=np.array([1, 5], np.int32),
            prior=np.ones(2, np.float32),
            weight=np.ones(1, np.float32),
            relation_names=bytes_of_names(["author"]),
            entity_names=bytes_of_names(["Lem"]),
        )
    )

    def made(weight):
        fusion = Fusion(encoder=0.0, neighbors=0.0, transitions=0.0, popularity=0.0, relations=weight)
        return make_world(snapshot=replace(make_snapshot(fusion=fusion), relations=relations))

    return made


async def test_an_item_that_shares_something_with_the_last_ones_says_what(linked_world):
    world = linked_world(1.0)
    await world.did("ann", "a")
    first, *others = (await recommend(world)).recommendations
    assert first.item_id == "e"
    assert first.sources[0] == (Source.RELATIONS, 1.0)
    assert first.links == (Link("a", "author", "Lem"),)
    assert all(other.links == () for other in others)


async def test_links_explain_also_where_their_source_has_no_say(linked_world):
    world = linked_world(0.0)
    await world.did("ann", "a")
    found = {item.item_id: item for item in (await recommend(world)).recommendations}
    assert found["e"].links == (Link("a", "author", "Lem"),)
    assert found["b"].links == ()


async def test_a_recommendation_names_the_people_who_went_on_to_it(world):
    await world.did("ann", "a")
    by_item = {item.item_id: item for item in (await recommend(world)).recommendations}
    assert [(user.user_id, round(user.similarity, 3)) for user in by_item["c"].neighbors] == [("bob", 1.0)]
    assert [(user.user_id, round(user.similarity, 3)) for user in by_item["e"].neighbors] == [("cara", 0.985)]
    assert by_item["b"].neighbors == ()
    assert by_item["c"].title == "Title c"


async def test_the_sources_are_by_their_contribution(make_world):
    world = make_world(follows={"a": {"c": 0.02, "b": 0.98}})
    await world.did("ann", "a")
    by_item = {item.item_id: item for item in (await recommend(world)).recommendations}
    order = [source for source, _ in by_item["c"].sources]
    assert order == [Source.ENCODER, Source.NEIGHBORS, Source.TRANSITIONS]  # popularity weighs nothing here


async def test_scores_fall_and_are_shares(world):
    await world.did("ann", "a")
    scores = [item.score for item in (await recommend(world)).recommendations]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0
    assert sum(scores) == pytest.approx(1.0)


async def test_nothing_that_the_user_has_had_is_recommended(world):
    await world.did("ann", "ab")
    assert sorted(items(await recommend(world))) == ["c", "d", "e"]


async def test_nothing_excluded_is_recommended(world):
    await world.did("ann", "a")
    assert sorted(items(await recommend(world, exclude_item_ids=["b", "unknown", "b"]))) == ["c", "d", "e"]
    assert items(await recommend(world, "nobody", limit=2, exclude_item_ids=["a", "b"])) == ["c", "d"]


async def test_a_session_is_felt_and_not_recommended(world):
    await world.did("ann", "e")
    alone = await recommend(world)
    with_session = await recommend(world, session_item_ids=["a", "unknown"])
    assert "a" in items(alone)
    assert sorted(items(with_session)) == ["b", "c", "d"]
    assert Source.TRANSITIONS in sources(with_session)["b"]  # it follows a, the session's last item
    assert Source.TRANSITIONS not in sources(alone)["b"]
    assert items(await recommend(world)) == items(alone)


async def test_an_acknowledged_event_is_part_of_the_next_answer(world):
    await world.did("ann", "e")
    assert "b" in items(await recommend(world))
    await world.did("ann", "b")
    answer = await recommend(world)
    assert "b" not in items(answer)
    assert Source.TRANSITIONS in sources(answer)["c"]  # it follows b


@pytest.mark.parametrize("limit", [1, 2, 4])
async def test_no_more_than_the_limit(world, limit):
    await world.did("ann", "a")
    assert len(items(await recommend(world, limit=limit))) == limit


async def test_a_limit_beyond_the_catalogue_gets_what_there_is(world):
    await world.did("ann", "a")
    assert sorted(items(await recommend(world, limit=1_000))) == ["b", "c", "d", "e"]


async def test_a_catalogue_of_one_item(make_world):
    world = make_world(degrees={"a": 0}, popularity=(1.0,), follows={}, moments=[])
    assert items(await recommend(world, "nobody")) == ["a"]
    assert (await recommend(world, "nobody")).recommendations[0].score == pytest.approx(1.0)
    await world.did("ann", "a")
    assert items(await recommend(world)) == []


async def test_who_has_had_everything_gets_nothing(world):
    await world.did("ann", "abcde")
    answer = await recommend(world)
    assert answer.recommendations == ()
    assert answer.degraded_reason == ""


async def test_only_similar_enough_neighbours_vote(make_world):
    world = make_world(moments=[("bob", 10, "c")])
    await world.did("ann", "a")
    assert Source.NEIGHBORS in sources(await recommend(world))["c"]
    strict = await recommend(world, min_similarity=1.0)
    assert all(Source.NEIGHBORS not in found for found in sources(strict).values())
    assert all(item.neighbors == () for item in strict.recommendations)
    assert sorted(items(strict)) == ["b", "c", "d", "e"]


async def test_nobody_is_their_own_neighbour(world):
    await world.did("bob", "a")  # exactly where bob's own first moment is
    answer = await recommend(world, "bob")
    assert Source.NEIGHBORS not in sources(answer)["c"]
    assert Source.NEIGHBORS in sources(answer)["e"]  # cara's


async def test_ones_own_moments_do_not_keep_others_from_voting(make_world):
    world = make_world(moments=[("bob", 0, "c")] * 8 + [("cara", 10, "e")], count=4)
    await world.did("bob", "a")
    assert Source.NEIGHBORS in sources(await recommend(world, "bob"))["e"]


async def test_what_was_encoded_for_another_purpose_brings_the_best_items_all_the_same(make_world):
    world = make_world(popularity=(0.4, 0.05, 0.15, 0.1, 0.3), follows={}, moments=[])
    await world.did("ann", "a")
    await similar(world)  # asks the encoder for one item only: a itself
    assert items(await recommend(world, limit=1)) == ["b"]
    assert world.encoder.events == 1


@pytest.mark.parametrize("failure", [EncoderUnavailable("down"), Overloaded("full"), DeadlineExceeded("slow")])
async def test_without_the_encoder_the_others_answer(world, failure):
    world.encoder.failure = failure
    await world.did("ann", "a")
    answer = await recommend(world)
    assert answer.degraded_reason == f"the encoder could not be asked: {failure}"
    assert items(answer) == ["b", "c", "d", "e"]  # b follows a, and the rest are by popularity
    assert sources(answer)["b"] == {Source.TRANSITIONS}
    assert sources(answer)["e"] == {Source.POPULARITY}
    assert sources(answer)["c"] == {Source.POPULARITY}


async def test_without_the_encoder_the_last_known_state_answers(world):
    await world.did("ann", "a")
    await recommend(world)
    await world.did("ann", "e")
    world.encoder.failure = EncoderUnavailable("down")
    answer = await recommend(world)
    assert "down" in answer.degraded_reason
    assert sorted(items(answer)) == ["b", "c", "d"]
    found = {item.item_id: dict(item.sources) for item in answer.recommendations}
    assert found["b"][Source.ENCODER] == pytest.approx(0.3345, abs=1e-3)  # as it was after a
    assert Source.NEIGHBORS in found["c"]


async def test_a_degraded_answer_does_not_outlast_its_reason(world):
    await world.did("ann", "a")
    world.encoder.failure = EncoderUnavailable("down")
    assert (await recommend(world)).degraded_reason
    world.encoder.failure = None
    assert (await recommend(world)).degraded_reason == ""


def given_s(reason):
    """How long the encoder was waited for."""
    return float(re.search(r"did not answer within ([0-9.]+) s", reason)[1])


async def test_an_encoder_slower_than_the_deadline_leaves_time_to_answer(world):
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    answer = await recommend(world, timeout_s=0.2)
    assert items(answer) == ["b", "c", "d", "e"]
    assert 0.1 < given_s(answer.degraded_reason) <= 0.2 - MARGIN_S


async def test_similar_users_leave_time_to_answer_too(world):
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    users, reason = await world.recommender.similar_users("user:ann", 10, None, 0.2)
    assert users == ()
    assert 0.1 < given_s(reason) <= 0.2 - MARGIN_S


async def test_a_deadline_that_has_all_but_passed_still_gets_an_answer(world):
    await world.did("ann", "a")
    answer = await recommend(world, timeout_s=0.001)
    assert items(answer) == ["b", "c", "d", "e"]
    assert answer.degraded_reason


async def rank(world, *item_ids, user_id="ann", session=()):
    ranked, reason = await world.recommender.rank(Query(user_id, 1, (), session), item_ids, SOON_S)
    return [item.item_id for item in ranked], ranked, reason


async def test_a_given_list_is_ordered(world):
    await world.did("ann", "a")
    order, ranked, reason = await rank(world, "e", "d", "c", "b")
    assert order == ["b", "c", "e", "d"]  # of e and d, e has cara's vote
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)
    assert sum(item.score for item in ranked) == pytest.approx(1.0)
    assert reason == ""


async def test_what_the_user_has_had_stays_in_a_given_list(world):
    await world.did("ann", "ab")
    order, _, _ = await rank(world, "a", "b", "c")
    assert sorted(order) == ["a", "b", "c"]


async def test_unknown_items_come_last_as_sent(world):
    await world.did("ann", "a")
    order, ranked, _ = await rank(world, "zz", "d", "yy", "b", "xx")
    assert order == ["b", "d", "zz", "yy", "xx"]
    assert [item.known for item in ranked] == [True, True, False, False, False]
    assert [item.score for item in ranked[2:]] == [0, 0, 0]


async def test_a_list_of_unknown_items_stays_as_it_is(world):
    assert (await rank(world, "zz", "yy"))[0] == ["zz", "yy"]


async def test_a_list_for_an_unknown_user_is_by_popularity(world):
    assert (await rank(world, "e", "a", "d", user_id="nobody"))[0] == ["a", "d", "e"]


async def test_a_list_is_ordered_for_the_session(world):
    assert (await rank(world, "d", "b", session=["a"]))[0] == ["b", "d"]
    assert (await rank(world, "d", "b", session=["b", "d"]))[0] == ["d", "b"]


async def test_a_list_is_ordered_without_the_encoder(world):
    await world.did("ann", "a")
    world.encoder.failure = EncoderUnavailable("down")
    order, _, reason = await rank(world, "e", "c", "b")
    assert order == ["b", "c", "e"]
    assert reason == "the encoder could not be asked: down"


async def similar(world, user_id="ann", limit=10, least=None):
    users, reason = await world.recommender.similar_users(f"user:{user_id}", limit, least, SOON_S)
    return [user.user_id for user in users], users, reason


async def test_similar_users_come_once_at_their_most_similar_moment(world):
    await world.did("ann", "a")
    order, users, reason = await similar(world, least=-1.0)
    assert order == ["bob", "cara", "dan"]
    assert [user.similarity for user in users] == pytest.approx([1.0, 0.985, 0.866], abs=1e-3)
    assert users[0].next_item_ids == ("c", "d")  # bob's moments from there on
    assert users[1].next_item_ids == ("e",)  # and not those of dan, who is beside her
    assert reason == ""


async def test_similar_users_are_similar_enough(world):
    await world.did("ann", "a")
    assert (await similar(world))[0] == ["bob", "cara"]  # the snapshot says .9
    assert (await similar(world, least=0.99))[0] == ["bob"]


async def test_nobody_is_similar_to_themselves(world):
    await world.did("bob", "a")
    assert (await similar(world, "bob", least=-1.0))[0] == ["cara", "dan"]


async def test_an_anonymous_session_is_named_to_nobody(make_world):
    """Its moments count, its id is its own: whoever has it may read and delete what it did."""
    world = make_world(moments=[("session:s", 0, "c"), ("cara", 10, "e"), ("session:t", 10, "d")])
    await world.did("ann", "a")
    assert (await similar(world, least=-1.0))[0] == ["cara"]
    answer = await world.recommender.recommend(Query("ann", 12, min_similarity=-1.0), SOON_S)
    named = {item.item_id: [user.user_id for user in item.neighbors] for item in answer.recommendations}
    assert (named["c"], named["d"], named["e"]) == ([], [], ["cara"])
    [c] = [item for item in answer.recommendations if item.item_id == "c"]
    assert Source.NEIGHBORS in dict(c.sources)


async def test_a_session_is_not_its_own_neighbour(make_world, event):
    world = make_world(moments=[("session:s", 0, "c"), ("cara", 10, "e")])
    await world.write(event("e1", "a", 1.0, "", session_id="s"))
    answer = await world.recommender.recommend(Query("", 12, session_id="s", min_similarity=-1.0), SOON_S)
    [c] = [item for item in answer.recommendations if item.item_id == "c"]
    assert Source.NEIGHBORS not in dict(c.sources)


async def test_nobody_is_similar_to_themselves_under_another_name(world, event):
    """A session that was merged into bob asks with bob's history: bob's own moments are no neighbours."""
    await world.write(event("e1", "a", 1.0, "bob"))
    world.store.names["session:s"] = "user:bob"
    users, _ = await world.recommender.similar_users("session:s", 10, -1.0, SOON_S)
    assert users
    assert "bob" not in [user.user_id for user in users]
    answer = await world.recommender.recommend(Query("", 12, session_id="s", min_similarity=-1.0), SOON_S)
    assert "bob" not in [user.user_id for item in answer.recommendations for user in item.neighbors]


async def test_nobody_is_similar_to_who_they_were_before_they_were_merged(world, event):
    """Bob, whom the snapshot knows, was merged into ann: his moments are her own."""
    await world.write(event("e1", "a", 1.0, "ann"))
    world.store.names["user:bob"] = "user:ann"
    for name in ("ann", "bob"):
        assert (await similar(world, name, least=-1.0))[0] == ["cara", "dan"]
    answer = await world.recommender.recommend(Query("ann", 12, min_similarity=-1.0), SOON_S)
    assert "bob" not in [user.user_id for item in answer.recommendations for user in item.neighbors]


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_only_so_many_similar_users(world, limit):
    await world.did("ann", "a")
    assert (await similar(world, limit=limit, least=-1.0))[0] == ["bob", "cara", "dan"][:limit]


async def test_a_user_of_many_moments_does_not_hide_another(make_world):
    world = make_world(moments=[("bob", 0, "c")] * 30 + [("cara", 10, "e")], count=1)
    await world.did("ann", "a")
    assert (await similar(world, limit=2))[0] == ["bob", "cara"]


async def test_a_search_for_more_similar_users_than_there_are_ends(make_world, monkeypatch):
    monkeypatch.setattr(recommender_module, "MAX_MOMENTS_SEARCHED", 8)
    world = make_world(moments=[("bob", 0, "c")] * 30 + [("cara", 10, "e")], count=2)
    await world.did("ann", "a")
    async with asyncio.timeout(SOON_S):
        assert (await similar(world, limit=2))[0] == ["bob"]


async def test_at_most_5_next_items_are_shown(make_world):
    world = make_world(moments=[("bob", 0, item) for item in "bcdebc"])
    await world.did("ann", "a")
    [bob] = (await similar(world))[1]
    assert bob.next_item_ids == ("b", "c", "d", "e", "b")


async def test_nobody_is_similar_to_a_user_without_events(world):
    assert await similar(world, "nobody") == ([], (), "")


async def test_without_the_encoder_similar_users_are_of_the_last_known_state(world):
    await world.did("ann", "a")
    await similar(world)
    await world.did("ann", "e")
    world.encoder.failure = EncoderUnavailable("down")
    order, _, reason = await similar(world)
    assert order == ["bob", "cara"]
    assert reason == "the encoder could not be asked: down"


@pytest.fixture
async def trained(tiny_snapshot, make_world):
    """The trained snapshot with its real encoder."""
    store = make_world(snapshot=tiny_snapshot).store
    encoder = CoalescingEncoder(
        LocalEncoder(tiny_snapshot.path / ENCODER, AnswerSizes.of(tiny_snapshot.embeddings)), 10.0
    )
    states = UserStates(tiny_snapshot, store, encoder, 100)

    async def write(*events):
        states.apply(await store.write(events))

    yield SimpleNamespace(write=write, recommender=Recommender(tiny_snapshot, states), states=states)
    await encoder.close()


async def test_every_answer_of_a_trained_snapshot_keeps_the_rules(trained, event):
    for user in range(12):
        had = [f"item-{(user + step) % 12}" for step in range(1 + user % 6)]
        await trained.write(*(event(f"{user}-{n}", item, n, f"user-{user}") for n, item in enumerate(had)))
    for user in range(12):
        had = {f"item-{(user + step) % 12}" for step in range(1 + user % 6)}
        query = Query(f"user-{user}", 7, exclude_item_ids=[f"item-{(user + 9) % 12}"])
        answer = await trained.recommender.recommend(query, SOON_S)
        assert answer.degraded_reason == ""
        assert len(items(answer)) == len(set(items(answer))) == min(7, 12 - len(had) - 1)
        assert not set(items(answer)) & (had | set(query.exclude_item_ids))
        assert all(neighbor.user_id != query.user_id for item in answer.recommendations for neighbor in item.neighbors)


async def test_a_trained_snapshot_knows_what_comes_next(trained, event):
    """All users go round the items; whoever was at 3, 4, 5 goes on to 6."""
    await trained.write(*(event(f"e{n}", f"item-{n}", n) for n in (3, 4, 5)))
    answer = await trained.recommender.recommend(Query("ann", 3), SOON_S)
    assert "item-6" in items(answer)


async def test_the_answers_of_many_callers_are_those_of_each_alone(trained, event):
    users = [f"user-{n}" for n in range(8)]
    for n, user in enumerate(users):
        await trained.write(event(f"e{n}", f"item-{n}", 0, user), event(f"f{n}", f"item-{n + 2}", 9, user))
    together = await asyncio.gather(*(trained.recommender.recommend(Query(user), SOON_S) for user in users))
    for user, answer in zip(users, together, strict=True):
        assert items(answer) == items(await trained.recommender.recommend(Query(user), SOON_S))


# The time of the request


DAY_S = 86_400


async def test_what_the_encoder_says_depends_on_the_wait(timed_world):
    await timed_world.did("ann", "a")  # at 0 s and 0 degrees
    soon = await recommend(timed_world, request_time_s=60.0)
    assert items(soon) == items(await recommend(timed_world)) == ["b", "c", "d", "e"]
    late = await recommend(timed_world, request_time_s=DAY_S)
    assert items(late) == ["d", "c", "b", "e"]  # at 90 degrees now: d is here, c 30 and b 60 degrees away
    assert sum(item.score for item in late.recommendations) == pytest.approx(1.0)
    assert timed_world.encoder.events == 1  # nothing was encoded again


async def test_the_encoders_probabilities_keep_their_mass(timed_world):
    await timed_world.did("ann", "a")
    late = await recommend(timed_world, request_time_s=DAY_S)
    found = {item.item_id: dict(item.sources).get(Source.ENCODER, 0.0) for item in late.recommendations}
    # Cosines 1, .866, .5 and 0, at temperature .5, of all five items, a among them.
    weight = {"d": np.exp(2), "c": np.exp(1.732), "b": np.exp(1), "a": 1.0, "e": 1.0}
    assert found["d"] == pytest.approx(weight["d"] / sum(weight.values()), abs=1e-3)


async def test_a_request_before_the_last_event_has_not_waited(timed_world, event):
    await timed_world.write(event("e1", "a", 5.0 * DAY_S))
    assert items(await recommend(timed_world, request_time_s=0.0)) == ["b", "c", "d", "e"]


async def test_what_was_just_viewed_has_no_time(timed_world):
    await timed_world.did("ann", "b")
    answer = await recommend(timed_world, session_item_ids=["a"], request_time_s=DAY_S)
    assert items(answer) == items(await recommend(timed_world, session_item_ids=["a"]))


async def test_a_user_without_events_has_waited_for_nothing(timed_world):
    assert items(await recommend(timed_world, "nobody", limit=3, request_time_s=DAY_S)) == ["a", "b", "c"]


async def test_a_given_list_is_ordered_for_its_time(timed_world):
    await timed_world.did("ann", "a")
    query = Query("ann", 1, request_time_s=DAY_S)
    ranked, _ = await timed_world.recommender.rank(query, ["b", "c", "d"], SOON_S)
    assert [item.item_id for item in ranked] == ["d", "c", "b"]


async def test_similar_people_are_sought_whatever_the_time(timed_world):
    await timed_world.did("ann", "a")
    soon, late = [await recommend(timed_world, request_time_s=at) for at in (0.0, DAY_S)]
    neighbors = [{item.item_id: item.neighbors for item in answer.recommendations} for answer in (soon, late)]
    assert neighbors[0] == neighbors[1]


async def test_a_snapshot_that_learned_no_times_answers_alike_at_any(world):
    await world.did("ann", "a")
    assert items(await recommend(world, request_time_s=DAY_S)) == items(await recommend(world))
