"""What is sent a second time is what would be worked out a second time."""

import asyncio

import pytest

from longtide.v1 import recommendation_pb2
from longtide_server.answers import Answer, Link, Query, Recommendation
from longtide_server.errors import EncoderUnavailable
from longtide_server.items.item import Item
from longtide_server.items.item_filter import HasPrice, HasTag, Span
from longtide_server.recommender import MAX_KEPT_SIZE
from longtide_server.serving.responses import Responses, write_answer
from longtide_server.sources.candidates import Source

SOON_S = 5.0


class Counting:
    """Counts what is worked out, and gives tokens."""

    def __init__(self, world, monkeypatch, capacity=10):
        self.worked_out = 0
        self.shown = []
        self.responses = Responses(world.recommender, self.token, capacity)
        self.ask = world.recommender
        work_out = world.recommender.recommend_to

        async def recommend_to(*arguments):
            self.worked_out += 1
            return await work_out(*arguments)

        monkeypatch.setattr(world.recommender, "recommend_to", recommend_to)

    def token(self, surface, items):
        self.shown.append((surface, items))
        return f"token-{len(self.shown)}"

    async def recommend(self, user_id="ann", **query):
        return await self.responses.recommend(Query(user_id, **query), SOON_S)


@pytest.fixture
def counting(world, monkeypatch):
    return Counting(world, monkeypatch)


def without_token(response):
    copy = recommendation_pb2.RecommendResponse()
    copy.CopyFrom(response)
    copy.ClearField("attribution_token")
    return copy


async def test_the_same_question_is_worked_out_once_and_shown_twice(world, counting):
    await world.did("ann", "ab")
    first, second = await counting.recommend(surface="home"), await counting.recommend(surface="cart")
    assert counting.worked_out == 1
    assert without_token(first) == without_token(second)
    assert (first.attribution_token, second.attribution_token) == ("token-1", "token-2")
    assert [surface for surface, _ in counting.shown] == ["home", "cart"]
    assert counting.shown[0][1] == counting.shown[1][1]
    assert counting.shown[0][1] == tuple((one.item_id, one.sources[0].source) for one in first.recommendations)


async def test_what_is_kept_is_what_the_recommender_says(world, counting):
    await world.did("ann", "ab")
    for _ in range(3):
        response = await counting.recommend()
        assert without_token(response) == write_answer(await world.recommender.recommend(Query("ann"), SOON_S))


async def test_a_new_event_is_felt(world, counting):
    await world.did("ann", "a")
    for _ in range(3):
        await counting.recommend()
    await world.did("ann", "b")
    after = await counting.recommend()
    assert "b" not in [one.item_id for one in after.recommendations]


async def test_a_late_event_is_felt(world, counting, event):
    await world.write(event("e1", "a", 10.0))
    for _ in range(3):
        await counting.recommend()
    await world.write(event("e0", "c", 5.0))
    assert "c" not in [one.item_id for one in (await counting.recommend()).recommendations]


async def test_forgetting_a_history_is_felt(world, counting):
    await world.did("ann", "a")
    for _ in range(3):
        await counting.recommend()
    world.store.histories.clear()
    world.store.rewrites["user:ann"] = 1
    world.writer.forget(["user:ann"])
    assert "a" in [one.item_id for one in (await counting.recommend()).recommendations]


async def test_of_whom_is_deleted_no_answer_stays_in_memory(world, counting):
    world.writer.add(counting.responses)
    await world.did("ann", "a")
    await world.did("bob", "b")
    for limit in (1, 2):
        await counting.recommend("ann", limit=limit)
        await counting.recommend("bob", limit=limit)
    assert counting.responses.count == 4
    world.writer.forget(["user:ann"])
    assert counting.responses.count == 2
    await counting.recommend("bob", limit=1)
    assert counting.worked_out == 4


async def test_an_answer_that_was_worked_out_while_its_asker_was_deleted_is_not_kept(world, counting):
    world.writer.add(counting.responses)
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    asking = asyncio.create_task(counting.recommend())
    await world.encoder.call_begun.acquire()
    world.writer.forget(["user:ann"])
    world.encoder.answering_allowed.set()
    await asking
    assert counting.responses.count == 0


async def test_so_many_bytes_of_answers_are_kept_those_that_were_asked_for_last(world, counting):
    for user_id in ("ann", "bea", "cid", "dan"):
        await world.did(user_id, "a")
    await counting.recommend("ann")
    room = 3 * counting.responses.bytes + 10  # they differ by some bytes
    counting.responses = Responses(world.recommender, counting.token, 10, capacity_bytes=room)
    counting.worked_out = 0
    for user_id in ("ann", "bea", "cid", "ann", "dan", "ann", "cid", "dan"):
        await counting.recommend(user_id)
    assert (counting.worked_out, counting.responses.count) == (4, 3)
    await counting.recommend("bea")
    assert counting.worked_out == 5
    assert counting.responses.bytes <= room


@pytest.mark.parametrize(
    "other",
    [
        {"limit": 2},
        {"min_similarity": 0.5},
        {"session_item_ids": ("c",)},
        {"exclude_item_ids": ("c",)},
        {"include_item_ids": ()},
        {"item_filter": HasTag(frozenset(["jazz"]))},
    ],
)
async def test_another_question_has_its_own_answer(world, counting, other):
    await world.did("ann", "ab")
    for _ in range(2):
        await counting.recommend()
    expected = write_answer(await world.recommender.recommend(Query("ann", **other), SOON_S))
    assert without_token(await counting.recommend(**other)) == expected


async def test_other_interests_have_their_own_answer(world, counting):
    world.live.apply([Item("e", tags=("jazz",)), Item("d", tags=("rock",))], [])
    first = {}
    for tag in ("jazz", "rock", "jazz"):
        answer = await counting.recommend("new", interests=HasTag(frozenset([tag])))
        first[tag] = answer.recommendations[0].item_id
    assert first == {"jazz": "e", "rock": "d"}


