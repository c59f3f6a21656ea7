"""What a request may hold, and that everything wrong with it is said at once."""

import math

import pytest

from longtide.v1 import events_pb2, recommendation_pb2, users_pb2
from longtide_server.answers import Query
from longtide_server.errors import FieldViolation, InvalidInput
from longtide_server.event_store import Place
from longtide_server.items.item_filter import HasTag
from longtide_server.rpc import requests
from longtide_server.sources.candidates import Source

NOW_S = 1_700_000_000.0


def read_query(message):
    return requests.read_query(message, NOW_S)


def read_rank_query(message):
    return requests.read_rank_query(message, NOW_S)


def violations(check, message):
    with pytest.raises(InvalidInput) as caught:
        check(message)
    return list(caught.value.violations)


def recommend(**fields):
    return recommendation_pb2.RecommendRequest(**({"user_id": "ann"} | fields))


def rank(**fields):
    return recommendation_pb2.RankRequest(**({"user_id": "ann", "item_ids": ["a"]} | fields))


def similar_users(**fields):
    return recommendation_pb2.ListSimilarUsersRequest(**({"user_id": "ann"} | fields))


def test_a_query_is_read_as_it_was_sent():
    message = recommend(limit=3, exclude_item_ids=["a"], session_item_ids=["b", "b"], min_similarity=0.5)
    query = read_query(message)
    assert (query.user_id, query.limit, query.min_similarity) == ("ann", 3, 0.5)
    assert list(query.exclude_item_ids) == ["a"]
    assert list(query.session_item_ids) == ["b", "b"]


def test_a_query_says_which_items_may_appear():
    query = read_query(recommend(filter={"tags": {"names": ["new"]}}, include_items={"item_ids": ["a", "b"]}))
    assert query.item_filter == HasTag(frozenset(["new"]))
    assert list(query.include_item_ids) == ["a", "b"]


def test_a_request_may_weigh_sources_and_name_interests():
    weights = [{"source": "SOURCE_TRENDING", "weight": 0.5}, {"source": "SOURCE_ENCODER", "weight": 0}]
    query = read_query(recommend(source_weights=weights, interests={"tags": {"names": ["new"]}}))
    assert query.source_weights == ((Source.ENCODER, 0.0), (Source.TRENDING, 0.5))
    assert query.interests == HasTag(frozenset(["new"]))


@pytest.mark.parametrize(
    ("weights", "field", "reason"),
    [
        ([{"weight": 1}], "source_weights[0].source", "0 is not a source that can be weighted"),
        ([{"source": 99, "weight": 1}], "source_weights[0].source", "99 is not a source that can be weighted"),
        ([{"source": 10, "weight": 1}], "source_weights[0].source", "10 is not a source that can be weighted"),
        ([{"source": 1}, {"source": 1}], "source_weights[1].source", "ENCODER is named twice"),
        ([{"source": 1, "weight": -1}], "source_weights[0].weight", "is -1.0; 0 to 10 is allowed"),
        ([{"source": 1, "weight": 10.5}], "source_weights[0].weight", "is 10.5; 0 to 10 is allowed"),
        ([{"source": 1, "weight": float("nan")}], "source_weights[0].weight", "is nan; 0 to 10 is allowed"),
    ],
)
def test_a_wrong_weight_is_named_where_it_stands(weights, field, reason):
    with pytest.raises(InvalidInput) as caught:
        read_query(recommend(source_weights=weights))
    assert caught.value.violations == (FieldViolation(field, reason),)


def test_what_was_seen_is_included_where_that_is_said():
    assert read_query(recommend(include_seen=True)).include_seen
    assert not read_query(recommend()).include_seen


def test_a_wrong_filter_is_named_where_it_stands():
    message = recommend(filter={"all_of": {"filters": [{"price": {"min": 2, "max": 1}}]}})
    wrong = FieldViolation("filter.all_of.filters[0].price", "min 2 is greater than max 1")
    assert violations(read_query, message) == [wrong]


def test_what_a_query_leaves_out_has_a_default():
    query = read_query(recommend())
    assert (query.limit, query.min_similarity) == (10, None)
    assert (query.item_filter, query.include_item_ids) == (None, None)
    assert list(read_query(recommend(include_items={})).include_item_ids) == []
    assert query.limit == Query("ann").limit
    assert requests.read_similar_users(similar_users()) == ("user:ann", 10, None)


