"""The composition root: the only place that builds the server's objects, starts them and stops them, in order."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import longtide_handlers
from longtide.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from longtide_server.catalog.catalog_writer import CatalogWriter, ItemCopies, keep_refreshing
from longtide_server.catalog.freshness import Freshness
from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.catalog.live_catalogs import LiveCatalogs, Together
from longtide_server.catalog_store import CatalogStore
from longtide_server.config import ServerConfig
from longtide_server.encoder import (
    MODEL_NAME,
    ON_CPU,
    ON_GPU,
    AnswerSizes,
    Batches,
    CoalescingEncoder,
    Encoder,
    EncoderAt,
    LocalEncoder,
    TorchServeEncoder,
)
from longtide_server.encoder_breaker import BreakingEncoder
from longtide_server.errors import InvalidInput, LongtideError
from longtide_server.event_store import EventStore, Histories
from longtide_server.event_store.urls import hold_store, open_store
from longtide_server.feedback import Feedback
from longtide_server.items.text_cache import TextCache, cache_folder
from longtide_server.new_items.arrivals import Arrivals
from longtide_server.new_items.new_items import NewItems
from longtide_server.new_items.newcomers import Newcomers
from longtide_server.new_items.pulls import Pulls
from longtide_server.new_items.text_encoder import TextEncoder
from longtide_server.observer import NOBODY, Gauges, Observer, StageObserver
from longtide_server.recommender import Recommender
from longtide_server.rpc.catalog_service import CatalogService
from longtide_server.rpc.health import keep_probing
from longtide_server.rpc.service import EventService, RecommendationService, wall_clock_s
from longtide_server.rpc.snapshot_service import Snapshots, SnapshotService
from longtide_server.rpc.user_service import UserService
from longtide_server.serving.activation import Activation
from longtide_server.serving.canary import Bars
from longtide_server.serving.item_finder import ItemFinder
from longtide_server.serving.responses import Responses
from longtide_server.serving.serving import Serving
from longtide_server.serving.servings import Servings
from longtide_server.serving.signals_file import SUFFIX, read_signals, save_signals
from longtide_server.snapshot import (
    ENCODER,
    Manifest,
    Snapshot,
    check_files,
    load_snapshot,
    read_manifest,
    resolve,
)
from longtide_server.sources.similar_items import SimilarItems, spaces_of
from longtide_server.sources.trending import Trending
from longtide_server.stores import Stores, open_stores
from longtide_server.torchserve.archive import build_archive
from longtide_server.torchserve.client import TorchServeClient
from longtide_server.torchserve.config import TorchServeConfig
from longtide_server.torchserve.process import TorchServe
from longtide_server.users.history_writer import HistoryWriter
from longtide_server.users.retention import keep_expiring
from longtide_server.users.state_file import SavedStates, save_states, sweep_states
from longtide_server.users.stepping import Stepper
from longtide_server.users.user_states import UserStates
from longtide_server.watching.calls import Calls
from longtide_server.watching.exposition import Exposition
from longtide_server.watching.metrics import Metrics
from longtide_server.watching.observed import ObservedCatalogStore, ObservedEncoder, ObservedStore
from longtide_server.workers.duties import Duties, Forwarding
from longtide_server.workers.fleet import Fleet, Hosted
from longtide_server.workers.link import Link, LinkGone
from longtide_server.workers.messages import Begin, Failed, Job, Listening, Loaded, Message, failure_of
from longtide_server.workers.port import ReservedPort
from longtide_server.workers.process import Worker
from longtide_server.workers.totals import Totals, families_of

HANDLER = Path(longtide_handlers.__file__).parent / "encoder_handler.py"
STATES = "states"
SAVE_STATES_EVERY_S = 600.0
TEXTS_PATIENCE_S = 30.0
STATES_KEPT_S = 2 * SAVE_STATES_EVERY_S
"""Nobody who runs has saved into an older file: another snapshot's, or that of a worker there is no more."""
KEPT_SIGNALS = 3
LINK_S = 60.0
CONNECTION_AGE_MS = 300_000
EVENTS = events_pb2.DESCRIPTOR.services_by_name["EventService"]
RECOMMENDATIONS = recommendation_pb2.DESCRIPTOR.services_by_name["RecommendationService"]
USERS = users_pb2.DESCRIPTOR.services_by_name["UserService"]
SNAPSHOTS = snapshots_pb2.DESCRIPTOR.services_by_name["SnapshotService"]
CATALOG = catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"]
SERVICES = tuple(service.full_name for service in (EVENTS, RECOMMENDATIONS, USERS, CATALOG, SNAPSHOTS))
STORE_SERVICES = (EVENTS.full_name, USERS.full_name, CATALOG.full_name)
"""Those that can do nothing without the event store. Recommendations are answered from memory then."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def running(config: ServerConfig) -> AsyncIterator[str]:
    """Run a server; yields its HOST:PORT once it answers. On the way out calls under way are finished first.

    SnapshotError when the snapshot cannot be served, Unavailable when a part does not start, InvalidInput when the
    address cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        address, snapshot_id = await (_alone if config.workers == 1 else _supervising)(config, stack)
        log.info("serving", address=address, snapshot=snapshot_id, encoder=config.encoder, workers=config.workers)
        try:
            yield address
        finally:
            log.info("stopping")


