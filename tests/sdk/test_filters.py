"""Conditions on items: how they are written, joined, refused and sent."""

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone

import pytest

from longtide import (
    AllOf,
    AnyOf,
    Available,
    Brands,
    Category,
    Domains,
    FlagAttribute,
    ItemFilter,
    Languages,
    NoneOf,
    NumberAttribute,
    Price,
    Published,
    Source,
    Tags,
    TextAttribute,
)
from longtide._filter_messages import filter_message
from longtide.v1 import catalog_pb2, recommendation_pb2

a, b, c = Tags("a"), Tags("b"), Tags("c")


def test_operators_join_filters():
    assert a & b == AllOf(a, b)
    assert a | b == AnyOf(a, b)
    assert ~a == NoneOf(a)
    assert a & ~b | c == AnyOf(AllOf(a, NoneOf(b)), c)


def test_a_long_row_of_operators_is_one_level():
    assert a & b & c & (a & b) == AllOf(a, b, c, a, b)
    assert a | b | c == AnyOf(a, b, c)
    assert a & (b | c) == AllOf(a, AnyOf(b, c))


def test_turning_round_twice_comes_back():
    assert ~~a == AnyOf(a)
    assert ~(a | b) == NoneOf(a, b)
    assert ~(a & b) == NoneOf(AllOf(a, b))
    assert ~NoneOf(a, b) == AnyOf(a, b)


@pytest.mark.parametrize("join", [lambda: a and b, lambda: a or b, lambda: not a])
def test_words_do_not_join_filters(join):
    with pytest.raises(TypeError, match="neither true nor false"):
        join()


def test_filters_are_values():
    wanted = Category("Beauty", "Masks") & Price(min=1) & ~FlagAttribute("refill")
    assert wanted == Category("Beauty", "Masks") & Price(min=1.0) & ~FlagAttribute("refill", True)
    assert len({wanted, copy.deepcopy(wanted), pickle.loads(pickle.dumps(wanted))}) == 1


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (Category("Beauty", "Masks"), {"category": {"names": ["Beauty", "Masks"]}}),
        (Tags("a", "b"), {"tags": {"names": ["a", "b"]}}),
        (Brands("Lumo"), {"brands": {"names": ["Lumo"]}}),
        (Domains("news"), {"domains": {"names": ["news"]}}),
        (Languages("de", "pt-BR"), {"languages": {"names": ["de", "pt-BR"]}}),
        (Price(max=0), {"price": {"max": 0}}),
        (Price(min=1, max=2.5), {"price": {"min": 1, "max": 2.5}}),
        (Published(start=1.5), {"publish_time": {"start_time": {"seconds": 1, "nanos": 500_000_000}}}),
        (Available(), {"availability": catalog_pb2.AVAILABILITY_AVAILABLE}),
        (Available(False), {"availability": catalog_pb2.AVAILABILITY_UNAVAILABLE}),
        (
            TextAttribute("colour", "red", "green"),
            {"attribute": {"name": "colour", "texts": {"names": ["red", "green"]}}},
        ),
        (NumberAttribute("grams", min=0), {"attribute": {"name": "grams", "number": {"min": 0}}}),
        (FlagAttribute("refill"), {"attribute": {"name": "refill", "flag": True}}),
        (FlagAttribute("refill", False), {"attribute": {"name": "refill", "flag": False}}),
        (AllOf(a, b), {"all_of": {"filters": [{"tags": {"names": ["a"]}}, {"tags": {"names": ["b"]}}]}}),
        (AnyOf(a), {"any_of": {"filters": [{"tags": {"names": ["a"]}}]}}),
        (NoneOf(a), {"none_of": {"filters": [{"tags": {"names": ["a"]}}]}}),
    ],
)
def test_every_filter_reaches_the_wire(wanted, sent):
    expected = catalog_pb2.ItemFilter(**sent)
    message = catalog_pb2.ItemFilter.FromString(filter_message(wanted).SerializeToString())
    assert message == expected
    assert message.WhichOneof("condition")


def test_every_condition_of_the_contract_can_be_written():
    kinds = [AllOf(a), AnyOf(a), NoneOf(a), Category("x"), a, Brands("x"), Domains("x"), Languages("x"), Price(min=1)]
    kinds += [Published(end=1), Available(), FlagAttribute("x")]
    written = {filter_message(one).WhichOneof("condition") for one in kinds}
    assert written == {field.name for field in catalog_pb2.ItemFilter.DESCRIPTOR.oneofs[0].fields}


