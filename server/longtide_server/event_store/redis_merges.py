"""Whose history an owner's is in Redis: merges, deletions, and what becomes of those that were cut off.

Both go through several histories and hold them meanwhile, with locks that have an end and are taken in one order by
all servers. A merge that was cut off is finished by whoever reads its target next.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from longtide_server.errors import Conflict, Unavailable
from longtide_server.event_store import Deleted, Merged, Version
from longtide_server.event_store.redis_commands import Commands, key, text
from longtide_server.event_store.redis_log import NEVER, pieces, write_arguments
from longtide_server.event_store.redis_scripts import DELETE, EXPIRE, MARK, WRITE
from longtide_server.events import Event

MAX_NAMES = 10
"""How long a chain of merges may be."""
HOLD_MS = 10_000
HOLD_WAIT_S = 5.0
HOLD_POLL_S = 0.02
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
EXTEND = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
META = ("merged_into", "rewrites", "position", "last", "merging")


@dataclass(frozen=True, slots=True)
class _Hold:
    """Histories that one operation holds, in the order in which they are taken."""

    owners: tuple[str, ...]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


class Merges:
    """Resolves names of owners, and changes what they mean."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._finishing: dict[str, asyncio.Task[None]] = {}
        """Merges that were cut off and are being finished, by their target."""

    async def close(self) -> None:
        """Wait for what is being finished."""
        if self._finishing:
            await asyncio.wait(self._finishing.values())

    async def merge(self, source: str, target: str) -> Merged:
        """See EventStore."""
        for _ in range(MAX_NAMES):
            root, _ = await self.resolved(target)
            async with self._holding(source, root) as hold:
                owner, _ = await self.resolved(source, hold)
                if (await self.resolved(target, hold))[0] != root:
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
            name, _ = await self.resolved(owner)
            async with self._holding(name) as hold:
                if (await self.resolved(owner, hold))[0] != name:
                    continue
                return await self._delete(owner, name, now_s)
        raise Unavailable("the user is merged with others again and again")

    async def _delete(self, owner: str, name: str, now_s: float) -> Deleted:
        """Delete what is held. The name that was asked for stays one of the owner's until all the rest is done."""
        gone, until = await self._commands.script(DELETE, name, repr(now_s), "")
        gone, until_s, names = int(gone), float(until), {owner, name}
        others = {text(other) for other in await self._commands.run("SMEMBERS", key(name, "names"))}
        for other in sorted(others, key=lambda other: other == owner):
            answer = await self._commands.script(DELETE, other, repr(until_s), name)
            if answer:
                gone, until_s = gone + int(answer[0]), max(until_s, float(answer[1]))
                names.add(other)
        await self._commands.run("DEL", key(name, "names"))
        return Deleted(gone, until_s, frozenset(names))

    async def _merge(self, source: str, target: str, hold: _Hold) -> Merged:
        """Merge what is held, or go on with it."""
        pending = await self._commands.run("HGET", key(source, "meta"), "merging")
        if pending is not None:  # another merge that was cut off, into the source
            await self._merge(text(pending), source, hold)
        others = [text(name) for name in await self._commands.run("SMEMBERS", key(source, "names"))]
        # From here on, whoever reads the target finishes what may be cut off.
        await self._commands.run("HSET", key(target, "meta"), "merging", source)
        await self._commands.run("SADD", key(target, "names"), source, *others)
        if not await self._commands.script(MARK, source, target, ""):
            await self._commands.run("SREM", key(target, "names"), source, *others)
            await self._commands.run("HDEL", key(target, "meta"), "merging")
            raise Conflict("the source was merged into another user before")
        for other in others:  # so that no chain grows
            await self._commands.script(MARK, other, target, source)
        await self._commands.run("DEL", key(source, "names"))
        moved = 0
        async for piece in pieces(self._commands, source):
            moved += await self._appended(target, [event for _, event in piece])
            await self._commands.script(
                EXPIRE, source, *(part for pair in piece for part in (pair[0], pair[1].event_id))
            )
            await self._extend(hold)
        await self._commands.run("DEL", key(source, "ids"), key(source, "log"))
        # Whoever has a copy is to read anew who the target is.
        await self._commands.run("HINCRBY", key(target, "meta"), "rewrites", 1)
        await self._commands.run("HDEL", key(target, "meta"), "merging")
        return Merged(moved, frozenset((source, target, *others)))

    async def _appended(self, owner: str, events: Sequence[Event]) -> int:
        """Write events to an owner, or to whom it was merged into; how many are new."""
        until = NEVER
        for _ in range(MAX_NAMES):
            answer = await self._commands.script(WRITE, owner, *write_arguments(events, until))
            if len(answer) != 2:
                return int(answer[5])
            owner, until = text(answer[0]), text(answer[1])
        raise Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

    async def _finish_merge(self, source: str, target: str) -> None:
        """Finish a merge that was cut off; one that is under way is left to whoever does it."""
        hold = _Hold((target,))
        try:
            if not await self._take(target, hold):
                return
            if text(await self._commands.run("HGET", key(target, "meta"), "merging") or "") == source:
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
        return bool(await self._commands.run("SET", key(owner, "held"), hold.token, "NX", "PX", HOLD_MS))

    async def _extend(self, hold: _Hold) -> None:
        for owner in hold.owners:
            if not await self._commands.run("EVAL", EXTEND, 1, key(owner, "held"), hold.token, HOLD_MS):
                raise Unavailable("a merge took so long that another server may have gone on with it")

    async def _release(self, hold: _Hold) -> None:
        for owner in hold.owners:
            with suppress(Unavailable):  # then it ends by itself
                await self._commands.run("EVAL", RELEASE, 1, key(owner, "held"), hold.token)

    async def resolved(self, owner: str, hold: _Hold | None = None) -> tuple[str, Version]:
        """Whose history an owner's is, and its version; a merge into it that was cut off is finished first."""
        finished: set[str] = set()
        for _ in range(MAX_NAMES):
            merged_into, rewrites, position, last, merging = await self._commands.run(
                "HMGET", key(owner, "meta"), *META
            )
            if merged_into is not None:
                owner = text(merged_into)
            elif merging is None or owner in finished:
                return owner, Version(int(rewrites or 0), int(position or 0), text(last or ""))
            else:
                finished.add(owner)
                if hold is not None and owner in hold.owners:
                    await self._merge(text(merging), owner, hold)
                elif owner not in self._finishing:
                    self._finishing[owner] = asyncio.create_task(self._finish_merge(text(merging), owner))
                    self._finishing[owner].add_done_callback(partial(self._finished, owner))
                    await asyncio.shield(self._finishing[owner])
        raise Unavailable(f"more than {MAX_NAMES} users were merged one into the other")

    def _finished(self, owner: str, task: asyncio.Task[None]) -> None:
        del self._finishing[owner]
        if not task.cancelled():
            task.exception()  # whoever waits for it has it
