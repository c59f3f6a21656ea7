"""The serving that is current, and the one that is to take its place: opened beside it, tried, warmed, and swapped in.

A request takes the serving that is current when it begins, and everything of its answer comes from that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import structlog

from longtide_server.observer import NOBODY, Observer
from longtide_server.serving.canary import Bars, try_out
from longtide_server.serving.serving import Serving

WARM_USERS = 2_000
WARM_S = 20.0
WARM_REST_S = 300.0
WARMED_AT_ONCE = 64
WARMED_ASIDE = 2  # while people are answered
DRAIN_S = 60.0

log = structlog.get_logger(__name__)


class Servings:
    """The servings of this process: one is current, one may be prepared, some may be on their way out."""

    def __init__(
        self,
        first: Serving,
        open_serving: Callable[[Path], Awaitable[Serving]],
        bars: Bars,
        observer: Observer = NOBODY,
    ) -> None:
        """`open_serving` loads the snapshot of a folder, its encoder included."""
        self._observer = observer
        self._serve(first)
        self._open = open_serving
        self._bars = bars
        self._prepared: tuple[Serving, list[str]] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._warming: asyncio.Task[int] | None = None

    @property
    def snapshot_id(self) -> str:
        """Of the snapshot that is current."""
        return self.current.snapshot.snapshot_id

    async def prepare(self, folder: Path) -> None:
        """Open the serving of a folder's snapshot beside the current one, try it and warm it. Abandon or commit it.

        SnapshotError when it is damaged or its canaries find it wanting, Unavailable when its encoder does not start or
        it cannot be judged now.
        """
        await self.abandon()
        serving = await self._open(folder)
        try:
            trial = await try_out(serving.recommender, self._bars)
            recent = self.current.states.recent()
            warmed = await serving.warm(recent[:WARM_USERS], WARM_S, WARMED_AT_ONCE)
        except BaseException:
            await serving.close(0.0)
            raise
        self._prepared = serving, recent[WARM_USERS:]
        log.info(
            "snapshot_tried", snapshot=serving.snapshot.snapshot_id, canaries=trial.canaries, recall=trial.recall,
            median_s=trial.latency_s, warmed=warmed,
        )  # fmt: skip

    async def commit(self) -> None:
        """Serve what was prepared from the next request on, and let the old one go after its last."""
        assert self._prepared is not None
        (serving, cold), self._prepared = self._prepared, None
        old = self.current
        self._serve(serving)
        leaving = asyncio.create_task(old.close(DRAIN_S))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        if self._warming is not None:
            self._warming.cancel()
        self._warming = asyncio.create_task(serving.warm(cold, WARM_REST_S, WARMED_ASIDE))

    async def abandon(self) -> None:
        """Let go of what was prepared, if anything was."""
        if self._prepared is not None:
            (serving, _), self._prepared = self._prepared, None
            await serving.close(0.0)

    async def drained(self) -> None:
        """Return when nothing is used any more but what is current."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def close(self) -> None:
        """Let go of everything."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait((self._warming,))
        await self.abandon()
        await self.drained()
        await self.current.close(0.0)

    def _serve(self, serving: Serving) -> None:
        self.current = serving
        manifest = serving.snapshot.manifest
        self._observer.serving(manifest.snapshot_id, datetime.fromisoformat(manifest.created_time).timestamp())