async def _alone(config: ServerConfig, stack: AsyncExitStack) -> tuple[str, str]:
    """Serve from this process; where, and which snapshot."""
    snapshot = await asyncio.to_thread(load_snapshot, config.snapshot_dir)
    stack.enter_context(held(config.data_dir))
    server = _server(config, one_of_several=False)
    port = _bind(server, config.listen)  # fails now, and not after TorchServe has started
    watching = await _watching(config, stack)
    if watching.metrics is not None:
        _show(watching.metrics, config, stack)
    stores = await open_stores(config.store_url)
    torchserves = TorchServes(config)

    async def encoder(snapshot: Snapshot, hosting: AsyncExitStack) -> tuple[Encoder, Batches]:
        local = config.encoder == "local"
        return await _encoder(snapshot, None if local else await torchserves.start(snapshot.path / ENCODER, hosting))

    parts = await _parts(config, snapshot, stores, encoder, config.data_dir / STATES, watching, stack)
    activation = Activation(snapshot.path.parent, parts.servings, config.keep_snapshots, watching.observer)
    stack.push_async_callback(activation.close)
    _expire(config, parts.store, parts.writer.forget, stack)
    await _start(server, config, parts, activation, stack)
    return f"{config.listen.rpartition(':')[0]}:{port}", snapshot.snapshot_id


async def _supervising(config: ServerConfig, stack: AsyncExitStack) -> tuple[str, str]:
    """Serve from workers that this process starts, see `workers`; where, and which snapshot."""
    folder = resolve(config.snapshot_dir)
    await asyncio.to_thread(_checked, folder)
    locks = [stack.enter_context(held(config.data_dir))]
    reserved = stack.enter_context(ReservedPort(*_host_and_port(config.listen, "listen")))
    address = f"{config.listen.rpartition(':')[0]}:{reserved.port}"
    own = Metrics()
    totals = Totals(config.workers, own.registry)
    if config.metrics:
        _show(totals, config, stack)
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
    activation = Activation(folder.parent, fleet, config.keep_snapshots, own)
    stack.push_async_callback(activation.close)
    await fleet.start()
    # A worker asks the log for news before it answers, so nobody need be told what has expired.
    _expire(config, store, lambda _: None, stack)
    return address, fleet.snapshot_id


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
                _bind(server, job.address)
                forwarding = Forwarding(job.folder.parent, lambda: parts.servings.snapshot_id, link)
                await _start(server, job.config, parts, forwarding, stack)
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
    watching = await _watching(config, stack)
    stores = await open_stores(config.store_url, shared=True)

    async def encoder(snapshot: Snapshot, _: AsyncExitStack) -> tuple[Encoder, Batches]:
        return await _encoder(snapshot, torchserves[snapshot.path])

    states = config.data_dir / STATES / f"worker-{job.number}"
    parts = await _parts(config, snapshot, stores, encoder, states, watching, stack)
    families = partial(families_of, watching.metrics.registry) if watching.metrics else tuple
    led = Duties(parts.servings, torchserves, families)
    stack.push_async_callback(led.abandon)
    duties.set_result(led)
    return _server(config, one_of_several=True), parts