@pytest.mark.parametrize("read", [requests.read_query, requests.read_rank_query])
@pytest.mark.parametrize("default", [NOW_S, None])
def test_a_request_happens_when_it_says_or_else_when_it_is_received(read, default):
    message = recommend() if read is requests.read_query else rank()
    assert read(message, default).request_time_s == default
    message.request_time.FromMilliseconds(1_500)
    assert read(message, default).request_time_s == 1.5
    message.request_time.seconds = -2
    wrong = FieldViolation("request_time", "-2 s is not a time since 1970-01-01")
    assert violations(lambda one: read(one, default), message) == [wrong]


@pytest.mark.parametrize("limit", [-1, 0, 1001])
@pytest.mark.parametrize(("check", "message"), [(read_query, recommend), (requests.read_similar_users, similar_users)])
def test_a_limit_is_1_to_1000(check, message, limit):
    assert violations(check, message(limit=limit)) == [FieldViolation("limit", f"is {limit}; 1 to 1000 are allowed")]


@pytest.mark.parametrize("limit", [1, 1000])
def test_the_limits_of_a_limit_are_allowed(limit):
    assert read_query(recommend(limit=limit)).limit == limit
    assert requests.read_similar_users(similar_users(limit=limit)) == ("user:ann", limit, None)


@pytest.mark.parametrize("value", [math.nan, 1.1, -1.1, math.inf])
@pytest.mark.parametrize(("check", "message"), [(read_query, recommend), (requests.read_similar_users, similar_users)])
def test_a_similarity_is_a_cosine(check, message, value):
    [wrong] = violations(check, message(min_similarity=value))
    assert wrong == FieldViolation("min_similarity", f"is {value}; -1 to 1 is allowed")


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_the_limits_of_a_similarity_are_allowed(value):
    assert read_query(recommend(min_similarity=value)).min_similarity == value
    assert requests.read_similar_users(similar_users(min_similarity=value)) == ("user:ann", 10, value)


def test_a_session_can_ask_where_there_is_no_user():
    query = read_query(recommend(user_id="", session_id="s1"))
    assert (query.user_id, query.session_id, query.owner) == ("", "s1", "session:s1")
    assert read_query(recommend(session_id="s1")).owner == "user:ann"
    assert requests.read_rank_query(rank(user_id="", session_id="s1"), None).owner == "session:s1"
    assert requests.read_similar_users(similar_users(user_id="", session_id="s1"))[0] == "session:s1"
    wrong = FieldViolation("session_id", "is 513 bytes long; at most 512 are allowed")
    assert violations(read_query, recommend(user_id="", session_id="x" * 513)) == [wrong]


def test_a_surface_is_short():
    assert read_query(recommend(surface="x" * 64)).surface == "x" * 64
    wrong = FieldViolation("surface", "is 65 bytes long; at most 64 are allowed")
    assert violations(read_query, recommend(surface="x" * 65)) == [wrong]


def test_an_owner_is_a_user_or_a_session():
    assert requests.read_owner("owner", users_pb2.Owner(user_id="ann")) == "user:ann"
    assert requests.read_owner("owner", users_pb2.Owner(session_id="ann")) == "session:ann"
    nobody = FieldViolation("owner", "must name a user_id or a session_id")
    assert violations(lambda one: requests.read_owner("owner", one), users_pb2.Owner()) == [nobody]
    empty = FieldViolation("source.session_id", "must not be empty")
    assert violations(lambda one: requests.read_owner("source", one), users_pb2.Owner(session_id="")) == [empty]


def test_a_page_token_comes_back_as_the_place_it_was_made_of():
    place = Place(1_700_000_000.25, 7)
    message = users_pb2.ListUserEventsRequest(page_size=3, page_token=requests.page_token(place))
    assert requests.read_page(message) == (3, place)
    assert requests.read_page(users_pb2.ListUserEventsRequest()) == (100, None)


@pytest.mark.parametrize("token", ["x", "00", "zz" * 16, "00" * 17])
def test_a_page_token_of_somebody_elses_is_refused(token):
    wrong = FieldViolation("page_token", "is not one that this service has given")
    assert violations(requests.read_page, users_pb2.ListUserEventsRequest(page_token=token)) == [wrong]


@pytest.mark.parametrize("size", [-1, 0, 1_001])
def test_a_page_has_1_to_1000_events(size):
    wrong = FieldViolation("page_size", f"is {size}; 1 to 1000 are allowed")
    assert violations(requests.read_page, users_pb2.ListUserEventsRequest(page_size=size)) == [wrong]


