"""Counts what is recommended, and joins it with what people did then."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from longtide_server.attribution import Shown, day_of, make_token, read_token
from longtide_server.errors import LongtideError
from longtide_server.event_store import EventStore
from longtide_server.events import Event, EventType
from longtide_server.serving.responses import ShownItems

FLUSH_EVERY_S = 5.0
MAX_KEYS = 10_000
OTHER_SURFACE = "(other)"

log = structlog.get_logger(__name__)


class Feedback:
    """Gives answers their tokens, and counts their items; the counts go into the store every few seconds.

    A server that is killed loses the counts of these seconds; events are never lost.
    """

    def __init__(self, store: EventStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._shown: Counter[Shown] = Counter()
        self._flushing: tuple[str, Counter[Shown]] | None = None
        """Counts on their way, under an id by which the store knows them again."""

    def shown(self, snapshot_id: str, surface: str, items: ShownItems) -> str:
        """Count an answer; its token."""
        now_s = self._clock()
        day = day_of(now_s)
        for source, count in Counter(source for _, source in items).items():
            key = Shown(day, snapshot_id, surface, source)
            if key not in self._shown and len(self._shown) >= MAX_KEYS:
                key = key._replace(surface=OTHER_SURFACE)
            self._shown[key] += count
        return make_token(now_s, snapshot_id, surface, items, random.getrandbits(32))

    async def flush(self) -> None:
        """Put the counts into the store; they are kept when it fails, and counted once though it may have done so."""
        if self._flushing is not None and not await self._flushed(*self._flushing):
            return
        if self._shown:
            self._flushing, self._shown = (uuid.uuid4().hex, self._shown), Counter()
            await self._flushed(*self._flushing)

    async def _flushed(self, flush_id: str, counts: Mapping[Shown, int]) -> bool:
        """Whether these counts are in the store now."""
        try:
            await self._store.add_shown(counts, flush_id)
        except LongtideError as exc:
            log.warning("feedback_not_counted", error=str(exc))
            return False
        self._flushing = None
        return True

    async def keep_flushing(self) -> None:
        """Flush again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                await self.flush()
            except Exception:
                log.exception("feedback_not_counted")


@dataclass(slots=True)
class Line:
    """What came of some recommended items."""

    shown: int = 0
    clicked: int = 0
    """Of how many items an event came back, each counted once for an answer."""
    converted: int = 0
    """Of how many an event of a conversion's type came back."""

    @property
    def click_rate(self) -> float | None:
        """Clicked of shown; none where nothing is known to be shown."""
        return self.clicked / self.shown if self.shown else None

    @property
    def conversion_rate(self) -> float | None:
        """Converted of shown; none where nothing is known to be shown."""
        return self.converted / self.shown if self.shown else None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of what was recommended."""

    lines: Mapping[Shown, Line]
    unknown_tokens: int
    """Events whose token is none that this product gives."""


async def report(store: EventStore, conversions: Collection[EventType]) -> Report:
    """Join the events of a store with what was shown."""
    lines = {key: Line(shown=count) for key, count in (await store.shown()).items()}
    unknown = 0
    clicked: set[int] = set()
    converted: set[int] = set()
    async for event in _attributed(store.everything()):
        attribution = read_token(event.attribution_token)
        if attribution is None:
            unknown += 1
            continue
        line = lines.setdefault(attribution.shown(event.item_id), Line())
        once = hash((event.attribution_token, event.owner, event.item_id))
        if once not in clicked:
            clicked.add(once)
            line.clicked += 1
        if event.type in conversions and once not in converted:
            converted.add(once)
            line.converted += 1
    return Report(lines, unknown)


def summed(lines: Mapping[Shown, Line], by: Sequence[str]) -> dict[tuple[str, ...], Line]:
    """The lines of a report added up, by some fields of Shown, in their order."""
    found: dict[tuple[str, ...], Line] = {}
    for key, line in sorted(lines.items()):
        total = found.setdefault(tuple(str(getattr(key, name)) for name in by), Line())
        total.shown += line.shown
        total.clicked += line.clicked
        total.converted += line.converted
    return found


async def _attributed(pieces: AsyncIterator[Iterable[tuple[str, Event]]]) -> AsyncIterator[Event]:
    async for piece in pieces:
        for _, event in piece:
            if event.attribution_token:
                yield event