def test_times_are_sent_in_utc():
    noon = datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1)))
    assert Published(start=noon) == Published(start=datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert filter_message(Published(end=noon)).publish_time.end_time.ToJsonString() == "2026-01-31T12:00:00Z"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Tags(["a"]), TypeError, r"names\[0\] must be a str, not list"),
        (lambda: Category("x", "\ud800"), ValueError, r"names\[1\] cannot be encoded as UTF-8"),
        (lambda: Price(max="5"), TypeError, "max must be a number, not str"),
        (lambda: Published(start=datetime(2026, 1, 1)), ValueError, "start must know its time zone"),
        (lambda: Available("no"), TypeError, "available must be True or False, not str: 'no'"),
        (lambda: FlagAttribute("refill", 1), TypeError, "flag must be True or False, not int: 1"),
        (lambda: FlagAttribute(7), TypeError, "name must be a str, not int"),
        (lambda: TextAttribute("colour", 7), TypeError, r"texts\[0\] must be a str, not int"),
        (lambda: AllOf(a, "b"), TypeError, r"filters\[1\] must be a filter such as longtide.Category, not str: 'b'"),
        (lambda: a & "b", TypeError, "a part must be a filter"),
        (lambda: filter_message({"tags": ["a"]}), TypeError, "filter must be a filter such as longtide.Category"),
        (lambda: filter_message(ItemFilter()), TypeError, "filter must be one of the SDK's own kinds, not ItemFilter"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(make, error, words):
    with pytest.raises(error, match=words):
        make()


# Asking with them


def test_a_request_says_which_items_may_appear(client, server):
    client.recommend("ada", filter=a & Price(max=5), include_item_ids=iter(["x", "y"]))
    assert server.requests[0].filter == filter_message(AllOf(a, Price(max=5)))
    assert list(server.requests[0].include_items.item_ids) == ["x", "y"]


def test_without_them_every_item_may_appear(client, server):
    client.recommend("ada")
    assert not server.requests[0].HasField("filter")
    assert not server.requests[0].HasField("include_items")


def test_many_users_are_asked_for_with_the_same_filter(client, server):
    list(client.recommend_many(["ada", "bob"], 3, filter=a, include_item_ids=(name for name in "xy"), surface="home"))
    rows = server.requests[0].requests
    assert [row.user_id for row in rows] == ["ada", "bob"]
    assert {(row.limit, row.surface, row.filter.WhichOneof("condition")) for row in rows} == {(3, "home", "tags")}
    assert [list(row.include_items.item_ids) for row in rows] == [["x", "y"]] * 2


@pytest.mark.parametrize("ask", ["recommend", "recommend_many"])
def test_an_empty_list_of_allowed_items_is_not_taken_for_none(client, server, ask):
    if ask == "recommend":
        client.recommend("ada", include_item_ids=[])
        [request] = server.requests
    else:
        list(client.recommend_many(["ada"], include_item_ids=[]))
        [request] = server.requests[0].requests
    assert request.HasField("include_items")
    assert list(request.include_items.item_ids) == []


def test_a_request_says_how_much_sources_count_and_what_somebody_likes(client, server):
    client.recommend("ada", source_weights={"trending": 0.5, Source.ENCODER: 0}, interests=a)
    weights = [(one.source, one.weight) for one in server.requests[0].source_weights]
    assert weights == [(recommendation_pb2.SOURCE_TRENDING, 0.5), (recommendation_pb2.SOURCE_ENCODER, 0.0)]
    assert server.requests[0].interests == filter_message(a)
    list(client.recommend_many(["ada"], source_weights={"content": 1}))
    assert [one.source for one in server.requests[1].requests[0].source_weights] == [recommendation_pb2.SOURCE_CONTENT]


@pytest.mark.parametrize("name", ["magic", "unknown"])
def test_what_is_no_source_is_refused_by_name(client, server, name):
    with pytest.raises(ValueError, match=f"'{name}' is not a source: encoder, neighbors"):
        client.recommend("ada", source_weights={name: 1})
    assert server.requests == []


def test_what_was_seen_is_asked_for_by_name(client, server):
    client.recommend("ada", include_seen=True)
    client.recommend("ada")
    list(client.recommend_many(["ada"], include_seen=True))
    assert [request.include_seen for request in server.requests[:2]] == [True, False]
    assert [row.include_seen for row in server.requests[2].requests] == [True]


@pytest.mark.parametrize("source", ["exploration", "repeats"])
def test_a_source_that_cannot_be_weighted_is_refused(client, source):
    with pytest.raises(ValueError, match=f"'{source}' is not a source"):
        client.recommend("ada", source_weights={source: 1})
