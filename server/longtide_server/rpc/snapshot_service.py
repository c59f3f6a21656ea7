"""The gRPC servicer of snapshots: protobuf to domain and back, no logic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from longtide.v1 import snapshots_pb2, snapshots_pb2_grpc
from longtide_server.rpc.status import Context, answered, remaining_s
from longtide_server.serving.activation import Listed


class Snapshots(Protocol):
    """What can be served, and the way to it; see `activation.Activation`."""

    async def listed(self) -> Sequence[Listed]:
        """Every snapshot, the newest first."""
        ...

    async def get(self, snapshot_id: str) -> Listed:
        """One of them."""
        ...

    async def activate(self, snapshot_id: str) -> Listed:
        """Serve one of them."""
        ...


class SnapshotService(snapshots_pb2_grpc.SnapshotServiceServicer):
    """Says what can be served, and has it served."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    async def ListSnapshots(
        self, request: snapshots_pb2.ListSnapshotsRequest, context: Context
    ) -> snapshots_pb2.ListSnapshotsResponse:
        """See the contract."""

        async def answer() -> snapshots_pb2.ListSnapshotsResponse:
            remaining_s(context)
            listed = await self._snapshots.listed()
            return snapshots_pb2.ListSnapshotsResponse(snapshots=[write_snapshot(one) for one in listed])

        return await answered(context, answer)

    async def GetSnapshot(
        self, request: snapshots_pb2.GetSnapshotRequest, context: Context
    ) -> snapshots_pb2.GetSnapshotResponse:
        """See the contract."""

        async def answer() -> snapshots_pb2.GetSnapshotResponse:
            remaining_s(context)
            found = await self._snapshots.get(request.snapshot_id)
            return snapshots_pb2.GetSnapshotResponse(snapshot=write_snapshot(found))

        return await answered(context, answer)

    async def ActivateSnapshot(
        self, request: snapshots_pb2.ActivateSnapshotRequest, context: Context
    ) -> snapshots_pb2.ActivateSnapshotResponse:
        """See the contract."""

        async def answer() -> snapshots_pb2.ActivateSnapshotResponse:
            remaining_s(context)
            active = await self._snapshots.activate(request.snapshot_id)
            return snapshots_pb2.ActivateSnapshotResponse(snapshot=write_snapshot(active))

        return await answered(context, answer)


def write_snapshot(listed: Listed) -> snapshots_pb2.Snapshot:
    """A snapshot as a message."""
    manifest = listed.manifest
    created = Timestamp()
    created.FromDatetime(datetime.fromisoformat(manifest.created_time))
    return snapshots_pb2.Snapshot(
        snapshot_id=manifest.snapshot_id,
        created_time=created,
        active=listed.active,
        user_count=manifest.user_count,
        item_count=manifest.item_count,
        event_count=manifest.event_count,
        metrics=[
            snapshots_pb2.SnapshotMetric(source=source, name=name, value=value)
            for source, measured in manifest.metrics.items()
            for name, value in measured.items()
        ],
    )
