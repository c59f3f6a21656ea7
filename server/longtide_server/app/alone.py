"""A server that is this process, and its TorchServe."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from longtide_server.app.background import expire_events
from longtide_server.app.data_dir import held
from longtide_server.app.encoders import TorchServes, encoder_of
from longtide_server.app.listening import bind, new_server, start
from longtide_server.app.observers import build_watching, show
from longtide_server.app.parts import build_parts
from longtide_server.app.saving import STATES
from longtide_server.config import ServerConfig
from longtide_server.encoder import Batches, Encoder
from longtide_server.serving.activation import Activation
from longtide_server.snapshot import ENCODER, Snapshot, load_snapshot
from longtide_server.stores import open_stores


async def start_alone(config: ServerConfig, stack: AsyncExitStack) -> tuple[str, str]:
    """Serve from this process; where, and which snapshot."""
    snapshot = await asyncio.to_thread(load_snapshot, config.snapshot_dir)
    stack.enter_context(held(config.data_dir))
    server = new_server(config, one_of_several=False)
    port = bind(server, config.listen)  # fails now, and not after TorchServe has started
    watching = await build_watching(config, stack)
    if watching.metrics is not None:
        show(watching.metrics, config, stack)
    stores = await open_stores(config.store_url)
    torchserves = TorchServes(config)

    async def encoder(snapshot: Snapshot, hosting: AsyncExitStack) -> tuple[Encoder, Batches]:
        local = config.encoder == "local"
        return await encoder_of(snapshot, None if local else await torchserves.start(snapshot.path / ENCODER, hosting))

    parts = await build_parts(config, snapshot, stores, encoder, config.data_dir / STATES, watching, stack)
    activation = Activation(
        config.snapshot_dir, snapshot.path, parts.servings, config.keep_snapshots, watching.observer
    )
    stack.push_async_callback(activation.close)
    expire_events(config, parts.store, parts.writer.forget, stack)
    await start(server, config, parts, activation, stack)
    return f"{config.listen.rpartition(':')[0]}:{port}", snapshot.snapshot_id
