"""What is sent a second time is what would be worked out a second time."""

import pytest

from longtide.v1 import recommendation_pb2
from longtide_server.errors import EncoderUnavailable
from longtide_server.recommender import Query
from longtide_server.responses import Responses, write_answer

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


@pytest.mark.parametrize(
    "other", [{"limit": 2}, {"min_similarity": 0.5}, {"session_item_ids": ("c",)}, {"exclude_item_ids": ("c",)}]
)
async def test_another_question_has_its_own_answer(world, counting, other):
    await world.did("ann", "ab")
    for _ in range(2):
        await counting.recommend()
    expected = write_answer(await world.recommender.recommend(Query("ann", **other), SOON_S))
    assert without_token(await counting.recommend(**other)) == expected


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
