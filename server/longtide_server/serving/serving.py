"""One snapshot at work: its encoder, the states of its users and its answers, together from the first to the last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType

import structlog

from longtide_server.errors import LongtideError
from longtide_server.recommender import Recommender
from longtide_server.serving.item_finder import ItemFinder
from longtide_server.serving.responses import Responses
from longtide_server.snapshot import Snapshot
from longtide_server.users.user_state import TOP_N_MARGIN
from longtide_server.users.user_states import UserStates

LIMIT_WARMED = 20

log = structlog.get_logger(__name__)


class Serving:
    """A context manager that counts who is using it, so that it ends after them and not under their hands."""

    def __init__(
        self,
        snapshot: Snapshot,
        states: UserStates,
        responses: Responses,
        finder: ItemFinder,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        """`release` lets go of the encoder and whatever else was opened for this snapshot."""
        self.snapshot = snapshot
        self.states = states
        self.recommender: Recommender = responses.recommender
        self.responses = responses
        self.finder = finder
        self._release = release
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def __enter__(self) -> Serving:
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def warm(self, owners: Sequence[str], timeout_s: float, at_once: int) -> int:
        """Encode these owners' histories, so many at once, as many as can be in the time; how many it were."""
        waiting, failures = iter(owners), list[LongtideError]()
        warmed = 0

        async def work() -> None:
            nonlocal warmed
            for owner in waiting:
                try:
                    user = await self.states.get(owner)
                    wanted = TOP_N_MARGIN + LIMIT_WARMED + len(user.seen)
                    await self.states.encoded(user, (), wanted, timeout_s, patient=True)
                    warmed += 1
                except LongtideError as exc:  # they are encoded when they ask
                    failures.append(exc)

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(work())
        if warmed < len(owners):
            reason = str(failures[-1]) if failures else "time is over"
            log.info("not_all_warmed", warmed=warmed, failed=len(failures), reason=reason)
        return warmed

    async def close(self, drain_s: float) -> None:
        """Let go of everything once nobody uses it any more, or after `drain_s`."""
        try:
            async with asyncio.timeout(drain_s):
                await self._unused.wait()
        except TimeoutError:
            log.warning("snapshot_still_used", snapshot=self.snapshot.snapshot_id, calls=self._users)
        await self._release()
