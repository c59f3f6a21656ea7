"""Events in Redis or Valkey, one server or a cluster: for many servers of Longtide over one log.

A history is three keys that share a hash slot: `log`, a stream whose ids are the order of arrival; `ids`, the set of
known event ids; and `meta`, its version, deletion and merge. Every change of a history is one Lua script, so it happens
whole or not at all.

What Redis has acknowledged is as durable as Redis is told to make it: `appendonly yes` and `appendfsync always` for a
server that may be killed, and no eviction. What it is told otherwise is warned of.
"""

from __future__ import annotations

import asyncio
import heapq
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from redis.exceptions import NoScriptError

from longtide_server.attribution import Shown
from longtide_server.errors import LongtideError, Overloaded, Unavailable
from longtide_server.event_store import Appended, Deleted, History, Known, Merged, Place, Version, Written
from longtide_server.event_store.backlog import MAX_WAITING_EVENTS
from longtide_server.event_store.redis_commands import FAILURES, PREFIX, Client, Commands, call, key, text
from longtide_server.event_store.redis_log import NEVER, pieces, write_arguments
from longtide_server.event_store.redis_merges import MAX_NAMES, Merges
from longtide_server.event_store.redis_scripts import ADD_SHOWN, EXPIRE, WRITE
from longtide_server.events import Event

MAX_EVENTS_PER_PIPELINE = 10_000
EXPIRING_S = 3_000
PROBE_KEPT_S = 60
IDENTITY = f"{PREFIX}identity"
SHOWN = f"{PREFIX}shown"
FLUSH_KNOWN_S = 3_600

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Batch:
    """The events of a call, and what became of them so far."""

    count: int
    events: Mapping[str, Sequence[Event]]
    """By owner."""
    written: asyncio.Future[Written]
    appended: dict[str, Appended] = field(default_factory=dict)
    failure: Exception | None = None

    def add(self, write: _Write, answer: Sequence[Any]) -> None:
        """Note what WRITE has added; an owner may be written to twice in one call, under two names."""
        rewrites, before, before_last, after, last, new, *places = answer
        added = list(write.events) if new == len(write.events) else [write.events[place] for place in places]
        appended = Appended(Version(rewrites, before, text(before_last)), Version(rewrites, after, text(last)), added)
        earlier = self.appended.get(write.owner)
        if earlier is not None:
            # What others wrote in between is in neither: then no copy can go on with it.
            before = earlier.before if earlier.after == appended.before else Version(-1)
            appended = Appended(before, appended.after, [*earlier.events, *added])
        self.appended[write.owner] = appended

    def settle(self) -> None:
        """Tell the caller."""
        if self.failure is not None:
            log.error("events_not_written", events=self.count, error=str(self.failure))
            self.written.set_exception(self.failure)
            self.written.exception()  # its caller may have given up
        else:
            new = sum(len(one.events) for one in self.appended.values())
            self.written.set_result(Written(new, self.count - new, self.appended))


@dataclass(frozen=True, slots=True)
class _Write:
    """Events of a batch on their way to an owner."""

    batch: _Batch
    owner: str
    events: Sequence[Event]
    until: str = NEVER
    """Events that happened until then are not taken."""