@dataclass(frozen=True, slots=True, eq=False)
class Watching:
    """Who is told what happens."""

    observer: Observer
    metrics: Metrics | None
    """The observer, where it counts."""
    stages: StageObserver
    calls: Calls


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a process has that answers calls."""

    store: EventStore
    items: CatalogStore
    writer: HistoryWriter
    catalog: CatalogWriter
    feedback: Feedback
    servings: Servings
    watching: Watching


async def _parts(
    config: ServerConfig,
    snapshot: Snapshot,
    stores: Stores,
    encoders: Encoders,
    states: Path,
    watching: Watching,
    stack: AsyncExitStack,
) -> Parts:
    """Build what answers calls, over opened stores. `states`: the folder where this process saves encoder states."""
    observer = watching.observer
    store, items = ObservedStore(stores.events, observer), ObservedCatalogStore(stores.items, observer)
    stack.push_async_callback(store.close)
    writer, feedback, catalog = HistoryWriter(store), Feedback(store, wall_clock_s), CatalogWriter(items)
    live_catalogs, freshness = LiveCatalogs(catalog.everything), Freshness()
    await catalog.add(live_catalogs)
    opener = Opener(config, store, items, writer, feedback, live_catalogs, freshness, encoders, states, watching)
    first = await opener.serve(snapshot)
    servings = Servings(first, opener.open, Bars(latency_s=config.canary_latency_s), observer)
    stack.push_async_callback(servings.close)
    stack.push_async_callback(writer.close)
    stack.push_async_callback(catalog.close)
    if items.shared:
        refreshing = asyncio.create_task(keep_refreshing(catalog, config.catalog_refresh_every_s, freshness))
        stack.push_async_callback(_cancelled, refreshing)
    stack.push_async_callback(feedback.flush)
    stack.push_async_callback(_cancelled, asyncio.create_task(feedback.keep_flushing()))
    return Parts(store, items, writer, catalog, feedback, servings, watching)


async def _start(
    server: grpc.aio.Server, config: ServerConfig, parts: Parts, snapshots: Snapshots, stack: AsyncExitStack
) -> None:
    """Answer calls from now on, on the port that the server is bound to, and say SERVING."""
    store, writer, servings = parts.store, parts.writer, parts.servings
    observer, calls = parts.watching.observer, parts.watching.calls
    events = calls.watched(EventService(writer.write, wall_clock_s, config.retention, observer), EVENTS)
    events_pb2_grpc.add_EventServiceServicer_to_server(events, server)
    recommendations = calls.watched(
        RecommendationService(
            lambda: servings.current, config.default_timeout_s, wall_clock_s, observer, parts.catalog.catch_up
        ),
        RECOMMENDATIONS,
    )
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(recommendations, server)
    users = calls.watched(UserService(store, writer, wall_clock_s), USERS)
    users_pb2_grpc.add_UserServiceServicer_to_server(users, server)
    catalogs = calls.watched(CatalogService(parts.items, parts.catalog, wall_clock_s), CATALOG)
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(catalogs, server)
    snapshot_service = calls.watched(SnapshotService(snapshots), SNAPSHOTS)
    snapshots_pb2_grpc.add_SnapshotServiceServicer_to_server(snapshot_service, server)
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    await server.start()
    stack.push_async_callback(server.stop, config.stop_grace_s)
    stack.push_async_callback(status.enter_graceful_shutdown)
    for name in ("", *SERVICES):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def store_works(works: bool) -> None:
        observer.store_works(works)
        healthy = health_pb2.HealthCheckResponse.SERVING if works else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in STORE_SERVICES:
            await status.set(name, healthy)

    probing = asyncio.create_task(keep_probing(store, config.store_probe_every_s, store_works))
    stack.push_async_callback(_cancelled, probing)


def _server(config: ServerConfig, *, one_of_several: bool) -> grpc.aio.Server:
    # Connections are spread over workers as they are made; a worker that is started again would get none of the old.
    # Those that are as old as this are made anew, between two calls; streams go on to their end.
    spread = [("grpc.max_connection_age_ms", CONNECTION_AGE_MS)] if one_of_several else []
    return grpc.aio.server(
        maximum_concurrent_rpcs=config.max_calls,
        options=[
            # gRPC drops some of the calls that arrive while so many wait to be taken up, and all at twice as many.
            # A longer queue would have every call answered late, or after its caller has gone.
            ("grpc.server.max_pending_requests", config.max_waiting_calls),
            ("grpc.server.max_pending_requests_hard_limit", 2 * config.max_waiting_calls),
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.so_reuseport", int(one_of_several)),
            # The SDK pings idle streams once a minute; without this gRPC would end them for that.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
            *spread,
        ],
    )


def _expire(
    config: ServerConfig, store: EventStore, forget: Callable[[Iterable[str]], None], stack: AsyncExitStack
) -> None:
    """Delete events that have become too old, again and again."""
    if config.retention:
        expiring = asyncio.create_task(keep_expiring(store, config.retention, forget, wall_clock_s))
        stack.push_async_callback(_cancelled, expiring)


@contextmanager
def held(data_dir: Path) -> Iterator[BinaryIO]:
    """Hold a data directory: two servers on one would tread on each other. InvalidInput when another holds it.

    Yields the lock, which whoever inherits it holds as well.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("wb")
    except OSError as exc:
        raise InvalidInput.of("data_dir", f"{data_dir} cannot be used: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise InvalidInput.of("data_dir", f"{data_dir} is in use by another server") from exc
        yield lock


def check_listen(listen: str) -> None:
    """Whether an address can be listened on, without a server. InvalidInput when it cannot."""
    host, port = _host_and_port(listen, "listen")
    try:
        with socket.create_server((host.strip("[]"), port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as exc:
        raise InvalidInput.of("listen", f"{listen} cannot be listened on: {exc.strerror}") from exc


Encoders = Callable[[Snapshot, AsyncExitStack], Awaitable[tuple[Encoder, Batches]]]
"""Gives a snapshot's encoder, and what is best sent to it; what is started for it ends with the stack."""


async def _encoder(snapshot: Snapshot, torchserve: EncoderAt | None) -> tuple[Encoder, Batches]:
    """A snapshot's encoder, in that TorchServe, or where there is none in this process; what is best sent to it."""
    sizes = AnswerSizes.of(snapshot.embeddings)
    if torchserve is not None:
        return TorchServeEncoder(TorchServeClient(torchserve.address), sizes), torchserve.batches
    local = await asyncio.to_thread(LocalEncoder, snapshot.path / ENCODER, sizes)
    return local, local.batches


class TorchServes:
    """Starts TorchServes."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._number = itertools.count(1)
        for left_over in config.data_dir.glob("torchserve-*"):  # by a server that was killed
            shutil.rmtree(left_over, ignore_errors=True)

    async def start(self, weights: Path, stack: AsyncExitStack) -> EncoderAt:
        """Start one for an encoder. It ends with the stack. Unavailable when it does not start."""
        config, number = self._config, next(self._number)
        # What is activated later runs beside what was served before, so it has a folder and ports of its own.
        work_dir = config.data_dir / ("torchserve" if number == 1 else f"torchserve-{number}")
        ports = config.torchserve_ports if number == 1 else (0, 0, 0, 0)
        if number > 1:
            stack.callback(shutil.rmtree, work_dir, ignore_errors=True)
        archive = work_dir / "encoder.mar"
        archive.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(
            build_archive, archive, model_name=MODEL_NAME, version="1.0", handler=HANDLER, weights=weights
        )
        torchserve = TorchServe(
            TorchServeConfig(
                work_dir=work_dir,
                archive=archive,
                model_name=MODEL_NAME,
                workers=config.torchserve_workers,
                grpc_inference_port=ports[0],
                grpc_management_port=ports[1],
                http_inference_port=ports[2],
                http_management_port=ports[3],
            )
        )
        stack.push_async_callback(torchserve.stop)
        await torchserve.start()
        batches = ON_GPU if torchserve.on_gpu else ON_CPU
        return EncoderAt(torchserve.grpc_address, replace(batches, calls=config.torchserve_workers))


class Opener:
    """Opens servings: everything that belongs to one snapshot."""

    def __init__(
        self,
        config: ServerConfig,
        store: Histories,
        items: CatalogStore,
        writer: HistoryWriter,
        feedback: Feedback,
        catalogs: LiveCatalogs,
        freshness: Freshness,
        encoders: Encoders,
        states: Path,
        watching: Watching,
    ) -> None:
        self._config = config
        self._observer = watching.observer
        self._stages = watching.stages
        self._store = store
        self._items = items
        self._writer = writer
        self._feedback = feedback
        self._catalogs = catalogs
        self._freshness = freshness
        self._encoders = encoders
        self._states = states
        self._counting: list[Trending] = []
        """Of the servings that are open."""

    async def open(self, folder: Path) -> Serving:
        """The serving of a folder's snapshot. SnapshotError when it is damaged, else as `serve`."""
        return await self.serve(await asyncio.to_thread(load_snapshot, folder))

    async def serve(self, snapshot: Snapshot) -> Serving:
        """The serving of a loaded snapshot. Unavailable when its encoder does not start, or items cannot be read."""
        config = self._config
        async with AsyncExitStack() as stack:
            texts, texts_started = self._texts(snapshot, stack)  # first, for it takes as long as TorchServe
            hosted, batches = await self._encoders(snapshot, stack)
            hosted = ObservedEncoder(hosted, self._observer)
            breaker = BreakingEncoder(hosted, snapshot.manifest.encoder.state_size)
            encoder = CoalescingEncoder(breaker, config.encoder_timeout_s, batches)
            stack.push_async_callback(encoder.close)
            saved = await asyncio.to_thread(_saved_states, config.data_dir / STATES, snapshot.snapshot_id)
            states = UserStates(
                snapshot, self._store, encoder, config.cached_users, config.encoder_timeout_s, saved, self._observer
            )
            live = await asyncio.to_thread(LiveCatalog, snapshot.catalog)
            signals = await asyncio.to_thread(read_signals, self._states, snapshot.snapshot_id)
            newcomers = Newcomers(len(snapshot.catalog) + 1, snapshot.manifest.encoder.dim, signals.pulled)
            copies_of_items: ItemCopies = live
            if snapshot.content is not None:
                arrivals = Arrivals(snapshot.catalog, snapshot.content, newcomers, self._items.get, texts, wall_clock_s)
                stack.push_async_callback(arrivals.close)
                copies_of_items = Together(live, arrivals)
            pulls = Pulls(newcomers, states)
            # Whoever counts already has heard of every event until now; the file, of those before it was written.
            counts = self._counting[-1].counts() if self._counting else signals.counts
            trending = Trending(snapshot.catalog, wall_clock_s, before=counts)
            self._counting.append(trending)
            stack.callback(self._counting.remove, trending)
            save = partial(
                _save, config.data_dir / STATES, self._states, snapshot.snapshot_id, states, newcomers, trending
            )
            stack.push_async_callback(save)
            stack.push_async_callback(_cancelled, asyncio.create_task(_keep_saving(save)))
            stepper = Stepper(states)
            stack.push_async_callback(stepper.close)
            stack.push_async_callback(pulls.close)
            # In this order: a pull is by whom they were before, and who follows what was written must know of it.
            for copies in (pulls, states, stepper, trending):
                self._writer.add(copies)
                stack.callback(self._writer.remove, copies)
            self._writer.tell(stepper)
            stack.callback(self._writer.tell_no_more, stepper)
            await self._catalogs.add(copies_of_items)
            stack.callback(self._catalogs.remove, copies_of_items)
            shown = partial(self._feedback.shown, snapshot.snapshot_id)
            new = NewItems(newcomers, live, snapshot.manifest.encoder.temperature, wall_clock_s)
            stale = self._freshness.stale_reason
            recommender = Recommender(
                snapshot, states, self._stages, live, wall_clock_s, trending, new, config.explore_share, stale
            )
            spaces = await asyncio.to_thread(spaces_of, snapshot.embeddings, snapshot.content_vectors)
            similar = SimilarItems(spaces)
            stack.push_async_callback(_cancelled, asyncio.create_task(similar.build()))
            finder = ItemFinder(snapshot, similar, live, new, wall_clock_s)
            responses = Responses(recommender, shown, config.cached_users, self._observer)
            gauges = Gauges(
                users=lambda: states.count,
                answers=lambda: responses.count,
                waiting=lambda: encoder.waiting,
                left_alone=lambda: breaker.is_open,
            )
            self._observer.watch(gauges)
            stack.callback(self._observer.unwatch, gauges)
            await asyncio.wait((texts_started,), timeout=TEXTS_PATIENCE_S)  # then the first new item waits for nothing
            return Serving(snapshot, states, responses, finder, stack.pop_all().aclose)

    def _texts(self, snapshot: Snapshot, stack: AsyncExitStack) -> tuple[TextEncoder, asyncio.Task[None]]:
        """What reads the texts of new items, and its start, which is over at once where no text is to be read."""
        model = "" if snapshot.content is None else snapshot.content.text_model
        cache = TextCache(cache_folder(os.environ), lambda text: log.warning("text_cache", reason=text))
        texts = TextEncoder(model, cache, self._config.text_model)
        stack.push_async_callback(texts.close)
        started = asyncio.create_task(texts.start() if model else asyncio.sleep(0))
        stack.push_async_callback(_cancelled, started)
        return texts, started


def _saved_states(folder: Path, snapshot_id: str) -> list[SavedStates]:
    """What earlier runs have saved, whichever of their processes it was."""
    files = (one / f"{snapshot_id}.arrow" for one in (folder, *sorted(folder.glob("worker-*"))))
    return [SavedStates(file, snapshot_id) for file in files]


async def _save(
    root: Path, folder: Path, snapshot_id: str, states: UserStates, newcomers: Newcomers, trending: Trending
) -> None:
    """Save for the next run what is in memory alone, and clear away what earlier ones have saved."""
    counts, pulled = trending.counts(), newcomers.pulled()
    for save in (
        partial(save_signals, folder, snapshot_id, counts, pulled),
        partial(save_states, folder / f"{snapshot_id}.arrow", snapshot_id, states.rows()),
        partial(sweep_states, root, wall_clock_s() - STATES_KEPT_S),
        partial(_keep_newest_signals, folder),
    ):
        try:
            await asyncio.to_thread(save)
        except OSError as exc:
            log.warning("states_not_saved", folder=str(folder), reason=str(exc))


def _keep_newest_signals(folder: Path) -> None:
    for old in sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)[:-KEPT_SIGNALS]:
        old.unlink()


async def _keep_saving(save: Callable[[], Awaitable[None]]) -> None:
    """Save again and again, until it is cancelled."""
    while True:
        await asyncio.sleep(SAVE_STATES_EVERY_S)
        await save()


async def _watching(config: ServerConfig, stack: AsyncExitStack) -> Watching:
    """Who is told what happens: nobody, unless metrics or traces are asked for.

    InvalidInput when OpenTelemetry is not installed.
    """
    metrics = Metrics() if config.metrics else None
    observer: Observer = metrics or NOBODY
    if not config.otlp_endpoint:
        return Watching(observer, metrics, observer, Calls(observer))
    try:
        from longtide_server.watching.tracing import Tracing
    except ImportError as exc:
        raise InvalidInput.of("otlp_endpoint", "needs pip install 'longtide[otel]'") from exc
    tracing = Tracing(config.otlp_endpoint)
    stack.push_async_callback(tracing.close)
    return Watching(observer, metrics, tracing.stages(observer), Calls(observer, tracing))


def _show(shown: Metrics | Totals, config: ServerConfig, stack: AsyncExitStack) -> None:
    """Show metrics. InvalidInput when their address cannot be listened on."""
    exposition = Exposition(shown.registry, *_host_and_port(config.metrics, "metrics"))
    stack.push_async_callback(exposition.close)
    log.info("metrics_shown", url=exposition.url)


def _checked(folder: Path) -> Manifest:
    """The manifest of a snapshot whose files are as it says. SnapshotError when they are not."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel until it is true: Python 3.11's `wait_for`, which redis-py uses, may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.5)


def _bind(server: grpc.aio.Server, listen: str) -> int:
    _host_and_port(listen, "listen")
    try:
        return server.add_insecure_port(listen)
    except RuntimeError as exc:
        raise InvalidInput.of("listen", f"{listen} cannot be listened on; is something else there?") from exc


def _host_and_port(address: str, field: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:  # gRPC would take it modulo 65,536
        raise InvalidInput.of(field, f"{address!r} is not HOST:PORT")
    return host, int(port)