async def test_people_do_not_share_answers(world, counting):
    await world.did("ann", "a")
    await world.did("bob", "b")
    for _ in range(2):
        await counting.recommend()
    assert "a" in [one.item_id for one in (await counting.recommend("bob")).recommendations]


async def test_a_degraded_answer_is_not_kept(world, counting):
    await world.did("ann", "a")
    await counting.recommend()
    await world.did("ann", "b")
    world.encoder.failure = EncoderUnavailable("down")
    assert (await counting.recommend()).degraded
    world.encoder.failure = None
    assert not (await counting.recommend()).degraded


async def test_a_wait_that_means_something_else_is_another_question(timed_world, monkeypatch):
    counting = Counting(timed_world, monkeypatch)
    await timed_world.did("ann", "a")
    await counting.recommend()
    soon = await counting.recommend(request_time_s=10.0)
    as_soon = await counting.recommend(request_time_s=11.0)  # 10 and 11 s are a wait of the same power of two
    late = await counting.recommend(request_time_s=1e6)
    assert without_token(soon) == without_token(as_soon)
    assert counting.worked_out == 3  # without a time, soon and late
    assert [one.item_id for one in soon.recommendations] != [one.item_id for one in late.recommendations]


async def test_only_so_many_answers_are_kept(world, monkeypatch):
    counting = Counting(world, monkeypatch, capacity=2)
    for user in ("u1", "u2", "u3"):
        await counting.recommend(user)
    await counting.recommend("u3")
    assert counting.worked_out == 3
    await counting.recommend("u1")
    assert counting.worked_out == 4


# The catalogue


def shown(response):
    return [one.item_id for one in response.recommendations]


async def test_an_item_that_is_gone_is_not_sent_from_what_was_kept(world, counting):
    await world.did("ann", "a")
    assert shown(await counting.recommend(limit=2)) == ["b", "c"]
    world.live.apply([Item("b", available=False)], [])
    assert shown(await counting.recommend(limit=2)) == ["c", "e"]
    world.live.apply([], ["c"])
    assert shown(await counting.recommend(limit=2)) == ["e", "d"]


async def test_what_was_kept_ends_with_the_next_publish_or_expiry(world, counting):
    await world.did("ann", "a")
    world.live.apply([Item("b", publish_time_s=2_000.0, expire_time_s=3_000.0)], [])
    found = []
    for world.clock.now_s in (1_000.0, 1_999.0, 2_000.0, 2_999.0, 3_000.0, 9_000.0):
        found.append("b" in shown(await counting.recommend()))
    assert found == [False, False, True, True, False, False]
    assert counting.worked_out == 3


async def test_while_the_catalogue_cannot_be_asked_answers_say_so_and_none_is_kept(world, counting, monkeypatch):
    await world.did("ann", "a")
    assert not (await counting.recommend()).degraded
    for reason in ("the catalogue could not be asked: away", ""):
        monkeypatch.setattr(world.recommender, "_stale_catalog", lambda reason=reason: reason)
        for _ in range(2):
            answer = await counting.recommend()
            assert (answer.degraded, answer.degraded_reason) == (bool(reason), reason)
    assert counting.worked_out == 3  # the first one is kept, and true again


async def test_a_new_title_is_shown(world, counting):
    await counting.recommend()
    world.live.apply([Item("a", title="Alpha", categories=(("letters",),))], [])
    assert (await counting.recommend()).recommendations[0].title == "Alpha"


async def test_a_change_that_no_answer_shows_leaves_what_was_kept(world, counting):
    await counting.recommend()
    world.live.apply([Item("a", title="Title a", price=1.0), Item("unknown to the snapshot")], ["nobody knows it"])
    await counting.recommend()
    assert counting.worked_out == 1


async def test_answers_to_a_filter_are_kept_until_anything_changes(world, counting):
    cheap = HasPrice(Span(high=5.0))
    world.live.apply([Item("a", title="Title a", price=1.0), Item("b", title="Title b", price=9.0)], [])
    for _ in range(2):
        assert shown(await counting.recommend(item_filter=HasPrice(Span(high=5.0)))) == ["a"]
    assert counting.worked_out == 1
    world.live.apply([Item("b", title="Title b", price=3.0)], [])
    assert shown(await counting.recommend(item_filter=cheap)) == ["a", "b"]
    assert shown(await counting.recommend()) == list("abcde")


async def test_answers_to_large_filters_and_include_lists_are_not_kept(world, counting):
    large = HasTag(frozenset(map(str, range(MAX_KEPT_SIZE))))
    for _ in range(2):
        await counting.recommend(item_filter=large)
        await counting.recommend(include_item_ids=("a",))
    assert counting.worked_out == 4
    assert counting.responses.count == 0


async def test_an_answer_from_before_a_change_is_not_kept(world, counting):
    await world.did("ann", "a")
    world.encoder.answering_allowed.clear()
    asking = asyncio.create_task(counting.recommend(limit=2))
    await world.encoder.call_begun.acquire()
    world.live.apply([Item("d", available=False)], [])
    world.encoder.answering_allowed.set()
    await asking
    assert counting.responses.count == 0


def test_what_links_an_item_to_the_last_ones_is_sent():
    item = Recommendation("e", "", 1.0, ((Source.RELATIONS, 0.5),), (), (Link("a", "author", "Lem"),))
    (sent,) = write_answer(Answer((item,), "world")).recommendations
    assert [(one.item_id, one.relation, one.entity) for one in sent.links] == [("a", "author", "Lem")]
    assert [(one.source, one.probability) for one in sent.sources] == [(5, 0.5)]
