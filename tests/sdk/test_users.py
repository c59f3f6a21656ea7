"""What is kept of a person, and anonymous sessions, through a real server."""

from datetime import UTC, datetime

import pytest
from google.rpc import code_pb2

from longtide import DeletedData, Event, FailedPreconditionError, UnavailableError
from longtide.v1 import users_pb2

EVENTS = [
    Event("ada", "book", "rate", value=4.5, time=1_700_000_000.25, event_id="e1", attribution_token="t"),
    Event("ada", "song", "custom", custom_type="hummed", time=1_700_000_001, event_id="e2", session_id="s"),
    Event("ada", "film", "watch", time=1_700_000_002, event_id="e3"),
]
ADA = users_pb2.Owner(user_id="ada")
SESSION = users_pb2.Owner(session_id="s1")


def test_events_come_back_as_they_were_written_page_by_page(client, server):
    client.write_events(EVENTS)
    server.requests.clear()
    assert list(client.list_user_events("ada", page_size=2)) == EVENTS
    assert server.requests == [
        users_pb2.ListUserEventsRequest(owner=ADA, page_size=2),
        users_pb2.ListUserEventsRequest(owner=ADA, page_size=2, page_token="2"),
    ]


def test_only_as_many_pages_are_read_as_are_used(client, server):
    client.write_events(EVENTS)
    server.requests.clear()
    listed = client.list_user_events(session_id="s1", page_size=1)
    assert next(listed) == EVENTS[0]
    listed.close()
    assert server.requests == [users_pb2.ListUserEventsRequest(owner=SESSION, page_size=1)]


def test_everything_is_exported(client, server):
    client.write_events(EVENTS)
    assert client.export_user_data("ada") == EVENTS
    assert server.requests[-1] == users_pb2.ExportUserDataRequest(owner=ADA)


def test_an_export_that_fails_says_why(client, server, rich_status):
    server.failures.append(rich_status(code_pb2.UNAVAILABLE, "the disk is gone"))
    with pytest.raises(UnavailableError, match="the disk is gone"):
        client.export_user_data("ada")


def test_a_session_or_a_user_is_merged_into_a_user(client, server):
    assert client.merge_users("ada", session_id="s1") == 7
    assert server.requests[-1] == users_pb2.MergeUsersRequest(source=SESSION, user_id="ada")
    client.merge_users("ada", source_user_id="guest")
    assert server.requests[-1].source == users_pb2.Owner(user_id="guest")


def test_what_is_somebody_elses_is_not_merged(client):
    with pytest.raises(FailedPreconditionError, match="belongs to somebody else"):
        client.merge_users("bob", session_id="s1")


def test_a_deletion_says_what_went(client):
    client.write_events(EVENTS)
    assert client.delete_user_data("ada") == DeletedData(3, datetime.fromtimestamp(1_700_000_000, UTC))
    assert client.delete_user_data("ada").deleted_count == 0


def test_a_deletion_is_not_retried_since_it_may_have_happened(client, server, rich_status):
    server.failures.append(rich_status(code_pb2.UNAVAILABLE, "the answer was lost"))
    with pytest.raises(UnavailableError, match="lost"):
        client.delete_user_data(session_id="s1")
    assert server.requests == [users_pb2.DeleteUserDataRequest(owner=SESSION)]


def test_either_a_user_or_a_session_is_named(client):
    for wrong in ({}, {"user_id": "ada", "session_id": "s"}):
        with pytest.raises(ValueError, match="either a user or a session"):
            client.delete_user_data(**wrong)
        with pytest.raises(ValueError, match="either a user or a session"):
            list(client.list_user_events(**wrong))


def test_a_merge_names_whose_history_is_joined(client, server):
    for wrong in ({}, {"session_id": "s", "source_user_id": "guest"}):
        with pytest.raises(ValueError, match="say whose history it is: either session_id or source_user_id"):
            client.merge_users("ann", **wrong)
    assert server.requests == []


def test_an_anonymous_session_can_write_and_ask(client, server):
    event = Event(None, "book", session_id="s1")
    assert (event.user_id, event.session_id) == ("", "s1")
    client.recommend(session_id="s1")
    assert (server.requests[-1].user_id, server.requests[-1].session_id) == ("", "s1")
    client.rank("", ["a"], session_id="s1")
    assert (server.requests[-1].user_id, server.requests[-1].session_id) == ("", "s1")
    client.similar_users(session_id="s1")
    assert (server.requests[-1].user_id, server.requests[-1].session_id) == ("", "s1")


def test_an_answer_knows_where_it_will_be_shown(client, server):
    client.recommend("ada", 2, surface="home")
    assert server.requests[-1].surface == "home"
    assert len(list(client.recommend_many(["ada", "bob"], 2, surface="mail"))) == 2
    assert [one.surface for one in server.requests[-1].requests] == ["mail", "mail"]
