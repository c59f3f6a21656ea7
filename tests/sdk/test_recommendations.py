"""Asking for recommendations, through a real server."""

import asyncio
import contextlib
import itertools
import threading
from datetime import datetime, timedelta, timezone

import pytest
from google.rpc import code_pb2

from longtide import (
    AsyncClient,
    Basis,
    Client,
    DeadlineExceededError,
    EventType,
    Interest,
    InterestKind,
    InvalidArgumentError,
    Neighbor,
    RankedItem,
    Recommendation,
    RelationLink,
    SimilarItem,
    SimilarUser,
    Source,
    SourceShare,
    Tags,
    TypeShare,
    UnavailableError,
)
from longtide._filter_messages import filter_message
from longtide.v1 import recommendation_pb2


def test_an_answer_says_what_and_why(client):
    answer = client.recommend("ada", limit=2)
    assert answer[0] == Recommendation(
        item_id="ada-0",
        title="Title 0",
        score=0.5,
        sources=(SourceShare(Source.ENCODER, 0.75), SourceShare(Source.UNKNOWN, 0.25)),
        neighbors=(Neighbor("bob", 0.875),),
        links=(RelationLink("seen", "author", "Lem"),),
    )
    assert [item.item_id for item in answer] == ["ada-0", "ada-1"]
    assert (answer.user_id, answer.snapshot_id, answer.attribution_token) == ("ada", "snapshot-1", "token-1")
    assert (answer.degraded, answer.degraded_reason, answer.error) == (True, "the encoder is down", None)


def test_a_request_carries_what_was_asked(client, server):
    client.recommend("ada", 3, exclude_item_ids={"x"}, min_similarity=0.0, session_items=iter(["s1", "s2"]))
    request = server.requests[0]
    assert (request.user_id, request.limit, list(request.exclude_item_ids)) == ("ada", 3, ["x"])
    assert request.HasField("min_similarity")
    assert list(request.session_item_ids) == ["s1", "s2"]


def test_the_threshold_is_left_to_the_snapshot(client, server):
    client.recommend("ada")
    assert server.requests[0].limit == 10
    assert not server.requests[0].HasField("min_similarity")


def test_the_time_of_a_request_is_left_to_the_server(client, server):
    client.recommend("ada")
    client.rank("ada", ["a"])
    list(client.recommend_many(["ada"]))
    assert [request.HasField("request_time") for request in requests_of(server)] == [False] * 3


def test_the_time_of_a_request_is_sent_in_utc(client, server):
    noon = datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1)))
    client.recommend("ada", request_time=noon)
    client.rank("ada", ["a"], request_time=noon.timestamp())
    list(client.recommend_many(["ada"], request_time=noon))
    assert {request.request_time.ToJsonString() for request in requests_of(server)} == {"2026-01-31T12:00:00Z"}
    with pytest.raises(ValueError, match="request_time must know its time zone"):
        client.recommend("ada", request_time=datetime(2026, 1, 31))


def requests_of(server):
    """The requests that arrived, those of streams taken out of their messages."""
    return [one for request in server.requests for one in getattr(request, "requests", [request])]


def test_rank_orders_the_callers_items(client, server):
    ranking = client.rank("ada", ["b", "a"], session_items=["s"])
    assert list(ranking) == [RankedItem("a", 0.5, True), RankedItem("b", 0.5, True)]
    assert (ranking.user_id, ranking.snapshot_id, ranking.degraded) == ("ada", "snapshot-1", False)
    assert list(server.requests[0].session_item_ids) == ["s"]


def test_similar_items_are_listed(client, server):
    items = client.similar_items("i1", 5, "content", filter=Tags("new"), exclude_item_ids=["i2"])
    assert list(items) == [SimilarItem("like-i1", "Alike", 0.5)]
    request = server.requests[0]
    assert (request.item_id, request.limit, request.basis) == ("i1", 5, recommendation_pb2.SIMILARITY_BASIS_CONTENT)
    assert request.filter == filter_message(Tags("new"))
    assert list(request.exclude_item_ids) == ["i2"]


def test_similar_items_say_what_was_compared_and_where_they_come_from(client, server):
    found = client.similar_items("i1", basis="content")
    assert (found.item_id, found.basis, found.snapshot_id) == ("i1", Basis.BEHAVIOR, "snapshot-1")
    assert (found[0].item_id, found[:1], len(found)) == ("like-i1", (SimilarItem("like-i1", "Alike", 0.5),), 1)
    server.basis = 99  # of a newer server
    assert client.similar_items("i1").basis is None


def test_a_basis_that_is_none_is_refused_and_none_is_left_to_the_server(client, server):
    with pytest.raises(ValueError, match="'taste' is not a valid Basis"):
        client.similar_items("i1", basis="taste")
    client.similar_items("i1")
    assert [request.basis for request in server.requests] == [recommendation_pb2.SIMILARITY_BASIS_UNSPECIFIED]


def test_behaviour_is_types_and_values(client, server):
    found = client.predict_behavior("ada", ["i1", "i2"], ["i3"])
    assert found.types == (TypeShare(EventType.PURCHASE, 0.75), TypeShare(EventType.CUSTOM, 0.25))
    assert found.values == {"i1": 4.5, "i2": 4.5}
    assert (found.user_id, found.snapshot_id, found.degraded) == ("ada", "snapshot-1", False)
    [sent] = server.requests
    assert (sent.user_id, list(sent.item_ids), list(sent.session_item_ids)) == ("ada", ["i1", "i2"], ["i3"])
    client.predict_behavior(session_id="s1")
    assert server.requests[-1].session_id == "s1"


