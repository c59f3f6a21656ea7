"""One server over the real TorchServe: written events are felt at once, and every way in gives the same answer."""

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from longtide import Client, Event, InvalidArgumentError, InvalidEventsError, Source
from longtide_server.encoder import AnswerSizes, Steps
from longtide_server.encoder.hosted import LocalEncoder, TorchServeEncoder
from longtide_server.snapshot import ENCODER, load_snapshot
from longtide_server.torchserve.client import TorchServeClient

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
RING = [f"item-{letter}" for letter in "abcdefghijkl"]


def ids(answer) -> list[str]:
    return [item.item_id for item in answer]


# Written, then felt


def test_an_event_takes_its_item_away_and_changes_the_order(client):
    before = client.recommend("user-0", 12)
    assert before[0].item_id == "item-f"  # user-0 went from a to e
    assert set(ids(before)) == set(RING) - set(RING[:5])

    client.write_events([Event("user-0", "item-i", attribution_token=before.attribution_token)])
    after = client.recommend("user-0", 12)
    assert set(ids(after)) == set(ids(before)) - {"item-i"}
    assert after[0].item_id == "item-j"
    assert ids(after) != [item for item in ids(before) if item != "item-i"]
    assert not after.degraded
    assert after.snapshot_id == before.snapshot_id


def test_a_repeated_event_changes_nothing(client):
    event = Event("user-1", "item-a")
    assert client.write_events([event]).written_count == 1
    before = ids(client.recommend("user-1", 12))
    assert client.write_events([event]).duplicate_count == 1
    assert ids(client.recommend("user-1", 12)) == before


def test_a_newcomer_gets_what_is_popular_and_after_one_event_what_follows_it(client):
    assert len(client.recommend("newcomer", 12)) == 12
    client.write_events([Event("newcomer", "item-c")])
    assert client.recommend("newcomer", 12)[0].item_id == "item-d"


def test_a_late_event_takes_its_place_in_time(client, world):
    first, *_, last = (event for event in world.events() if event.user_id == "user-2")
    before = ids(client.recommend("user-2", 12))
    client.write_events([Event("user-2", "item-k", time=first.time)])
    after = ids(client.recommend("user-2", 12))
    assert after[0] == before[0] == RING[RING.index(last.item_id) + 1]  # the last item is still the last
    assert set(after) == set(before) - {"item-k"}


def test_an_answer_says_title_sources_and_who_went_on_to_it(client):
    first = client.recommend("user-3", 12)[0]
    assert first.title == f"Title of {first.item_id}"
    assert Source.ENCODER in {share.source for share in first.sources}
    assert all(0 < share.probability <= 1 for share in first.sources)
    assert all(neighbor.user_id != "user-3" for neighbor in first.neighbors)
    similar = client.similar_users("user-3", 3)
    assert similar[0].similarity > 0.5
    assert "user-3" not in [user.user_id for user in similar]


def test_session_items_count_for_one_request_only(client):
    before = ids(client.recommend("user-4", 12))
    during = ids(client.recommend("user-4", 12, session_items=["item-a"]))
    assert set(during) == set(before) - {"item-a"}
    assert during != [item for item in before if item != "item-a"]
    assert ids(client.recommend("user-4", 12)) == before


def test_wrong_requests_and_events_name_the_field(client):
    with pytest.raises(InvalidArgumentError) as caught:
        client.recommend("", 12)
    assert caught.value.violations[0].field == "user_id"
    with pytest.raises(InvalidEventsError, match="value"):
        client.write_events([Event("user-5", "item-a", "rate")])


def test_the_command_line_asks_the_server(client, server_address, command):
    answer = json.loads(command("recommend", "user-6", "--target", server_address, "--limit", 3, "--json"))
    assert [entry["item_id"] for entry in answer["entries"]] == ids(client.recommend("user-6", 3))
    table = command("recommend", "user-6", "--target", server_address)
    assert "Title of item-l" in table


# A client made from the .proto files alone

GENERATED_CLIENT = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import grpc
from longtide.v1 import events_pb2, events_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc

channel = grpc.insecure_channel(sys.argv[2])
events = events_pb2_grpc.EventServiceStub(channel)
recommendations = recommendation_pb2_grpc.RecommendationServiceStub(channel)
ask = recommendation_pb2.RecommendRequest(user_id="user-7", limit=12)
before = recommendations.Recommend(ask, timeout=20)
event = events_pb2.Event(event_id="generated-1", user_id="user-7", item_id="item-a", type=events_pb2.EVENT_TYPE_VIEW)
event.event_time.FromSeconds(int(time.time()))
written = events.WriteEvents(events_pb2.WriteEventsRequest(events=[event]), timeout=20)
after = recommendations.Recommend(ask, timeout=20)
print(json.dumps({
    "written": written.written_count,
    "before": [item.item_id for item in before.recommendations],
    "after": [item.item_id for item in after.recommendations],
    "degraded": after.degraded,
    "from": events_pb2.__file__,
    "sdk": [name for name in sys.modules if name.startswith("longtide._")],
}))
"""


def test_a_client_generated_from_the_protos_sees_the_same(server_address, client, tmp_path):
    protos = [str(path) for path in sorted((PROTO / "longtide" / "v1").glob("*.proto"))]
    outs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outs, *protos], check=True, timeout=60)

    # Beside an installed SDK, a folder without this file would be no match for the SDK's package.
    for package in ("longtide", "longtide/v1"):
        (tmp_path / package / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-I", "-c", GENERATED_CLIENT, str(tmp_path), server_address],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)

    assert said["sdk"] == []
    assert said["from"] == str(tmp_path / "longtide" / "v1" / "events_pb2.py")
    assert (said["written"], said["degraded"]) == (1, False)
    assert said["before"][0] == "item-a"  # user-7 went from h to l, and the ring closes
    assert "item-a" not in said["after"]
    assert said["after"][0] == "item-b"
    assert said["after"] == ids(client.recommend("user-7", 12))


# The same numbers everywhere


def test_everybody_at_once_gets_what_predict_writes(client, world, tmp_path, command):
    untouched = world.users[12:]
    command("predict", world.snapshot, world.log, "--out", tmp_path / "lists.jsonl", "--k", 10)
    predicted = {line["user_id"]: line["items"] for line in map(json.loads, (tmp_path / "lists.jsonl").open())}
    assert list(predicted) == world.users

    answered = list(client.recommend_many(untouched, 10))
    assert [answer.user_id for answer in answered] == untouched
    assert {answer.user_id: ids(answer) for answer in answered} == {user: predicted[user] for user in untouched}
    for answer in answered:
        assert ids(client.recommend(answer.user_id, 10)) == ids(answer)


def test_at_a_time_everybody_gets_what_predict_writes_for_it(client, world, tmp_path, command):
    """Everyone's events were an hour apart, so that is the wait that training knows something of."""
    untouched = world.users[12:]
    last = {event.user_id: event.time for event in world.events()}
    times = {user: last[user] + timedelta(hours=1) for user in untouched}
    lines = ["user_id,timestamp", *(f"{user},{at.timestamp():.0f}" for user, at in times.items())]
    (tmp_path / "times.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "lists.jsonl"
    command("predict", world.snapshot, world.log, "--out", out, "--k", 10, "--request-times", tmp_path / "times.csv")
    predicted = {line["user_id"]: line["items"] for line in map(json.loads, out.open())}

    for user, at in times.items():
        unknown = next(client.recommend_many([user], 10))
        alone, (row,) = client.recommend(user, 10, request_time=at), client.recommend_many([user], 10, request_time=at)
        assert ids(alone) == ids(row) == predicted[user]
        assert [item.score for item in alone] == [item.score for item in row]
        assert [item.score for item in alone] != [item.score for item in unknown]


def test_torchserve_and_the_local_encoder_give_the_same_lists(client, world, start):
    untouched = world.users[12:]
    with Client(start(None, "--encoder", "local").wait_serving(), timeout=20.0) as local:
        local.write_events(world.events())
        for hosted, here in zip(client.recommend_many(untouched, 12), local.recommend_many(untouched, 12), strict=True):
            assert ids(hosted) == ids(here)
            assert [item.score for item in hosted] == pytest.approx([item.score for item in here], abs=1e-5)


async def test_torchserve_and_the_local_encoder_give_the_same_numbers(client, torchserve_address, world):
    snapshot = load_snapshot(world.snapshot)
    rng = np.random.default_rng(0)
    batch = [
        Steps(
            items=rng.integers(1, 13, count).astype(np.int32),
            types=np.ones(count, np.uint8),
            gaps=rng.uniform(0, 1e5, count).astype(np.float32),
            values=np.full(count, np.nan, np.float32),
            state=np.zeros(snapshot.manifest.encoder.state_size, np.float32),
            top_n=12,
        )
        for count in (1, 7, 300)
    ]
    sizes = AnswerSizes.of(snapshot.embeddings)
    hosted = TorchServeEncoder(TorchServeClient(torchserve_address), sizes)
    local = LocalEncoder(snapshot.path / ENCODER, sizes)
    there, here = await asyncio.gather(hosted.encode(batch, 20.0), local.encode(batch, 20.0))
    await asyncio.gather(hosted.close(), local.close())
    for one, other in zip(there, here, strict=True):
        np.testing.assert_allclose(one.query, other.query, atol=1e-5)
        np.testing.assert_allclose(one.state, other.state, atol=1e-5)
        np.testing.assert_allclose(one.log_probability, other.log_probability, atol=1e-5)
        assert one.items.tolist() == other.items.tolist()
        assert one.log_z == pytest.approx(other.log_z, abs=1e-5)


# Seen from outside


def test_what_the_server_does_can_be_scraped(client, metrics_address):
    client.write_events([Event("watched", "item-a")])
    client.recommend("watched", 12)
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=20) as page:
        shown = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#")
    assert float(shown['longtide_requests_total{code="OK",rpc="Recommend"}']) >= 1
    assert float(shown["longtide_encoder_call_duration_seconds_count"]) >= 1
    assert float(shown["longtide_store_up"]) == 1
    assert float(shown["longtide_encoder_breaker_open"]) == 0


