"""Which snapshot is served: finds another one, has it take the place of the one that is, one at a time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from longtide_server.errors import Conflict, InvalidInput, LongtideError, NotFound
from longtide_server.observer import NOBODY, Activated, Observer
from longtide_server.snapshot import Manifest, published, set_current

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    """A snapshot of the directory."""

    folder: Path
    manifest: Manifest
    active: bool


class Swap(Protocol):
    """The way to another snapshot: of one process (`servings.Servings`), or of all (`workers.fleet.Fleet`)."""

    @property
    def snapshot_id(self) -> str:
        """What is served."""
        ...

    async def prepare(self, folder: Path) -> None:
        """Have a folder's snapshot ready to be served and tried. SnapshotError or Unavailable when it cannot be."""
        ...

    async def commit(self) -> None:
        """Serve what was prepared, from the next request on."""
        ...

    async def abandon(self) -> None:
        """Let go of what was prepared, if anything was."""
        ...


class Published:
    """The snapshots of a directory, and which of them is served."""

    def __init__(self, directory: Path, active: Callable[[], str]) -> None:
        """`active` says the id of the snapshot that is served."""
        self._directory = directory
        self._active = active

    async def listed(self) -> Sequence[Listed]:
        """Every snapshot of the directory, the newest first."""
        active = self._active()
        found = await asyncio.to_thread(published, self._directory)
        return [Listed(folder, manifest, manifest.snapshot_id == active) for folder, manifest in found]

    async def get(self, snapshot_id: str) -> Listed:
        """A snapshot of the directory. NotFound when it is not there."""
        for one in await self.listed():
            if one.manifest.snapshot_id == snapshot_id:
                return one
        raise NotFound(f"there is no snapshot {snapshot_id!r} in the snapshot directory")


class Activation(Published):
    """The way to another snapshot of the directory."""

    def __init__(self, configured: Path, first: Path, swap: Swap, keep: int, observer: Observer = NOBODY) -> None:
        """`first` is the folder that is served when the server starts, `configured` where it was told to look for it.

        A directory that is configured is the server's own: it says there what is current, and leaves `keep` snapshots.
        Where one snapshot's own folder is, or what is current lies elsewhere, those beside it are somebody's: they are
        served when that is asked for, but nothing is written or deleted, and a restart serves what is configured.
        """
        super().__init__(first.absolute().parent, lambda: swap.snapshot_id)
        self._owned = self._directory == configured.absolute()
        self._swap = swap
        self._keep = keep
        self._observer = observer
        self._activating: asyncio.Task[Listed] | None = None

    async def activate(self, snapshot_id: str) -> Listed:
        """Serve another snapshot from the next request on, also when the caller gives up meanwhile.

        NotFound when it is not there, Conflict while another one is being activated, SnapshotError when it is damaged
        or its canaries find it wanting, Unavailable when its encoder does not start or it cannot be judged now; the old
        one is served on then.
        """
        if self._activating is None or self._activating.done():
            self._activating = asyncio.create_task(self._told(snapshot_id), name=snapshot_id)
        elif self._activating.get_name() != snapshot_id:
            raise Conflict("another snapshot is being activated")
        return await asyncio.shield(self._activating)

    async def close(self) -> None:
        """Give up what is under way."""
        if self._activating is not None:
            self._activating.cancel()
            await asyncio.wait((self._activating,))

    async def _told(self, snapshot_id: str) -> Listed:
        """Activate, and say what came of it: the caller may have gone."""
        before = self._swap.snapshot_id
        result: Activated = "failed"
        try:
            listed = await self._activate(snapshot_id)
            result = "unchanged" if snapshot_id == before else "activated"
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
            await self._have_restarts_serve(chosen.folder)
            return chosen
        log.info("snapshot_activating", snapshot=snapshot_id)
        try:
            await self._swap.prepare(chosen.folder)
            await self._have_restarts_serve(chosen.folder)
        except BaseException:
            await self._swap.abandon()
            raise
        await self._swap.commit()
        log.info("snapshot_activated", snapshot=snapshot_id)
        if self._owned:
            await asyncio.to_thread(self._prune)
        return Listed(chosen.folder, chosen.manifest, active=True)

    async def _have_restarts_serve(self, folder: Path) -> None:
        if self._owned:
            await asyncio.to_thread(set_current, self._directory, folder.name)

    def _prune(self) -> None:
        """Delete the oldest snapshots, but for the newest `keep` and the one that is served."""
        for folder, manifest in published(self._directory)[self._keep :]:
            if manifest.snapshot_id != self._swap.snapshot_id:
                log.info("snapshot_deleted", snapshot=manifest.snapshot_id)
                shutil.rmtree(folder, ignore_errors=True)
