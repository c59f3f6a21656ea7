"""Events in Redis or Valkey, one server or a cluster: for many servers of Longtide over one log.

A history is three keys that share a hash slot: `log`, a stream whose ids are the order of arrival; `ids`, the set of
known event ids; and `meta`, its version, deletion and merge. Every change of a history is one Lua script, so it happens
whole or not at all. Merging and deleting go through several histories and hold them meanwhile (locks with an end, taken
in one order by all servers); a merge that was cut off is finished by whoever reads the target next.

What Redis has acknowledged is as durable as Redis is told to make it: `appendonly yes` and `appendfsync always` for a
server that may be killed, and no eviction. What it is told otherwise is warned of.
"""

from __future__ import annotations

import asyncio
import heapq
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, unquote

import msgspec
import structlog
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from longtide_server.attribution import Shown
from longtide_server.errors import Conflict, LongtideError, Overloaded, Unavailable
from longtide_server.event_store import Appended, Deleted, History, Known, Merged, Place, Version, Written
from longtide_server.event_store.redis_scripts import DELETE, EXPIRE, MARK, WRITE, Script
from longtide_server.events import Event, user_of

PREFIX = "longtide:"
MAX_WAITING_EVENTS = 200_000
PIECE_EVENTS = 5_000
EXPIRING_S = 3_000
MAX_EVENTS_PER_PIPELINE = 10_000
MAX_NAMES = 10
"""How long a chain of merges may be."""
MAX_AT_ONCE = 48
"""Commands and pipelines on their way; redis-py's cluster client refuses what finds no free connection."""
HOLD_MS = 10_000
HOLD_WAIT_S = 5.0
HOLD_POLL_S = 0.02
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
EXTEND = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
META = ("merged_into", "rewrites", "position", "last", "merging")
NEVER = "-1"
FAILURES = (RedisError, RedisClusterException, OSError)

Packed = tuple[str, str, int, str, float, float | None, str, str]

log = structlog.get_logger(__name__)


class Pipeline(Protocol):
    """Commands that are sent together."""

    def execute_command(self, *args: Any) -> Any:  # noqa: ANN401  (redis-py's own signature)
        """Add a command."""
        ...

    def execute(self, raise_on_error: bool = True) -> Awaitable[list[Any]]:
        """Send them; an answer or an error for each."""
        ...


class Client(Protocol):
    """What is used of redis-py's `Redis` and `RedisCluster`, the asyncio ones."""

    def execute_command(self, *args: Any) -> Awaitable[Any]:  # noqa: ANN401
        """Send a command; its answer."""
        ...

    def pipeline(self, transaction: Any = None) -> Pipeline:  # noqa: ANN401
        """For commands that are sent together."""
        ...

    def scan_iter(self, match: str, count: int) -> AsyncIterator[bytes]:
        """The keys of a pattern, of all nodes."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Close the connections."""
        ...


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
        appended = Appended(Version(rewrites, before, _text(before_last)), Version(rewrites, after, _text(last)), added)
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


@dataclass(frozen=True, slots=True)
class _Hold:
    """Histories that one operation holds, in the order in which they are taken."""

    owners: tuple[str, ...]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


