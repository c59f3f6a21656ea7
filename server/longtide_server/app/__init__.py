"""The composition root: the only package that builds the server's objects, starts them and stops them, in order.

A server is one process (`alone`), or a `supervisor` and its `worker`s. What answers calls is the same in all of them
(`parts`), and what belongs to one snapshot is built when that is activated (`opener`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from longtide_server.app.alone import start_alone
from longtide_server.app.supervisor import start_workers
from longtide_server.config import ServerConfig

log = structlog.get_logger(__name__)


@asynccontextmanager
async def running(config: ServerConfig) -> AsyncIterator[str]:
    """Run a server; yields its HOST:PORT once it answers. On the way out calls under way are finished first.

    SnapshotError when the snapshot cannot be served, Unavailable when a part does not start, InvalidInput when the
    address cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        address, snapshot_id = await (start_alone if config.workers == 1 else start_workers)(config, stack)
        log.info("serving", address=address, snapshot=snapshot_id, encoder=config.encoder, workers=config.workers)
        try:
            yield address
        finally:
            log.info("stopping")
