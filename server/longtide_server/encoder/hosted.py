"""Encoders that compute: one calls the handler that TorchServe hosts, one runs the very same in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from longtide_server.encoder import ON_CPU, ON_GPU, AnswerSizes, Batches, Encoded, Steps
from longtide_server.encoder.arrays import pack, unpack
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable
from longtide_server.torchserve.client import TorchServeClient

MODEL_NAME = "longtide-encoder"


class TorchServeEncoder:
    """An Encoder hosted by TorchServe."""

    def __init__(self, client: TorchServeClient, sizes: AnswerSizes) -> None:
        self._client = client
        self._sizes = sizes

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """See Encoder."""
        return unpack(await self._client.predict(MODEL_NAME, pack(batch), timeout_s), batch, self._sizes)

    async def close(self) -> None:
        """See Encoder."""
        await self._client.close()


class LocalEncoder:
    """An Encoder in this process: TorchServe's handler itself, on a thread of its own and the first GPU there is."""

    def __init__(self, weights: Path, sizes: AnswerSizes) -> None:
        # Imported here because it brings torch, which a server with TorchServe does without.
        from longtide_handlers.encoder_handler import LongtideEncoderHandler

        self._handler = LongtideEncoderHandler()
        self._handler.load(weights, gpu=0)
        self._sizes = sizes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-encoder")

    @property
    def batches(self) -> Batches:
        """What is best sent to it at a time."""
        return ON_GPU if self._handler.device.type == "cuda" else ON_CPU

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """See Encoder."""
        loop = asyncio.get_running_loop()
        try:
            answer = await asyncio.wait_for(
                loop.run_in_executor(self._thread, self._handler.answer, pack(batch)), timeout_s
            )
        except TimeoutError as exc:
            raise DeadlineExceeded(f"the encoder did not answer within {timeout_s:.3f} s") from exc
        except Exception as exc:  # TorchScript raises what is no RuntimeError; all of it means: no encoder
            raise EncoderUnavailable(f"the encoder failed: {exc}") from exc
        return unpack(answer, batch, self._sizes)

    async def close(self) -> None:
        """See Encoder."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._handler.close()
