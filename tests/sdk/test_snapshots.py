"""What a server can serve, and having it serve another snapshot."""

import pickle
import threading
from datetime import UTC, datetime

import pytest
from google.rpc import code_pb2

from longtide import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SnapshotInfo,
    UnavailableError,
)
from longtide.v1 import snapshots_pb2

OLD = SnapshotInfo(
    snapshot_id="old",
    created_time=datetime(2026, 11, 1, 12, 0, 0, 250_000, UTC),
    active=True,
    user_count=3,
    item_count=2,
    event_count=7,
    metrics={"fusion": {"hr@10": 0.5, "ndcg@10": 0.25}, "encoder": {"hr@10": 0.125}},
)


def test_snapshots_are_listed_in_the_servers_order(client):
    new, old = client.list_snapshots()
    assert (new.snapshot_id, new.active) == ("new", False)
    assert old == OLD


def test_a_snapshot_says_what_it_is(client):
    assert client.get_snapshot("old") == OLD


def test_a_snapshot_is_a_plain_value():
    assert {OLD: "kept"}[pickle.loads(pickle.dumps(OLD))] == "kept"


def test_an_activated_snapshot_is_the_one_that_is_served(client, server):
    assert client.activate_snapshot("new").active
    assert [one.snapshot_id for one in client.list_snapshots() if one.active] == ["new"]
    client.activate_snapshot("new")
    client.activate_snapshot("old")
    assert client.get_snapshot("old") == OLD


def test_an_unknown_snapshot_is_not_found(client):
    for call in (client.get_snapshot, client.activate_snapshot):
        with pytest.raises(NotFoundError, match="there is no snapshot 'older'"):
            call("older")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.FAILED_PRECONDITION, FailedPreconditionError),
        (code_pb2.INVALID_ARGUMENT, InvalidArgumentError),
        (code_pb2.UNAVAILABLE, UnavailableError),
    ],
)
def test_an_activation_that_fails_is_told_and_not_tried_again(client, server, rich_status, code, kind):
    server.failures.append(rich_status(code, "in plain words"))
    with pytest.raises(kind, match="in plain words"):
        client.activate_snapshot("new")
    assert server.requests == [snapshots_pb2.ActivateSnapshotRequest(snapshot_id="new")]


def test_asking_what_there_is_is_tried_again(client, server, rich_status):
    server.failures.extend([rich_status(code_pb2.UNAVAILABLE, "starting")] * 2)
    assert len(client.list_snapshots()) == 2
    assert len(server.requests) == 3


def test_an_activation_outlasts_the_clients_timeout_but_not_its_own(connect, server):
    with connect(server.target, timeout=0.2) as client:
        server.holding = True
        with pytest.raises(DeadlineExceededError):
            client.list_snapshots()
        with pytest.raises(DeadlineExceededError):
            client.activate_snapshot("new", timeout=0.2)
        threading.Timer(0.6, server.released.set).start()
        assert client.activate_snapshot("new").snapshot_id == "new"


@pytest.mark.parametrize("wrong", [None, 7, b"new"])
def test_a_name_that_cannot_be_sent_is_refused_at_once(client, server, wrong):
    for call in (client.get_snapshot, client.activate_snapshot):
        with pytest.raises(TypeError, match="snapshot_id must be a str"):
            call(wrong)
    assert server.requests == []