def test_only_so_many_ids():
    read_query(recommend(exclude_item_ids=["a"] * 10_000, session_item_ids=["a"] * 1_000))
    assert violations(read_query, recommend(exclude_item_ids=["a"] * 10_001)) == [
        FieldViolation("exclude_item_ids", "holds 10001 ids; 0 to 10000 are allowed")
    ]
    assert violations(read_query, recommend(session_item_ids=["a"] * 1_001)) == [
        FieldViolation("session_item_ids", "holds 1001 ids; 0 to 1000 are allowed")
    ]


def test_a_wrong_id_is_named_by_its_place():
    assert violations(read_query, recommend(session_item_ids=["a", "", "é" * 257])) == [
        FieldViolation("session_item_ids[1]", "must not be empty"),
        FieldViolation("session_item_ids[2]", "is 514 bytes long; at most 512 are allowed"),
    ]


def test_ten_wrong_ids_are_enough_to_name():
    found = violations(read_query, recommend(exclude_item_ids=[""] * 100))
    assert [wrong.field for wrong in found] == [f"exclude_item_ids[{place}]" for place in range(10)]


def test_everything_wrong_with_a_query_is_said_at_once():
    message = recommend(
        user_id="", limit=0, min_similarity=2, exclude_item_ids=["a", ""], session_item_ids=["a"] * 1_001, filter={}
    )
    with pytest.raises(InvalidInput) as caught:
        read_query(message)
    assert [wrong.field for wrong in caught.value.violations] == [
        "user_id",
        "limit",
        "min_similarity",
        "exclude_item_ids[1]",
        "session_item_ids",
        "filter",
    ]
    assert "user_id: must not be empty where there is no session_id; limit: is 0; 1 to 1000 are allowed; " in str(
        caught.value
    )


def test_a_list_to_rank_holds_no_item_twice():
    read_rank_query(rank(item_ids=["a", "b"]))
    assert violations(read_rank_query, rank(item_ids=["a", "b", "a"])) == [
        FieldViolation("item_ids", "an item is listed twice")
    ]


def test_a_list_to_rank_holds_something():
    assert violations(read_rank_query, rank(item_ids=[])) == [
        FieldViolation("item_ids", "holds 0 ids; 1 to 10000 are allowed")
    ]


def test_everything_wrong_with_a_rank_is_said_at_once():
    message = rank(user_id="", item_ids=["", ""], session_item_ids=[""])
    assert [wrong.field for wrong in violations(read_rank_query, message)] == [
        "user_id",
        "item_ids[0]",
        "item_ids[1]",
        "item_ids",
        "session_item_ids[0]",
    ]


def test_a_batch_holds_1_to_10000_events():
    one = events_pb2.Event(event_id="e1")
    requests.check_batch([one])
    requests.check_batch([one] * 10_000)
    for count in (0, 10_001):
        assert violations(requests.check_batch, [one] * count) == [
            FieldViolation("events", f"holds {count} events; 1 to 10000 are allowed")
        ]


def test_a_message_of_a_stream_holds_1_to_1000_requests():
    def message(count):
        return recommendation_pb2.StreamRecommendRequest(requests=[recommend()] * count)

    requests.check_rows(message(1))
    requests.check_rows(message(1_000))
    for count in (0, 1_001):
        assert violations(requests.check_rows, message(count)) == [
            FieldViolation("requests", f"holds {count} requests; 1 to 1000 are allowed")
        ]


def test_an_event_is_read_as_it_was_sent():
    message = events_pb2.Event(
        event_id="e1",
        user_id="ann",
        item_id="a",
        type=events_pb2.EVENT_TYPE_CUSTOM,
        custom_type="bookmarked",
        value=0.0,
        session_id="s",
        attribution_token="t",
    )
    message.event_time.FromMilliseconds(1_500)
    event = requests.read_event(message)
    assert (event.event_id, event.user_id, event.item_id) == ("e1", "ann", "a")
    assert (event.type, event.custom_type, event.time_s, event.value) == (12, "bookmarked", 1.5, 0.0)
    assert (event.session_id, event.attribution_token) == ("s", "t")


def test_what_an_event_leaves_out_is_absent_and_not_zero():
    event = requests.read_event(events_pb2.Event())
    assert event.value is None
    assert math.isnan(event.time_s)