def test_interests_are_long_and_short_term(client, server):
    found = client.get_interests("ada", 3)
    assert found.long_term == (
        Interest(InterestKind.CATEGORY, ("Books", "Crime"), 0.75),
        Interest(InterestKind.TAG, "vegan", 0.5),
    )
    assert found.short_term == (Interest(InterestKind.UNKNOWN, "", 0.25),)
    assert (found.user_id, found.snapshot_id, found.degraded) == ("ada", "snapshot-1", False)
    [sent] = server.requests
    assert (sent.user_id, sent.limit) == ("ada", 3)
    client.get_interests(session_id="s1")
    assert (server.requests[-1].session_id, server.requests[-1].limit) == ("s1", 10)


def test_similar_users_say_what_they_did_next(client, server):
    users = client.similar_users("ada", limit=5, min_similarity=0.5)
    assert list(users) == [SimilarUser("bob", 0.875, ("a", "b"))]
    assert (server.requests[0].limit, server.requests[0].min_similarity) == (5, 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda client: client.recommend(7), "user_id must be a str, not int"),
        (
            lambda client: client.recommend("ada", exclude_item_ids="book"),
            "exclude_item_ids must be an iterable of str",
        ),
        (lambda client: client.rank("ada", "book"), "item_ids must be an iterable of str, not one str: 'book'"),
        (lambda client: client.rank("ada", ["a", 7]), r"item_ids\[1\] must be a str, not int: 7"),
        (lambda client: list(client.recommend_many("ada")), "user_ids must be an iterable of str"),
        (lambda client: list(client.recommend_many(["ada", None])), "user_id must be a str, not NoneType"),
    ],
)
def test_a_wrong_type_is_named_and_not_sent(client, server, call, words):
    with pytest.raises(TypeError, match=words):
        call(client)
    assert server.requests == []


def test_many_users_are_answered_in_order_and_a_refused_one_fails_alone(client, server):
    users = [f"u{i}" for i in range(150)]
    users[70] = ""
    rows = list(client.recommend_many(users, limit=1))
    assert [row.user_id for row in rows] == users
    assert isinstance(rows[70].error, InvalidArgumentError)
    assert rows[70].error.violations[0].field == "user_id"
    assert all(row.error is None and row[0].item_id == f"{row.user_id}-0" for row in rows if row.user_id)
    assert [len(request.requests) for request in server.requests] == [64, 64, 22]


def test_long_answers_of_many_users_fit_into_a_message(client):
    # 64 users, 150 items each, with ids of 500 bytes: more than gRPC's default limit of 4 MiB.
    rows = list(client.recommend_many([f"{i:0500}" for i in range(64)], limit=150))
    assert {len(row) for row in rows} == {150}


def test_no_users_no_answers(client):
    assert list(client.recommend_many([])) == []


def test_endless_users_are_read_only_a_little_ahead(client):
    taken = itertools.count()
    rows = client.recommend_many((f"u{next(taken)}" for _ in itertools.count()), limit=1)
    for answered in range(1, 2_001):
        next(rows)
        ahead = taken.__reduce__()[1][0] - answered
        assert ahead < 576
    rows.close()


def test_closing_early_cancels_the_call(client, server):
    rows = client.recommend_many(map(str, itertools.count()))
    next(rows)
    rows.close()
    assert server.stream_ended.wait(5)


def test_closing_early_leaves_no_thread(server):
    with Client(server.target) as client:
        client.recommend("ada")
        before = set(threading.enumerate())
        rows = client.recommend_many(map(str, itertools.count()))
        next(rows)
        # The server's own workers are not the client's.
        started = [t for t in set(threading.enumerate()) - before if "ThreadPoolExecutor" not in t.name]
        assert started
        rows.close()
        assert server.stream_ended.wait(5)
        for thread in started:
            thread.join(5)
        assert [thread for thread in started if thread.is_alive()] == []


async def test_closing_early_leaves_no_task(server):
    async with AsyncClient(server.target) as client:
        before = asyncio.all_tasks()
        async with contextlib.aclosing(client.recommend_many(map(str, itertools.count()))) as rows:
            await anext(rows)
        ended = asyncio.all_tasks() - before
        if ended:
            await asyncio.wait(ended, timeout=5)
        assert asyncio.all_tasks() == before


def test_a_broken_stream_ends_the_iteration(client, server, rich_status):
    rows = client.recommend_many(map(str, itertools.count()), limit=1)
    first = [next(rows).user_id for _ in range(64)]
    server.failures.append(rich_status(code_pb2.UNAVAILABLE, "going away"))
    with pytest.raises(UnavailableError):
        first.extend(row.user_id for row in rows)
    assert first == [str(i) for i in range(len(first))]


def test_rows_are_waited_for_longer_than_the_clients_timeout(connect, server):
    server.holding = True
    threading.Timer(0.6, server.released.set).start()
    with connect(server.target, timeout=0.2) as client:
        assert [row.user_id for row in client.recommend_many(["ada"])] == ["ada"]


def test_a_stuck_stream_fails(client, server):
    server.holding = True
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.2 s"):
        next(client.recommend_many(["ada"], timeout=0.2))


async def test_the_async_client_takes_async_users(server):
    async def users():
        for i in range(100):
            yield f"u{i}"

    async with AsyncClient(server.target) as client:
        assert [row.user_id async for row in client.recommend_many(users())] == [f"u{i}" for i in range(100)]


async def test_async_calls_run_side_by_side(server):
    async with AsyncClient(server.target) as client:
        server.together = threading.Barrier(4)
        answers = await asyncio.gather(*(client.recommend(f"u{i}") for i in range(4)))
        assert [answer.user_id for answer in answers] == ["u0", "u1", "u2", "u3"]
