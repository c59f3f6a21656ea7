"""From the URL of an event store to the store."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from longtide_server.errors import InvalidInput, Unavailable
from longtide_server.event_store.redis import RedisEventStore
from longtide_server.event_store.redis_commands import Client
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.event_store.sqlite_file import hold

TIMEOUT_S = 5.0
MAX_CONNECTIONS = 64


def check_store_url(url: str) -> None:
    """InvalidInput when no store has such a URL."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise InvalidInput.of("store", f"{_shown(url)} is not a URL: {exc}") from exc
    if scheme == "sqlite":
        if not parts.path.strip("/") or parts.netloc:
            raise InvalidInput.of(
                "store", f"{_shown(url)} names no file; a file is sqlite:///relative or sqlite:////absolute"
            )
    elif scheme not in ("redis", "rediss", "redis+cluster", "rediss+cluster"):
        raise InvalidInput.of(
            "store", f"{_shown(url)} is not sqlite:///PATH, redis://HOST:PORT, rediss://... or redis+cluster://..."
        )


def hold_store(url: str) -> BinaryIO | None:
    """Hold a store for processes that will share it, where it is one that somebody has to hold.

    Unavailable when its folder cannot be used, InvalidInput when it is in use.
    """
    check_store_url(url)
    if not url.startswith("sqlite:///"):
        return None
    path = _sqlite_path(url)
    try:
        return hold(path)
    except OSError as exc:
        raise Unavailable(f"the event store {path} cannot be opened: {exc}") from exc


async def open_store(url: str, *, writes: bool = True, shared: bool = False) -> SqliteEventStore | RedisEventStore:
    """The store behind a URL; Unavailable when it cannot be opened or reached, InvalidInput when it is in use.

    `sqlite:///PATH` (three slashes for a relative path, four for an absolute one), `redis://`, `rediss://` and, for a
    cluster, `redis+cluster://` and `rediss+cluster://` and one of its nodes, as redis-py reads them. A file that is not
    written to may be read while a server writes to it. `shared`: others write to it too, and somebody holds it for all.
    """
    check_store_url(url)
    if url.startswith("sqlite:///"):
        return await asyncio.to_thread(SqliteEventStore, _sqlite_path(url), writes=writes, shared=shared)
    # Loaded only where it is used: a server over SQLite does without.
    from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
    from redis.exceptions import RedisClusterException

    limits = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    client: Client
    try:
        if "+cluster://" in url:
            client = RedisCluster.from_url(url.replace("+cluster", ""), max_connections=MAX_CONNECTIONS, **limits)
        else:
            client = Redis.from_pool(
                BlockingConnectionPool.from_url(url, max_connections=MAX_CONNECTIONS, timeout=TIMEOUT_S, **limits)
            )
    except (ValueError, TypeError, RedisClusterException) as exc:
        raise InvalidInput.of("store", f"{_shown(url)} cannot be read as a URL of Redis: {exc}") from exc
    store = RedisEventStore(client)
    try:
        await store.check()
    except BaseException:
        await store.close()
        raise
    return store


def _sqlite_path(url: str) -> Path:
    return Path(unquote(url.removeprefix("sqlite:///")))


def _shown(url: str) -> str:
    """A URL as a message may show it, without user and password."""
    return re.sub("//[^/]*@", "//", url)
