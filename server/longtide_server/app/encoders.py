"""Where a snapshot's encoder is hosted: in a TorchServe that is started for it, or in this process."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import longtide_handlers
from longtide_server.config import ServerConfig
from longtide_server.encoder import ON_CPU, ON_GPU, AnswerSizes, Batches, Encoder, EncoderAt
from longtide_server.encoder.hosted import MODEL_NAME, LocalEncoder, TorchServeEncoder
from longtide_server.snapshot import ENCODER, Snapshot
from longtide_server.torchserve.archive import build_archive
from longtide_server.torchserve.client import TorchServeClient
from longtide_server.torchserve.config import TorchServeConfig
from longtide_server.torchserve.process import TorchServe

HANDLER = Path(longtide_handlers.__file__).parent / "encoder_handler.py"

Encoders = Callable[[Snapshot, AsyncExitStack], Awaitable[tuple[Encoder, Batches]]]
"""Gives a snapshot's encoder, and what is best sent to it; what is started for it ends with the stack."""


async def encoder_of(snapshot: Snapshot, torchserve: EncoderAt | None) -> tuple[Encoder, Batches]:
    """A snapshot's encoder, in that TorchServe, or where there is none in this process; what is best sent to it."""
    sizes = AnswerSizes.of(snapshot.embeddings)
    if torchserve is not None:
        return TorchServeEncoder(TorchServeClient(torchserve.address), sizes), torchserve.batches
    local = await asyncio.to_thread(LocalEncoder, snapshot.path / ENCODER, sizes)
    return local, local.batches


class TorchServes:
    """Starts TorchServes."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._number = itertools.count(1)
        for left_over in config.data_dir.glob("torchserve-*"):  # by a server that was killed
            shutil.rmtree(left_over, ignore_errors=True)

    async def start(self, weights: Path, stack: AsyncExitStack) -> EncoderAt:
        """Start one for an encoder. It ends with the stack. Unavailable when it does not start."""
        config, number = self._config, next(self._number)
        # What is activated later runs beside what was served before, so it has a folder and ports of its own.
        work_dir = config.data_dir / ("torchserve" if number == 1 else f"torchserve-{number}")
        ports = config.torchserve_ports if number == 1 else (0, 0, 0, 0)
        if number > 1:
            stack.callback(shutil.rmtree, work_dir, ignore_errors=True)
        archive = work_dir / "encoder.mar"
        archive.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(
            build_archive, archive, model_name=MODEL_NAME, version="1.0", handler=HANDLER, weights=weights
        )
        torchserve = TorchServe(
            TorchServeConfig(
                work_dir=work_dir,
                archive=archive,
                model_name=MODEL_NAME,
                workers=config.torchserve_workers,
                grpc_inference_port=ports[0],
                grpc_management_port=ports[1],
                http_inference_port=ports[2],
                http_management_port=ports[3],
            )
        )
        stack.push_async_callback(torchserve.stop)
        await torchserve.start()
        batches = ON_GPU if torchserve.on_gpu else ON_CPU
        return EncoderAt(torchserve.grpc_address, replace(batches, calls=config.torchserve_workers))
