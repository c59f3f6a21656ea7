"""What a process keeps on disk for its next run: encoder states, and what it has counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog

from longtide_server.new_items.newcomers import Newcomers
from longtide_server.serving.signals_file import SUFFIX, save_signals
from longtide_server.sources.trending import Trending
from longtide_server.users.state_file import SavedStates, save_states, sweep_states
from longtide_server.users.user_states import UserStates

STATES = "states"
SAVE_STATES_EVERY_S = 600.0
STATES_KEPT_S = 2 * SAVE_STATES_EVERY_S
"""Nobody who runs has saved into an older file: another snapshot's, or that of a worker there is no more."""
KEPT_SIGNALS = 3

log = structlog.get_logger(__name__)


def saved_states(folder: Path, snapshot_id: str, log_id: str) -> list[SavedStates]:
    """What earlier runs have saved, whichever of their processes it was."""
    files = (one / f"{snapshot_id}.arrow" for one in (folder, *sorted(folder.glob("worker-*"))))
    return [SavedStates(file, snapshot_id, log_id) for file in files]


async def save_everything(
    root: Path,
    folder: Path,
    snapshot_id: str,
    log_id: str,
    states: UserStates,
    newcomers: Newcomers,
    trending: Trending,
) -> None:
    """Save for the next run what is in memory alone, and clear away what earlier ones have saved."""
    counts, pulled = trending.counts(), newcomers.pulled()
    for save in (
        partial(save_signals, folder, snapshot_id, counts, pulled),
        partial(save_states, folder / f"{snapshot_id}.arrow", snapshot_id, log_id, states.rows()),
        partial(sweep_states, root, time.time() - STATES_KEPT_S),
        partial(_keep_newest_signals, folder),
    ):
        try:
            await asyncio.to_thread(save)
        except OSError as exc:
            log.warning("states_not_saved", folder=str(folder), reason=str(exc))


def _keep_newest_signals(folder: Path) -> None:
    for old in sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)[:-KEPT_SIGNALS]:
        old.unlink()


async def keep_saving(save: Callable[[], Awaitable[None]]) -> None:
    """Save again and again, until it is cancelled."""
    while True:
        await asyncio.sleep(SAVE_STATES_EVERY_S)
        await save()
