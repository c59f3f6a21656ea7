"""Which snapshot is served: loads another one beside it, tries it, swaps them between two requests, lets the old go.

A request takes the serving that is current when it begins, and everything of its answer comes from that one.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from longtide_server.canary import Bars, try_out
from longtide_server.errors import Conflict, InvalidInput, LongtideError, NotFound
from longtide_server.observer import NOBODY, Activated, Observer
from longtide_server.serving import Serving
from longtide_server.snapshot import CURRENT, Manifest, published, set_current

WARM_USERS = 2_000
WARM_S = 20.0
WARM_REST_S = 300.0
WARMED_AT_ONCE = 64
WARMED_ASIDE = 2  # while people are answered
DRAIN_S = 60.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    """A snapshot of the directory."""

    folder: Path
    manifest: Manifest
    active: bool


class Activation:
    """The serving that is current, and the way to another."""

    def __init__(
        self,
        first: Serving,
        open_serving: Callable[[Path], Awaitable[Serving]],
        keep: int,
        bars: Bars,
        observer: Observer = NOBODY,
    ) -> None:
        """`open_serving` loads the snapshot of a folder, its encoder included; `keep` is how many snapshots stay."""
        self._observer = observer
        self._serve(first)
        self._open = open_serving
        self._keep = keep
        self._bars = bars
        self._directory = first.snapshot.path.parent
        self._activating: asyncio.Task[Listed] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._warming: asyncio.Task[int] | None = None

    async def listed(self) -> Sequence[Listed]:
        """Every snapshot of the directory, the newest first."""
        active = self.current.snapshot.snapshot_id
        found = await asyncio.to_thread(published, self._directory)
        return [Listed(folder, manifest, manifest.snapshot_id == active) for folder, manifest in found]

    async def get(self, snapshot_id: str) -> Listed:
        """A snapshot of the directory. NotFound when it is not there."""
        for one in await self.listed():
            if one.manifest.snapshot_id == snapshot_id:
                return one
        raise NotFound(f"there is no snapshot {snapshot_id!r} in the snapshot directory")

    async def activate(self, snapshot_id: str) -> Listed:
        """Serve another snapshot from the next request on, also when the caller gives up meanwhile.

        NotFound when it is not there, Conflict while another one is being activated, SnapshotError when it is damaged
        or its canaries find it wanting, Unavailable when its encoder does not start; the old one is served on then.
        """
        if self._activating is None or self._activating.done():
            self._activating = asyncio.create_task(self._told(snapshot_id), name=snapshot_id)
        elif self._activating.get_name() != snapshot_id:
            raise Conflict("another snapshot is being activated")
        return await asyncio.shield(self._activating)

    async def close(self) -> None:
        """Let go of what is served, and of what still is on its way out."""
        unfinished = [task for task in (self._activating, self._warming) if task is not None]
        for task in unfinished:
            task.cancel()
        if tasks := {*unfinished, *self._leaving}:
            await asyncio.wait(tasks)
        await self.current.close(0.0)

    async def _told(self, snapshot_id: str) -> Listed:
        """Activate, and say what came of it: the caller may have gone."""
        before = self.current
        result: Activated = "failed"
        try:
            listed = await self._activate(snapshot_id)
            result = "unchanged" if self.current is before else "activated"
        except LongtideError as exc:
            log.warning("snapshot_not_activated", snapshot=snapshot_id, reason=str(exc))
            if isinstance(exc, (InvalidInput, NotFound)):
                result = "refused"
            raise
        finally:
            self._observer.activation(result)
        return listed

    async def _activate(self, snapshot_id: str) -> Listed:
        chosen = await self.get(snapshot_id)
        if chosen.active:
            await asyncio.to_thread(set_current, self._directory, chosen.folder.name)
            return chosen
        log.info("snapshot_activating", snapshot=snapshot_id)
        ours = (self._directory / CURRENT).is_file()
        serving = await self._open(chosen.folder)
        try:
            trial = await try_out(serving.recommender, self._bars)
            recent = self.current.states.recent()
            warmed = await serving.warm(recent[:WARM_USERS], WARM_S, WARMED_AT_ONCE)
            await asyncio.to_thread(set_current, self._directory, chosen.folder.name)
        except BaseException:
            await serving.close(0.0)
            raise
        old = self.current
        self._serve(serving)
        log.info(
            "snapshot_activated", snapshot=snapshot_id, canaries=trial.canaries, recall=trial.recall,
            median_s=trial.latency_s, warmed=warmed,
        )  # fmt: skip
        leaving = asyncio.create_task(old.close(DRAIN_S))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        self._warming = asyncio.create_task(serving.warm(recent[WARM_USERS:], WARM_REST_S, WARMED_ASIDE))
        if ours:  # a folder without CURRENT is somebody's folder that happens to hold a snapshot
            await asyncio.to_thread(self._prune)
        return Listed(chosen.folder, chosen.manifest, active=True)

    def _serve(self, serving: Serving) -> None:
        self.current = serving
        manifest = serving.snapshot.manifest
        self._observer.serving(manifest.snapshot_id, datetime.fromisoformat(manifest.created_time).timestamp())

    def _prune(self) -> None:
        """Delete the oldest snapshots, but for the newest `keep` and the one that is served."""
        for folder, manifest in published(self._directory)[self._keep :]:
            if manifest.snapshot_id != self.current.snapshot.snapshot_id:
                log.info("snapshot_deleted", snapshot=manifest.snapshot_id)
                shutil.rmtree(folder, ignore_errors=True)