class RedisEventStore:
    """An EventStore behind a client of redis-py."""

    shared = True

    def __init__(self, client: Client) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._waiting: deque[_Batch] = deque()
        self._waiting_events = 0
        self._writing: asyncio.Task[None] | None = None
        self._finishing: dict[str, asyncio.Task[None]] = {}
        """Merges that were cut off and are being finished, by their target."""
        self._closed = False

    async def check(self) -> None:
        """Warn of settings that may lose events; Unavailable when the store cannot be reached."""
        for name, safe, why in (
            ("appendfsync", "always", "what was acknowledged in the last second is lost when Redis is killed"),
            ("appendonly", "yes", "everything since the last snapshot of Redis is lost when it ends"),
            ("maxmemory-policy", "noeviction", "Redis drops events when its memory is full"),
        ):
            try:
                found = await self._client.execute_command("CONFIG GET", name)
            except FAILURES as exc:
                await self._run("PING")  # a server that is there may keep its settings to itself
                log.info("redis_settings_unknown", error=str(exc))
                return
            values = {_text(value) for value in (found.values() if isinstance(found, dict) else found[1::2])}
            if values != {safe}:
                log.warning("redis_may_lose_events", setting=name, value=", ".join(sorted(values)), why=why)

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
        name, version = await self._resolved(owner)
        if known is not None and known.owner == name:
            if known.version == version:
                return History(name, version, (), whole=False)
            if known.version.rewrites == version.rewrites and known.version.position <= version.position:
                new = await self._since(name, known.version, version)
                if new is not None:
                    return History(name, version, new, whole=False)
        events = [event async for piece in self._pieces(name, 0, version.position) for _, event in piece]
        events.sort(key=lambda event: event.time_s)
        return History(name, version, events)

    async def _since(self, name: str, known: Version, version: Version) -> list[Event] | None:
        """The events after a version; None when what it ended with is not there: Redis has lost it since."""
        first = known.position
        found = [pair async for piece in self._pieces(name, max(first - 1, 0), version.position) for pair in piece]
        if first == 0:
            return [event for _, event in found]
        if not found or found[0][0] != first or found[0][1].event_id != known.last:
            return None
        return [event for _, event in found[1:]]

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """See EventStore. The whole history is read: Redis keeps it by arrival."""
        name, version = await self._resolved(owner)
        newest: list[tuple[Place, Event]] = []
        async for piece in self._pieces(name, 0, version.position):
            places = ((Place(event.time_s, position), event) for position, event in piece)
            fitting = [(place, event) for place, event in places if before is None or place < before]
            newest = heapq.nlargest(size, [*newest, *fitting], key=lambda found: found[0])
        return newest

    async def merge(self, source: str, target: str) -> Merged:
        """See EventStore."""
        for _ in range(MAX_NAMES):
            root, _ = await self._resolved(target)
            async with self._holding(source, root) as hold:
                owner, _ = await self._resolved(source, hold)
                if (await self._resolved(target, hold))[0] != root:
                    continue  # merged or deleted before it was held
                if source == root:
                    raise Conflict("a user cannot be merged into the one who was merged into them")
                if owner not in (source, root):
                    raise Conflict("the source was merged into another user before")
                return await self._merge(source, root, hold)
        raise Unavailable("the users are merged with others again and again")

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """See EventStore. Called again after a failure, it goes on where it was."""
        for _ in range(MAX_NAMES):
            name, _ = await self._resolved(owner)
            async with self._holding(name) as hold:
                if (await self._resolved(owner, hold))[0] != name:
                    continue
                return await self._delete(owner, name, now_s)
        raise Unavailable("the user is merged with others again and again")

    async def _delete(self, owner: str, name: str, now_s: float) -> Deleted:
        """Delete what is held. The name that was asked for stays one of the owner's until all the rest is done."""
        gone, until = await self._script(DELETE, name, repr(now_s), "")
        gone, until_s, names = int(gone), float(until), {owner, name}
        others = {_text(other) for other in await self._run("SMEMBERS", _key(name, "names"))}
        for other in sorted(others, key=lambda other: other == owner):
            answer = await self._script(DELETE, other, repr(until_s), name)
            if answer:
                gone, until_s = gone + int(answer[0]), max(until_s, float(answer[1]))
                names.add(other)
        await self._run("DEL", _key(name, "names"))
        return Deleted(gone, until_s, frozenset(names))

    async def _merge(self, source: str, target: str, hold: _Hold) -> Merged:
        """Merge what is held, or go on with it."""
        pending = await self._run("HGET", _key(source, "meta"), "merging")
        if pending is not None:  # another merge that was cut off, into the source
            await self._merge(_text(pending), source, hold)
        others = [_text(name) for name in await self._run("SMEMBERS", _key(source, "names"))]
        # From here on, whoever reads the target finishes what may be cut off.
        await self._run("HSET", _key(target, "meta"), "merging", source)
        await self._run("SADD", _key(target, "names"), source, *others)
        if not await self._script(MARK, source, target, ""):
            await self._run("SREM", _key(target, "names"), source, *others)
            await self._run("HDEL", _key(target, "meta"), "merging")
            raise Conflict("the source was merged into another user before")
        for other in others:  # so that no chain grows
            await self._script(MARK, other, target, source)
        await self._run("DEL", _key(source, "names"))
        moved = 0
        async for piece in self._pieces(source, 0, None):
            moved += await self._appended(target, [event for _, event in piece])
            await self._script(EXPIRE, source, *(part for pair in piece for part in (pair[0], pair[1].event_id)))
            await self._extend(hold)
        await self._run("DEL", _key(source, "ids"), _key(source, "log"))
        await self._run("HDEL", _key(target, "meta"), "merging")
        return Merged(moved, frozenset((source, target, *others)))

    async def _appended(self, owner: str, events: Sequence[Event]) -> int:
        """Write events to an owner, or to whom it was merged into; how many are new."""
        until = NEVER
        for _ in range(MAX_NAMES):
            answer = await self._script(WRITE, owner, *_arguments(events, until))
            if len(answer) != 2:
                return int(answer[5])
            owner, until = _text(answer[0]), _text(answer[1])
        raise Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

    async def _finish_merge(self, source: str, target: str) -> None:
        """Finish a merge that was cut off; one that is under way is left to whoever does it."""
        hold = _Hold((target,))
        try:
            if not await self._take(target, hold):
                return
            if _text(await self._run("HGET", _key(target, "meta"), "merging") or "") == source:
                with suppress(Conflict):
                    await self._merge(source, target, hold)
        finally:
            await self._release(hold)

    @asynccontextmanager
    async def _holding(self, *owners: str) -> AsyncIterator[_Hold]:
        """Hold histories, so that no other server merges or deletes them; Unavailable when another holds them long."""
        hold = _Hold(tuple(sorted(set(owners))))
        give_up_s = time.monotonic() + HOLD_WAIT_S
        try:
            for owner in hold.owners:
                while not await self._take(owner, hold):
                    if time.monotonic() > give_up_s:
                        raise Unavailable("another merge or deletion of the same user is under way")
                    await asyncio.sleep(HOLD_POLL_S)
            yield hold
        finally:
            await self._release(hold)

    async def _take(self, owner: str, hold: _Hold) -> bool:
        return bool(await self._run("SET", _key(owner, "held"), hold.token, "NX", "PX", HOLD_MS))

    async def _extend(self, hold: _Hold) -> None:
        for owner in hold.owners:
            if not await self._run("EVAL", EXTEND, 1, _key(owner, "held"), hold.token, HOLD_MS):
                raise Unavailable("a merge took so long that another server may have gone on with it")

    async def _release(self, hold: _Hold) -> None:
        for owner in hold.owners:
            with suppress(Unavailable):  # then it ends by itself
                await self._run("EVAL", RELEASE, 1, _key(owner, "held"), hold.token)

    async def expire(self, kept_from_s: Mapping[int, float]) -> AsyncIterator[Mapping[str, int]]:
        """See EventStore. An owner's events go in pieces; of several servers, one does it in an hour for all."""
        if not await self._run("SET", f"{PREFIX}expiring", "1", "NX", "EX", EXPIRING_S):
            return
        async for owner in self._owners():
            async for piece in self._pieces(owner, 0, None):
                old = [
                    (position, event.event_id)
                    for position, event in piece
                    if event.time_s < kept_from_s.get(event.type, 0.0)
                ]
                gone = int(await self._script(EXPIRE, owner, *(part for pair in old for part in pair))) if old else 0
                if gone:
                    yield {owner: gone}

    async def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """See EventStore. Owners come in no order, and one that is merged meanwhile may come twice or not at all."""
        async for owner in self._owners():
            async for piece in self._pieces(owner, 0, None):
                yield [(owner, event) for _, event in piece]

    async def add_shown(self, counts: Mapping[Shown, int]) -> None:
        """See EventStore."""
        key = f"{PREFIX}shown"
        packed = [(msgspec.json.encode(shown), count) for shown, count in counts.items()]
        for answer in await self._pipelined([("HINCRBY", key, name, count) for name, count in packed]):
            if isinstance(answer, Exception):
                raise Unavailable(f"the event store cannot write: {answer}") from answer

    async def shown(self) -> Mapping[Shown, int]:
        """See EventStore."""
        found = await self._run("HGETALL", f"{PREFIX}shown")
        return {msgspec.json.decode(name, type=Shown): int(count) for name, count in found.items()}

    async def close(self) -> None:
        """See EventStore."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        await self._client.aclose()

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
                    moved.append(_Write(write.batch, _text(answer[0]), write.events, _text(answer[1])))
                elif answer[5]:
                    write.batch.add(write, answer)
            waiting = moved
            if not waiting:
                return
        for write in waiting:
            write.batch.failure = Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

    async def _write_all(self, writes: Sequence[_Write]) -> list[Any]:
        """The answers of WRITE, all sent together; an exception where there is none."""
        commands = [(write.owner, _arguments(write.events, write.until)) for write in writes]
        answers = await self._pipelined([_command(WRITE, owner, arguments) for owner, arguments in commands])
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        again = [_command(WRITE, *commands[place], known=False) for place in unknown]
        try:
            found = await self._pipelined(again)
        except LongtideError as exc:
            found = [exc] * len(again)
        for place, answer in zip(unknown, found, strict=True):
            answers[place] = answer
        return answers

    async def _resolved(self, owner: str, hold: _Hold | None = None) -> tuple[str, Version]:
        """Whose history an owner's is, and its version; a merge into it that was cut off is finished first."""
        finished: set[str] = set()
        for _ in range(MAX_NAMES):
            merged_into, rewrites, position, last, merging = await self._run("HMGET", _key(owner, "meta"), *META)
            if merged_into is not None:
                owner = _text(merged_into)
            elif merging is None or owner in finished:
                return owner, Version(int(rewrites or 0), int(position or 0), _text(last or ""))
            else:
                finished.add(owner)
                if hold is not None and owner in hold.owners:
                    await self._merge(_text(merging), owner, hold)
                elif owner not in self._finishing:
                    self._finishing[owner] = asyncio.create_task(self._finish_merge(_text(merging), owner))
                    self._finishing[owner].add_done_callback(partial(self._finished, owner))
                    await asyncio.shield(self._finishing[owner])
        raise Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

    def _finished(self, owner: str, task: asyncio.Task[None]) -> None:
        del self._finishing[owner]
        if not task.cancelled():
            task.exception()  # whoever waits for it has it

    async def _pieces(self, owner: str, after: int, until: int | None) -> AsyncIterator[list[tuple[int, Event]]]:
        """The events of a history after one position and until another, in the order of arrival."""
        last = "+" if until is None else f"{until}-0"
        while until is None or after < until:
            entries = await self._run("XRANGE", _key(owner, "log"), f"{after + 1}-0", last, "COUNT", PIECE_EVENTS)
            if entries:
                piece = [_event(owner, entry, fields) for entry, fields in entries]
                after = piece[-1][0]
                yield piece
            if len(entries) < PIECE_EVENTS:
                return

    async def _owners(self) -> AsyncIterator[str]:
        try:
            async for key in self._client.scan_iter(match=f"{PREFIX}{{*}}:log", count=1_000):
                yield unquote(_text(key).removeprefix(f"{PREFIX}{{").removesuffix("}:log"))
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot be read: {exc}") from exc

    async def _script(self, script: Script, owner: str, *arguments: object) -> Any:  # noqa: ANN401
        try:
            return await self._sent(*_command(script, owner, arguments))
        except NoScriptError:
            return await self._run(*_command(script, owner, arguments, known=False))
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot write: {exc}") from exc

    async def _pipelined(self, commands: Sequence[Sequence[object]]) -> list[Any]:
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            async with self._slots:
                return await pipeline.execute(raise_on_error=False)
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot write: {exc}") from exc

    async def _run(self, *command: object) -> Any:  # noqa: ANN401
        try:
            return await self._sent(*command)
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot answer: {exc}") from exc

    async def _sent(self, *command: object) -> Any:  # noqa: ANN401
        async with self._slots:
            return await self._client.execute_command(*command)


def _key(owner: str, what: str) -> str:
    """A key in the slot of the owner. What is quoted holds no brace that could end the slot's name."""
    return f"{PREFIX}{{{quote(owner, safe=':@')}}}:{what}"


def _command(script: Script, owner: str, arguments: Sequence[object], *, known: bool = True) -> list[object]:
    call = ("EVALSHA", script.digest) if known else ("EVAL", script.text)
    return [*call, 3, _key(owner, "meta"), _key(owner, "ids"), _key(owner, "log"), *arguments]


def _by_owner(events: Sequence[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.owner, []).append(event)
    return found


def _arguments(events: Sequence[Event], until: str = NEVER) -> list[object]:
    """What WRITE wants to know."""
    parts = (part for event in events for part in (event.event_id, repr(event.time_s), _packed(event)))
    return [until, *parts]


def _packed(event: Event) -> bytes:
    return msgspec.msgpack.encode(
        (
            event.event_id,
            event.item_id,
            int(event.type),
            event.custom_type,
            event.time_s,
            event.value,
            event.session_id,
            event.attribution_token,
        )
    )


def _event(owner: str, entry: bytes, fields: Mapping[bytes, bytes]) -> tuple[int, Event]:
    event_id, item_id, kind, custom_type, time_s, value, session_id, token = _unpack(fields[b"e"])
    position = int(entry.partition(b"-")[0])
    return position, Event(event_id, user_of(owner), item_id, kind, time_s, value, custom_type, session_id, token)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


_unpack = msgspec.msgpack.Decoder(Packed).decode
