"""Reads the state of a model's workers from TorchServe's management API."""

from __future__ import annotations

import json
from dataclasses import dataclass

import grpc.aio
import structlog

from longtide_server.torchserve.channel import open_channel
from longtide_server.torchserve.torchserve_pb2 import DescribeModelRequest, ManagementResponse

_log = structlog.get_logger(__name__)

_DESCRIBE = "/org.pytorch.serve.grpc.management.ManagementAPIsService/DescribeModel"
_TIMEOUT_S = 2.0
_MAX_MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Worker:
    """One Python process of TorchServe."""

    pid: int
    ready: bool
    """The model is loaded and waits for calls."""
    on_gpu: bool


class WorkersReader:
    """One reused channel to the management API."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address, _MAX_MESSAGE_BYTES)
        self._describe = self._channel.unary_unary(
            _DESCRIBE,
            request_serializer=DescribeModelRequest.SerializeToString,
            response_deserializer=ManagementResponse.FromString,
        )

    async def read(self, model: str) -> tuple[Worker, ...]:
        """The model's workers; none while TorchServe or the model is not there."""
        try:
            response = await self._describe(DescribeModelRequest(model_name=model), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return ()
        try:
            return parse_workers(response.msg)
        except (ValueError, KeyError, TypeError) as exc:
            _log.warning("torchserve described its workers oddly", error=str(exc))
            return ()

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()


def parse_workers(description: str) -> tuple[Worker, ...]:
    """Read TorchServe's JSON: a list of model versions, each with its workers."""
    return tuple(
        Worker(pid=worker["pid"], ready=worker["status"] == "READY", on_gpu=worker["gpu"])
        for version in json.loads(description)
        for worker in version["workers"]
    )
