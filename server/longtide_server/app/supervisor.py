"""A server that is several processes: this one starts the others, and what they share (see `workers`)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from longtide_server.app.addresses import host_and_port
from longtide_server.app.background import expire_events
from longtide_server.app.data_dir import held
from longtide_server.app.encoders import TorchServes
from longtide_server.app.observers import show
from longtide_server.config import ServerConfig
from longtide_server.event_store.urls import hold_store, open_store
from longtide_server.serving.activation import Activation
from longtide_server.snapshot import ENCODER, Manifest, check_files, read_manifest, resolve
from longtide_server.watching.metrics import Metrics
from longtide_server.watching.observed import ObservedStore
from longtide_server.workers.fleet import Fleet, Hosted
from longtide_server.workers.messages import Job
from longtide_server.workers.port import ReservedPort
from longtide_server.workers.process import Worker
from longtide_server.workers.totals import Totals


async def start_workers(config: ServerConfig, stack: AsyncExitStack) -> tuple[str, str]:
    """Serve from workers that this process starts; where, and which snapshot."""
    folder = resolve(config.snapshot_dir).absolute()
    await asyncio.to_thread(_checked, folder)
    locks = [stack.enter_context(held(config.data_dir))]
    reserved = stack.enter_context(ReservedPort(*host_and_port(config.listen, "listen")))
    address = f"{config.listen.rpartition(':')[0]}:{reserved.port}"
    own = Metrics()
    totals = Totals(config.workers, own.registry)
    if config.metrics:
        show(totals, config, stack)
    lock = hold_store(config.store_url)
    if lock is not None:
        locks.append(stack.enter_context(lock))
    store = ObservedStore(await open_store(config.store_url, shared=True), own)
    stack.push_async_callback(store.close)
    torchserves = TorchServes(config)

    async def host(folder: Path) -> Hosted:
        manifest = await asyncio.to_thread(_checked, folder)
        async with AsyncExitStack() as hosting:
            local = config.encoder == "local"
            torchserve = None if local else await torchserves.start(folder / ENCODER, hosting)
            return Hosted(folder, manifest.snapshot_id, torchserve, hosting.pop_all().aclose)

    async def activate(snapshot_id: str) -> None:
        await activation.activate(snapshot_id)

    def worker(number: int, hosted: Hosted) -> Worker:
        job = Job(number, config, address, hosted.folder, hosted.torchserve)
        # The locks are held as long as anybody lives who writes to what they lock, also when this process is killed.
        return Worker(job, [lock.fileno() for lock in locks], activate)

    fleet = Fleet(config.workers, await host(folder), host, worker, totals, config.stop_grace_s)
    stack.push_async_callback(fleet.stop)
    activation = Activation(config.snapshot_dir, folder, fleet, config.keep_snapshots, own)
    stack.push_async_callback(activation.close)
    await fleet.start()
    # A worker asks the log for news before it answers, so nobody need be told what has expired.
    expire_events(config, store, lambda _: None, stack)
    return address, fleet.snapshot_id


def _checked(folder: Path) -> Manifest:
    """The manifest of a snapshot whose files are as it says. SnapshotError when they are not."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest
