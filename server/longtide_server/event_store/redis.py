"""Events in Redis or Valkey, one server or a cluster: for many servers of Longtide over one log.

A history is three keys that share a hash slot: `log`, a stream whose ids are the order of arrival; `ids`, the set of
known event ids; and `meta`, its version, deletion and merge. Every change of a history is one Lua script, so it happens
whole or not at all. Only what a history's own slot holds is changed at a time: merging and deleting go through several,
and go on where they were when they are called again.

What Redis has acknowledged is as durable as Redis is told to make it: `appendonly yes` and `appendfsync always` for a
server that may be killed, and no eviction. What it is told otherwise is warned of.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote, unquote

import msgspec
import structlog
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from longtide_server.attribution import Shown
from longtide_server.errors import Conflict, LongtideError, Overloaded, Unavailable
from longtide_server.event_store import Appended, Deleted, History, Place, Version, Written
from longtide_server.event_store.redis_scripts import CLEAR, DELETE, EXPIRE, MARK, WRITE, Script
from longtide_server.events import Event, user_of

PREFIX = "longtide:"
MAX_WAITING_EVENTS = 200_000
PIECE_EVENTS = 5_000
EXPIRING_S = 3_000
MAX_EVENTS_PER_PIPELINE = 10_000
MAX_NAMES = 10
"""How long a chain of merges may be."""
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
    """The events of a call."""

    count: int
    events: Mapping[str, Sequence[Event]]
    """By owner."""
    written: asyncio.Future[Written]
    appended: dict[str, Appended] = field(default_factory=dict)

    def result(self) -> Written:
        new = sum(len(one.events) for one in self.appended.values())
        return Written(new, self.count - new, self.appended)


class RedisEventStore:
    """An EventStore behind a client of redis-py."""

    shared = True

    def __init__(self, client: Client) -> None:
        self._client = client
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

    async def history(self, owner: str, since: Version | None = None) -> History:
        """See EventStore.

        The version is read first and the events up to it afterwards. When the history is rewritten in between, what is
        read shows neither; but its version is outdated then, and whoever checks it reads again.
        """
        name, version = await self._resolved(owner)
        whole = since is None or name != owner or since.rewrites != version.rewrites
        after = 0 if whole or since is None else since.position
        events = [event async for piece in self._pieces(name, after, version.position) for _, event in piece]
        if whole:
            events.sort(key=lambda event: event.time_s)
        return History(name, version, events, whole)

    async def page(self, owner: str, size: int, before: Place | None = None) -> Sequence[tuple[Place, Event]]:
        """See EventStore. The whole history is read: Redis keeps it by arrival."""
        name, version = await self._resolved(owner)
        newest: list[tuple[Place, Event]] = []
        async for piece in self._pieces(name, 0, version.position):
            places = ((Place(event.time_s, position), event) for position, event in piece)
            fitting = [(place, event) for place, event in places if before is None or place < before]
            newest = heapq.nlargest(size, [*newest, *fitting], key=lambda found: found[0])
        return newest

    async def merge(self, source: str, target: str) -> int:
        """See EventStore. Called again after a failure, it goes on where it was."""
        target, _ = await self._resolved(target)
        if source == target:
            raise Conflict("a user cannot be merged into the one who was merged into them")
        owner, _ = await self._resolved(source)
        if owner not in (source, target):
            raise Conflict("the source was merged into another user before")
        await self._run("SADD", _key(target, "names"), source)
        if owner == source and _text(await self._script(MARK, source, target)) != target:
            await self._run("SREM", _key(target, "names"), source)
            raise Conflict("the source was merged into another user before")
        moved = 0
        async for piece in self._pieces(source, 0, None):
            _, _, _, new, *_ = await self._script(WRITE, target, *_arguments([event for _, event in piece]))
            moved += int(new)
        await self._script(CLEAR, source)
        return moved

    async def delete(self, owner: str, now_s: float) -> Deleted:
        """See EventStore. Called again after a failure, it goes on where it was."""
        name, _ = await self._resolved(owner)
        return await self._delete(name, now_s)

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
            except LongtideError as exc:
                log.error("events_not_written", batches=len(batches), error=str(exc))
                failure: Exception | None = exc
            except Exception as exc:
                log.exception("events_not_written", batches=len(batches))
                failure = exc
            else:
                failure = None
            for batch in batches:
                self._waiting_events -= batch.count
                if failure is None:
                    batch.written.set_result(batch.result())
                else:
                    batch.written.set_exception(failure)
                    batch.written.exception()  # its caller may have given up

    async def _write_batches(self, batches: Sequence[_Batch]) -> None:
        waiting = [(batch, owner, events) for batch in batches for owner, events in batch.events.items()]
        for _ in range(MAX_NAMES):
            answers = await self._write_all([(owner, events) for _, owner, events in waiting])
            moved: list[tuple[_Batch, str, Sequence[Event]]] = []
            for (batch, owner, events), answer in zip(waiting, answers, strict=True):
                if len(answer) == 1:
                    moved.append((batch, _text(answer[0]), events))
                elif answer[3]:
                    batch.appended[owner] = _appended(events, answer, batch.appended.get(owner))
            waiting = moved
            if not waiting:
                return
        raise Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

    async def _write_all(self, waiting: Sequence[tuple[str, Sequence[Event]]]) -> list[list[Any]]:
        """The answers of WRITE for each owner and events, all sent together."""
        commands = [(owner, _arguments(events)) for owner, events in waiting]
        answers = await self._pipelined([_command(WRITE, owner, arguments) for owner, arguments in commands])
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        again = [_command(WRITE, *commands[place], known=False) for place in unknown]
        for place, answer in zip(unknown, await self._pipelined(again), strict=True):
            answers[place] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise Unavailable(f"the event store cannot write: {answer}") from answer
        return answers

    async def _delete(self, name: str, now_s: float) -> Deleted:
        gone, until = await self._script(DELETE, name, repr(now_s))
        gone, until_s = int(gone), float(until)
        for other in await self._run("SMEMBERS", _key(name, "names")):
            deleted = await self._delete(_text(other), until_s)
            gone += deleted.events
            await self._run("SREM", _key(name, "names"), other)
        return Deleted(gone, until_s)

    async def _resolved(self, owner: str) -> tuple[str, Version]:
        """Whose history an owner's is, and its version."""
        for _ in range(MAX_NAMES):
            merged_into, rewrites, position = await self._run(
                "HMGET", _key(owner, "meta"), "merged_into", "rewrites", "position"
            )
            if merged_into is None:
                return owner, Version(int(rewrites or 0), int(position or 0))
            owner = _text(merged_into)
        raise Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

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
            return await self._client.execute_command(*_command(script, owner, arguments))
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
            return await pipeline.execute(raise_on_error=False)
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot write: {exc}") from exc

    async def _run(self, *command: object) -> Any:  # noqa: ANN401
        try:
            return await self._client.execute_command(*command)
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot answer: {exc}") from exc


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


def _arguments(events: Sequence[Event]) -> list[object]:
    """What WRITE wants to know."""
    return [part for event in events for part in (event.event_id, repr(event.time_s), _packed(event))]


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


def _appended(sent: Sequence[Event], answer: Sequence[int], earlier: Appended | None) -> Appended:
    """What WRITE has added; an owner may be written to twice in one call, under two names."""
    rewrites, before, after, new, *places = answer
    added = list(sent) if new == len(sent) else [sent[place] for place in places]
    if earlier is None:
        return Appended(Version(rewrites, before), Version(rewrites, after), added)
    return Appended(earlier.before, Version(rewrites, after), [*earlier.events, *added])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


_unpack = msgspec.msgpack.Decoder(Packed).decode
