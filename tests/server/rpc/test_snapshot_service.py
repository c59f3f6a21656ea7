"""Which snapshot is served, asked and told through a real gRPC server."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from longtide.v1 import snapshots_pb2, snapshots_pb2_grpc
from longtide_server.errors import EncoderUnavailable
from longtide_server.rpc.snapshot_service import SnapshotService
from longtide_server.serving import servings as servings_module
from longtide_server.snapshot import ENCODER, MANIFEST, read_manifest

SOON_S = 10.0
LIST = snapshots_pb2.ListSnapshotsRequest()


def get(snapshot_id):
    return snapshots_pb2.GetSnapshotRequest(snapshot_id=snapshot_id)


def activate(snapshot_id):
    return snapshots_pb2.ActivateSnapshotRequest(snapshot_id=snapshot_id)


@pytest.fixture
async def stub(served):
    """A client of the service over snapshots a, b and c, of which a is served."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    snapshots_pb2_grpc.add_SnapshotServiceServicer_to_server(SnapshotService(served.activation), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield snapshots_pb2_grpc.SnapshotServiceStub(channel)
    await server.stop(None)


@pytest.fixture
def trial(monkeypatch):
    """Holds whoever activates a snapshot in its trial, until it is allowed to end."""
    begun, allowed = asyncio.Event(), asyncio.Event()
    real = servings_module.try_out

    async def held(recommender, bars):
        begun.set()
        await allowed.wait()
        return await real(recommender, bars)

    monkeypatch.setattr(servings_module, "try_out", held)
    return SimpleNamespace(begun=begun, allowed=allowed)


async def listed(stub):
    """Ids, and which of them is active."""
    snapshots = (await stub.ListSnapshots(LIST)).snapshots
    return [one.snapshot_id for one in snapshots], [one.snapshot_id for one in snapshots if one.active]


async def refused(call):
    """Status, message and reason that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_details_pb2.ErrorInfo()
    metadata = dict(caught.value.trailing_metadata())
    for detail in status_pb2.Status.FromString(metadata["grpc-status-details-bin"]).details:
        detail.Unpack(info)
    return caught.value.code(), caught.value.details(), info.reason


async def test_the_newest_comes_first_and_one_is_active(stub):
    assert await listed(stub) == (["c", "b", "a"], ["a"])


async def test_an_activation_moves_the_mark(stub):
    answer = await stub.ActivateSnapshot(activate("c"))
    assert (answer.snapshot.snapshot_id, answer.snapshot.active) == ("c", True)
    assert await listed(stub) == (["c", "b"], ["c"])  # two are kept
    assert (await stub.ActivateSnapshot(activate("c"))).snapshot == answer.snapshot
    assert not (await stub.GetSnapshot(get("b"))).snapshot.active


async def test_a_snapshot_says_what_its_manifest_says(stub, served):
    manifest = read_manifest(served.directory / "b")
    snapshot = (await stub.GetSnapshot(get("b"))).snapshot
    assert snapshot.created_time.ToDatetime(UTC) == datetime(2026, 11, 1, 0, 0, 1, tzinfo=UTC)
    assert (snapshot.user_count, snapshot.item_count, snapshot.event_count) == (30, 12, 300)
    assert {(one.source, one.name): one.value for one in snapshot.metrics} == {
        (source, name): value for source, measured in manifest.metrics.items() for name, value in measured.items()
    }
    assert ("fusion", "ndcg@10") in {(one.source, one.name) for one in snapshot.metrics}
    assert snapshot == next(one for one in (await stub.ListSnapshots(LIST)).snapshots if one.snapshot_id == "b")


async def test_a_time_of_another_zone_is_the_same_moment(stub, served):
    path = served.directory / "b" / MANIFEST
    path.write_text(path.read_text().replace("2026-11-01T00:00:01+00:00", "2026-11-01T01:30:01.250000+01:00"))
    snapshot = (await stub.GetSnapshot(get("b"))).snapshot
    assert snapshot.created_time.ToJsonString() == "2026-11-01T00:30:01.250Z"


@pytest.mark.parametrize("snapshot_id", ["z", "", "../a"])
async def test_what_is_not_there_is_not_found(stub, snapshot_id):
    for call in (stub.GetSnapshot(get(snapshot_id)), stub.ActivateSnapshot(activate(snapshot_id))):
        message = f"there is no snapshot {snapshot_id!r} in the snapshot directory"
        assert await refused(call) == (grpc.StatusCode.NOT_FOUND, message, "NOT_FOUND")


async def test_one_activation_at_a_time(stub, trial):
    first = asyncio.ensure_future(stub.ActivateSnapshot(activate("b")))
    await trial.begun.wait()
    message = "another snapshot is being activated"
    assert await refused(stub.ActivateSnapshot(activate("c"))) == (
        grpc.StatusCode.FAILED_PRECONDITION, message, "CONFLICT",
    )  # fmt: skip
    assert await listed(stub) == (["c", "b", "a"], ["a"])
    trial.allowed.set()
    assert (await first).snapshot.active
    assert (await stub.ActivateSnapshot(activate("c"))).snapshot.snapshot_id == "c"


async def test_an_activation_goes_on_when_the_caller_gives_up(stub, trial):
    call = stub.ActivateSnapshot(activate("b"), timeout=SOON_S)
    waiting = asyncio.ensure_future(call.code())
    await trial.begun.wait()
    call.cancel()
    assert await waiting == grpc.StatusCode.CANCELLED
    trial.allowed.set()
    async with asyncio.timeout(SOON_S):
        while (await listed(stub))[1] != ["b"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_damaged_snapshot_is_an_invalid_argument(stub, served):
    (served.directory / "b" / ENCODER).write_bytes(b"short")
    code, message, reason = await refused(stub.ActivateSnapshot(activate("b")))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SNAPSHOT_ERROR")
    assert "encoder.pt: is 5 bytes long" in message
    assert (await listed(stub))[1] == ["a"]


async def test_an_encoder_that_does_not_start_is_unavailable(stub, served, monkeypatch):
    async def fails(folder):
        raise EncoderUnavailable("TorchServe ended")

    monkeypatch.setattr(served.servings, "_open", fails)
    assert await refused(stub.ActivateSnapshot(activate("b"))) == (
        grpc.StatusCode.UNAVAILABLE, "TorchServe ended", "ENCODER_UNAVAILABLE",
    )  # fmt: skip
    assert (await listed(stub))[1] == ["a"]


async def test_what_cannot_be_read_is_not_listed(stub, served):
    (served.directory / "b" / MANIFEST).write_text("{")
    assert await listed(stub) == (["c", "a"], ["a"])
    assert (await refused(stub.GetSnapshot(get("b"))))[0] == grpc.StatusCode.NOT_FOUND
