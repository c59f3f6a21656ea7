"""Sends commands to Redis: so many at a time, scripts by their digest, and every failure as Unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol
from urllib.parse import quote, unquote

from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from longtide_server.errors import Unavailable
from longtide_server.event_store.redis_scripts import Script

PREFIX = "longtide:"
MAX_AT_ONCE = 48
"""Commands and pipelines on their way; redis-py's cluster client refuses what finds no free connection."""
LOCK_S = 1.0
"""After so long a lock ends by itself: whoever held it may be gone."""
LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.002
FAILURES = (RedisError, RedisClusterException, OSError)


class Pipeline(Protocol):
    """Commands that are sent together."""

    def execute_command(self, *args: Any) -> Any:  # noqa: ANN401  (redis-py's own signature)
        """Add a command."""
        ...

    def execute(self, raise_on_error: bool = True) -> Awaitable[list[Any]]:
        """Send them; an answer or an error for each."""
        ...


class Lock(Protocol):
    """What one client at a time holds."""

    def acquire(self) -> Awaitable[bool]:
        """Wait for it; whether it is ours."""
        ...

    def release(self) -> Awaitable[None]:
        """Leave it to the next."""
        ...


class Client(Protocol):
    """What is used of redis-py's `Redis` and `RedisCluster`, the asyncio ones."""

    def execute_command(self, *args: Any) -> Awaitable[Any]:  # noqa: ANN401
        """Send a command; its answer."""
        ...

    def pipeline(self, transaction: Any = None) -> Pipeline:  # noqa: ANN401
        """For commands that are sent together."""
        ...

    def lock(self, name: str, timeout: float, sleep: float, *, blocking_timeout: float) -> Lock:
        """What one client at a time holds, for a time at most."""
        ...

    def scan_iter(self, match: str, count: int) -> AsyncIterator[bytes]:
        """The keys of a pattern, of all nodes."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Close the connections."""
        ...


class Commands:
    """What the parts of the store ask of Redis."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self, *command: object) -> Any:  # noqa: ANN401  (whatever Redis answers)
        """The answer to a command."""
        try:
            return await self._sent(*command)
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot answer: {exc}") from exc

    async def script(self, script: Script, owner: str, *arguments: object) -> Any:  # noqa: ANN401
        """The answer of a script over the keys of an owner."""
        return await self.evaluate(script, history_keys(owner), *arguments)

    async def evaluate(self, script: Script, keys: Sequence[str], *arguments: object) -> Any:  # noqa: ANN401
        """The answer of a script over keys of one slot."""
        try:
            return await self._sent("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.run("EVAL", script.text, len(keys), *keys, *arguments)
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot write: {exc}") from exc

    async def pipelined(self, commands: Sequence[Sequence[object]]) -> list[Any]:
        """The answer, or an exception, for each of some commands that are sent together."""
        if not commands:
            return []
        pipeline = self.client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            async with self._slots:
                return await pipeline.execute(raise_on_error=False)
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot write: {exc}") from exc

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """One at a time, of all servers, for a second: enough to keep out of each other's way, not to rely on."""
        lock = self.client.lock(key, LOCK_S, LOCK_POLL_S, blocking_timeout=LOCK_WAIT_S)
        try:
            held = await lock.acquire()
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot answer: {exc}") from exc
        if not held:
            raise Unavailable("too many servers change the same at once")
        try:
            yield
        finally:
            with suppress(*FAILURES):  # it ends by itself, and what was done under it is done
                await lock.release()

    async def owners(self) -> AsyncIterator[str]:
        """Everybody who has events, in no order."""
        try:
            async for found in self.client.scan_iter(match=f"{PREFIX}{{*}}:log", count=1_000):
                yield unquote(text(found).removeprefix(f"{PREFIX}{{").removesuffix("}:log"))
        except FAILURES as exc:
            raise Unavailable(f"the event store cannot be read: {exc}") from exc

    async def _sent(self, *command: object) -> Any:  # noqa: ANN401
        async with self._slots:
            return await self.client.execute_command(*command)


def key(owner: str, what: str) -> str:
    """A key in the slot of the owner. What is quoted holds no brace that could end the slot's name."""
    return f"{PREFIX}{{{quote(owner, safe=':@')}}}:{what}"


def history_keys(owner: str) -> tuple[str, str, str]:
    """The keys that the scripts of a history change."""
    return key(owner, "meta"), key(owner, "ids"), key(owner, "log")


def call(script: Script, owner: str, arguments: Sequence[object], *, known: bool = True) -> list[object]:
    """The command that runs a script over the keys of an owner; its text goes along where Redis does not know it."""
    run = ("EVALSHA", script.digest) if known else ("EVAL", script.text)
    keys = history_keys(owner)
    return [*run, len(keys), *keys, *arguments]


def text(value: bytes | str) -> str:
    """An answer as text."""
    return value.decode() if isinstance(value, bytes) else value