# Imported and anonymous


def test_a_log_is_imported_into_a_running_server(client, server_address, command, tmp_path):
    log = tmp_path / "more.csv"
    log.write_text("user_id,session_id,item_id,timestamp\nimported,,item-a,1700000000\n,visit-1,item-c,1700000000\n")
    for found in ((2, 0), (0, 2)):
        told = json.loads(
            command("import", log, "--target", server_address, "--json", "--bad-rows", tmp_path / "bad.csv")
        )
        assert (told["written"], told["duplicates"], told["bad"]) == (*found, 0)
    assert client.recommend("imported", 12)[0].item_id == "item-b"
    assert client.recommend(session_id="visit-1", limit=12)[0].item_id == "item-d"
    client.merge_users("imported", session_id="visit-1")
    assert [event.item_id for event in client.list_user_events("imported")] == ["item-c", "item-a"]
    assert client.delete_user_data("imported").deleted_count == 2
    assert len(client.recommend("imported", 12)) == 12


def test_a_list_of_users_is_scored_into_a_file(client, server_address, command, tmp_path):
    (tmp_path / "users.txt").write_text("user-0\nuser-3\nnobody\n")
    where = ("--out", tmp_path / "recs.parquet", "--target", server_address, "--limit", "3")
    told = json.loads(command("score", tmp_path / "users.txt", *where, "--json"))
    assert told == {"users": 3, "earlier": 0, "refused": 0, "degraded": 0}
    rows = pq.read_table(tmp_path / "recs.parquet").to_pylist()
    assert [row["user_id"] for row in rows] == ["user-0", "user-3", "nobody"]
    answers = client.recommend_many(["user-0", "user-3", "nobody"], 3)
    assert [row["item_ids"] for row in rows] == [ids(answer) for answer in answers]


# What the guides show


@pytest.mark.parametrize(("guide", "examples"), [("README.md", 1), ("sdk/README.md", 5)])
def test_the_examples_of_a_guide_run_one_after_the_other(server_address, guide, examples):
    found = re.findall(r"```python\n(.*?)```", (ROOT / guide).read_text(), re.DOTALL)
    assert len(found) == examples
    names: dict[str, object] = {"__name__": "__main__"}  # of the reader's program
    try:
        exec("\n".join(found).replace("127.0.0.1:50051", server_address), names)
    finally:
        names["client"].close()
