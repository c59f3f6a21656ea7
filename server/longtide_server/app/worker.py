"""One of several processes that answer calls; told what to do by the one that started it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import grpc
import structlog

from longtide_server.app.encoders import encoder_of
from longtide_server.app.listening import bind, new_server, start
from longtide_server.app.observers import build_watching
from longtide_server.app.parts import Parts, build_parts
from longtide_server.app.saving import STATES
from longtide_server.encoder import Batches, Encoder
from longtide_server.errors import LongtideError
from longtide_server.snapshot import Snapshot, load_snapshot
from longtide_server.stores import open_stores
from longtide_server.workers.duties import Duties, Forwarding
from longtide_server.workers.link import Link, LinkGone
from longtide_server.workers.messages import Begin, Failed, Job, Listening, Loaded, Message, failure_of
from longtide_server.workers.totals import families_of

LINK_S = 60.0

log = structlog.get_logger(__name__)


async def working(end: socket.socket, ready: Callable[[], None]) -> None:
    """Be a worker, see `workers`: do what the process at the other end of the socket says, until it has ended.

    `ready` is called when everything is loaded.
    """
    duties: asyncio.Future[Duties] = asyncio.get_running_loop().create_future()

    async def answer(message: Message) -> object:
        return await (await duties).answer(message)

    link = await Link.over(end, answer)
    try:
        job = await link.call(Begin(), Job, LINK_S)
        async with AsyncExitStack() as stack:
            try:
                server, parts = await _loaded(job, duties, stack)
                await link.call(Loaded(), type(None), LINK_S)
                bind(server, job.address)
                forwarding = Forwarding(job.folder.parent, lambda: parts.servings.snapshot_id, link)
                await start(server, job.config, parts, forwarding, stack)
                ready()
                await link.call(Listening(), type(None), LINK_S)
            except LongtideError as exc:
                await link.call(Failed(failure_of(exc)), type(None), LINK_S)
                return
            await link.gone()
    except LinkGone:
        log.warning("supervisor_gone")
    finally:
        await link.close()


async def _loaded(job: Job, duties: asyncio.Future[Duties], stack: AsyncExitStack) -> tuple[grpc.aio.Server, Parts]:
    """A worker's server and its parts, all but listening."""
    config, torchserves = job.config, {job.folder: job.torchserve}
    snapshot = await asyncio.to_thread(load_snapshot, job.folder)
    watching = await build_watching(config, stack)
    stores = await open_stores(config.store_url, shared=True)

    async def encoder(snapshot: Snapshot, _: AsyncExitStack) -> tuple[Encoder, Batches]:
        return await encoder_of(snapshot, torchserves[snapshot.path])

    states = config.data_dir / STATES / f"worker-{job.number}"
    parts = await build_parts(config, snapshot, stores, encoder, states, watching, stack)
    families = partial(families_of, watching.metrics.registry) if watching.metrics else tuple
    led = Duties(parts.servings, torchserves, families)
    stack.push_async_callback(led.abandon)
    duties.set_result(led)
    return new_server(config, one_of_several=True), parts