class RedisEventStore:
    """An EventStore behind a client of redis-py."""

    shared = True

    def stamp(self) -> None:
        """See EventStore: to ask Redis for one would cost as much as to ask it for a history."""

    def __init__(self, client: Client) -> None:
        self.commands = Commands(client)
        self._merges = Merges(self.commands)
        self._waiting: deque[_Batch] = deque()
        self._waiting_events = 0
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    async def check(self) -> None:
        """Warn of settings that may lose events; Unavailable when the store cannot be reached."""
        for name, safe, why in (
            ("appendfsync", "always", "what was acknowledged in the last second is lost when Redis is killed"),
            ("appendonly", "yes", "everything since the last snapshot of Redis is lost when it ends"),
            ("maxmemory-policy", "noeviction", "Redis drops events when its memory is full"),
        ):
            try:
                found = await self.commands.client.execute_command("CONFIG GET", name)
            except FAILURES as exc:
                await self.commands.run("PING")  # a server that is there may keep its settings to itself
                log.info("redis_settings_unknown", error=str(exc))
                return
            values = {text(value) for value in (found.values() if isinstance(found, dict) else found[1::2])}
            if values != {safe}:
                log.warning("redis_may_lose_events", setting=name, value=", ".join(sorted(values)), why=why)

    async def identity(self) -> str:
        """See EventStore."""
        await self.commands.run("SET", IDENTITY, uuid.uuid4().hex, "NX")
        return text(await self.commands.run("GET", IDENTITY))

    async def write(self, events: Sequence[Event]) -> Written:
        """See EventStore. Each owner's events are written whole or not at all."""
        if self._closed:
            raise Unavailable("the event store is closing")
        if self._waiting_events + len(events) > MAX_WAITING_EVENTS:
            raise Overloaded(f"{self._waiting_events} events are waiting to be written")
        batch = _Batch(len(events), _by_owner(events), asyncio.get_running_loop().create_future())
        self._waiting.append(batch)
        self._waiting_events += batch.count
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_waiting())
        # Shielded: a caller that gives up must not undo what is under way for others.
        return await asyncio.shield(batch.written)

    async def history(self, owner: str, known: Known | None = None) -> History:
        """See EventStore.

        The version is read first and the events up to it afterwards. When the history is rewritten in between, what is
        read shows neither; but its version is outdated then, and whoever checks it reads again.
        """
        name, version = await self._merges.resolved(owner)
        if known is not None and known.owner == name:
            if known.version == version:
                return History(name, version, (), whole=False)
            if known.version.rewrites == version.rewrites and known.version.position <= version.position:
                new = await self._since(name, known.version, version)
                if new is not None:
                    return History(name, version, new, whole=False)
        events = [event async for piece in pieces(self.commands, name, 0, version.position) for _, event in piece]
        events.sort(key=lambda event: event.time_s)
        names = await self.commands.run("SMEMBERS", key(name, "names"))
        return History(name, version, events, names=frozenset(map(text, names)))

    async def _since(self, name: str, known: Version, version: Version) -> list[Event] | None:
        """The events after a version; None when what it ended with is not there: Redis has lost it since."""
        first = known.position
        found = [
            pair async for piece in pieces(self.commands, name, max(first - 1, 0), version.position) for pair in piece
        ]
        if first == 0:
            return [event for _, event in found]
        if not found or found[0][0] != first or found[0][1].event_id != known.last:
            return None
        return [event for _, event in found[1:]]

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """See EventStore. The whole history is read: Redis keeps it by arrival."""
        name, version = await self._merges.resolved(owner)
        newest: list[tuple[Place, Event]] = []
        async for piece in pieces(self.commands, name, 0, version.position):
            places = ((Place(event.time_s, position), event) for position, event in piece)
            fitting = [(place, event) for place, event in places if before is None or place < before]
            newest = heapq.nlargest(size, [*newest, *fitting], key=lambda found: found[0])
        return newest

    async def merge(self, source: str, target: str) -> Merged:
        """See EventStore. Called again after a failure, it goes on where it was."""
        return await self._merges.merge(source, target)

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """See EventStore. Called again after a failure, it goes on where it was."""
        return await self._merges.delete(owner, now_s)

    async def expire(self, kept_from_s: Mapping[int, float]) -> AsyncIterator[Mapping[str, int]]:
        """See EventStore. An owner's events go in pieces; of several servers, one does it in an hour for all."""
        if not await self.commands.run("SET", f"{PREFIX}expiring", "1", "NX", "EX", EXPIRING_S):
            return
        async for owner in self.commands.owners():
            async for piece in pieces(self.commands, owner):
                old = [
                    (position, event.event_id)
                    for position, event in piece
                    if event.time_s < kept_from_s.get(event.type, 0.0)
                ]
                gone = (
                    int(await self.commands.script(EXPIRE, owner, *(part for pair in old for part in pair)))
                    if old
                    else 0
                )
                if gone:
                    yield {owner: gone}

    async def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """See EventStore. Owners come in no order, and one that is merged meanwhile may come twice or not at all."""
        async for owner in self.commands.owners():
            async for piece in pieces(self.commands, owner):
                yield [(owner, event) for _, event in piece]

    async def add_shown(self, counts: Mapping[Shown, int], flush_id: str) -> None:
        """See EventStore."""
        packed = [(msgspec.json.encode(shown), count) for shown, count in counts.items()]
        keys = (SHOWN, f"{{{SHOWN}}}:{flush_id}")  # of one slot
        await self.commands.evaluate(ADD_SHOWN, keys, FLUSH_KNOWN_S, *(part for pair in packed for part in pair))

    async def shown(self) -> Mapping[Shown, int]:
        """See EventStore."""
        found = await self.commands.run("HGETALL", SHOWN)
        return {msgspec.json.decode(name, type=Shown): int(count) for name, count in found.items()}

    async def probe(self) -> None:
        """See EventStore. One server of a cluster answers for all: without one of them, by default, none does."""
        await self.commands.run("SET", f"{PREFIX}probe", "1", "EX", PROBE_KEPT_S)
        await self.commands.run("GET", f"{PREFIX}probe")

    async def close(self) -> None:
        """See EventStore."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        await self._merges.close()
        await self.commands.client.aclose()

    async def _write_waiting(self) -> None:
        """Write what waits, one pipeline after the other, so that the order of arrival is that of the calls."""
        while self._waiting:
            batches, count = [self._waiting.popleft()], 0
            while self._waiting and (count := count + batches[-1].count) < MAX_EVENTS_PER_PIPELINE:
                batches.append(self._waiting.popleft())
            try:
                await self._write_batches(batches)
            except Exception as exc:
                log.exception("events_not_written", batches=len(batches))
                for batch in batches:
                    batch.failure = exc
            for batch in batches:
                self._waiting_events -= batch.count
                batch.settle()

    async def _write_batches(self, batches: Sequence[_Batch]) -> None:
        """Write batches, or let each of them know why it could not be: what one cannot is not another's failure."""
        waiting = [_Write(batch, owner, events) for batch in batches for owner, events in batch.events.items()]
        for _ in range(MAX_NAMES):
            try:
                answers = await self._write_all(waiting)
            except LongtideError as exc:
                for write in waiting:
                    write.batch.failure = exc
                return
            moved: list[_Write] = []
            for write, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, Exception):
                    write.batch.failure = Unavailable(f"the event store cannot write: {answer}")
                elif len(answer) == 2:
                    moved.append(_Write(write.batch, text(answer[0]), write.events, text(answer[1])))
                elif answer[5]:
                    write.batch.add(write, answer)
            waiting = moved
            if not waiting:
                return
        for write in waiting:
            write.batch.failure = Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

    async def _write_all(self, writes: Sequence[_Write]) -> list[Any]:
        """The answers of WRITE, all sent together; an exception where there is none."""
        commands = [(write.owner, write_arguments(write.events, write.until)) for write in writes]
        answers = await self.commands.pipelined([call(WRITE, owner, arguments) for owner, arguments in commands])
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        again = [call(WRITE, *commands[place], known=False) for place in unknown]
        try:
            found = await self.commands.pipelined(again)
        except LongtideError as exc:
            found = [exc] * len(again)
        for place, answer in zip(unknown, found, strict=True):
            answers[place] = answer
        return answers


def _by_owner(events: Sequence[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.owner, []).append(event)
    return found
