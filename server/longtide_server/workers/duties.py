"""What a worker does when the supervisor says so, and whom it asks when it is told to activate a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from longtide_server.encoder import EncoderAt
from longtide_server.errors import Conflict
from longtide_server.serving.activation import Listed, Published
from longtide_server.serving.servings import Servings
from longtide_server.workers.link import Link
from longtide_server.workers.messages import (
    Abandon,
    Activate,
    Commit,
    Drain,
    Family,
    Look,
    Message,
    Prepare,
    Sample,
)

ACTIVATE_S = 1_800.0


class Duties:
    """Leads this process' servings to another snapshot, step by step."""

    def __init__(
        self, servings: Servings, torchserves: dict[Path, EncoderAt | None], families: Callable[[], Sequence[Family]]
    ) -> None:
        """`torchserves` is told which TorchServe has the encoder of which folder; `families` gives the metrics."""
        self._servings = servings
        self._torchserves = torchserves
        self._families = families
        self._preparing: asyncio.Task[None] | None = None
        self._prepared: Path | None = None

    async def answer(self, message: Message) -> object:
        """Do what is asked for."""
        match message:
            case Prepare(folder=folder, torchserve=torchserve):
                await self.abandon()
                self._torchserves[folder] = torchserve
                self._preparing = asyncio.create_task(self._prepare(folder))
                await asyncio.shield(self._preparing)
            case Commit(folder=folder):
                if folder != self._prepared:
                    raise Conflict(f"{folder} is to be served, and {self._prepared} is prepared")
                self._prepared = None
                await self._servings.commit()
            case Abandon():
                await self.abandon()
            case Drain():
                await self._servings.drained()
            case Look():
                return Sample(self._families())
        return None

    async def _prepare(self, folder: Path) -> None:
        await self._servings.prepare(folder)
        self._prepared = folder

    async def abandon(self) -> None:
        """Let go of what is prepared or being prepared: what was given up on must not be what is served next."""
        self._prepared = None
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait((self._preparing,))
        await self._servings.abandon()


class Forwarding(Published):
    """The snapshots of the directory, as a worker shows them; what is to be served is for the supervisor to say."""

    def __init__(self, directory: Path, active: Callable[[], str], link: Link) -> None:
        super().__init__(directory, active)
        self._link = link

    async def activate(self, snapshot_id: str) -> Listed:
        """Have all workers serve another snapshot. See `activation.Activation`."""
        await self._link.call(Activate(snapshot_id), type(None), ACTIVATE_S)
        return await self.get(snapshot_id)
