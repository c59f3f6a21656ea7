"""Calls to TorchServe's inference API, its failures told in Longtide's words."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import grpc.aio

from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, EncoderUnreachable, LongtideError, Overloaded
from longtide_server.torchserve.channel import open_channel
from longtide_server.torchserve.torchserve_pb2 import PredictionResponse, PredictionsRequest

_SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
_NO_ROOM = "has no worker to serve inference request"
_WORKER_DIED = "Worker died."
_MAX_MESSAGE_BYTES = 64 << 20


class TorchServeClient:
    """One reused channel. It survives restarts of TorchServe on the same address."""

    def __init__(self, address: str, max_message_bytes: int = _MAX_MESSAGE_BYTES) -> None:
        """Connect at the first call. Needs no running event loop of its own, but belongs to the one that calls it."""
        self._address = address
        self._channel = open_channel(address, max_message_bytes)
        self._predictions = self._channel.unary_unary(
            f"{_SERVICE}/Predictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )

    async def predict(self, model: str, inputs: Mapping[str, bytes], timeout_s: float) -> bytes:
        """Run the handler once on `inputs`.

        Raises EncoderUnavailable (down, or the handler failed), Overloaded (its queue is full) or DeadlineExceeded
        after `timeout_s`. TorchServe itself knows no deadlines: it still computes an answer nobody waits for.
        """
        if timeout_s <= 0:
            raise DeadlineExceeded("no time was left for the encoder")
        request = PredictionsRequest(model_name=model, input=inputs)
        try:
            # gRPC keeps this deadline on our side, whatever the server does.
            response = await self._predictions(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise translated(exc, self._address, timeout_s) from exc
        return response.prediction

    async def close(self) -> None:
        """End the channel; calls under way fail."""
        await self._channel.close()


def translated(error: grpc.aio.AioRpcError, address: str, timeout_s: float) -> LongtideError:
    """What a failed call means to us. TorchServe's codes say little, so its few fixed sentences are read as well."""
    details = error.details() or ""
    match error.code():
        case _ if _NO_ROOM in details:
            return Overloaded("the encoder's queue is full")
        case _ if _WORKER_DIED in details:  # RESOURCE_EXHAUSTED after kill -9, else INTERNAL
            return EncoderUnavailable("the encoder's worker died, or ran over its time, during the call")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"the encoder did not answer within {timeout_s:.3g} s")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return EncoderUnavailable(f"a message to or from the encoder is too large: {_first_line(details)}")
        case grpc.StatusCode.UNAVAILABLE if "Prediction failed" not in details:
            return EncoderUnreachable(f"TorchServe cannot be reached at {address}: {_first_line(details)}")
        case code:
            return EncoderUnavailable(f"the encoder failed: {_first_line(details)} ({code.name})")


def _first_line(details: str) -> str:
    return details.partition("\n")[0].strip() or "no reason given"
