"""A world small enough to work out by eye, with a fake encoder, and one tiny snapshot that was trained and is served.

The world lies on a circle: an item's embedding is a direction. a is at 0 degrees, b at 30, c at 60, d at 90 and e at
180, popular in that order. Whoever's last item is b has the query vector of b.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from longtide_server.catalog.catalog import Catalog, ItemInfo
from longtide_server.catalog.live_catalog import LiveCatalog
from longtide_server.config import ServerConfig
from longtide_server.encoder import AnswerSizes, Encoded
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.event_store import Appended, History, Version, Written
from longtide_server.event_store.sqlite import SqliteEventStore
from longtide_server.events import Event, EventType
from longtide_server.new_items.new_items import none_new
from longtide_server.ranking import Fusion
from longtide_server.recommender import Recommender
from longtide_server.serving.activation import Activation
from longtide_server.serving.canary import Bars
from longtide_server.serving.item_finder import ItemFinder
from longtide_server.serving.responses import Responses
from longtide_server.serving.serving import Serving
from longtide_server.serving.servings import Servings
from longtide_server.snapshot import (
    CURRENT,
    ENCODER,
    MANIFEST,
    EncoderFacts,
    Manifest,
    NeighborSettings,
    Snapshot,
    copy_snapshot,
    load_snapshot,
    read_manifest,
    resolve,
)
from longtide_server.sources.behavior import BehaviorWeights
from longtide_server.sources.candidates import Transitions, TransitionSettings
from longtide_server.sources.neighbors import NeighborIndex, Positions, build_index
from longtide_server.sources.request_time import RequestTimeWeights
from longtide_server.sources.similar_items import SimilarItems, spaces_of
from longtide_server.sources.trending import Trending
from longtide_server.users.history_writer import HistoryWriter
from longtide_server.users.user_states import UserStates

TEMPERATURE = 0.5
DEGREES = {"a": 0, "b": 30, "c": 60, "d": 90, "e": 180}
POPULARITY = (0.4, 0.3, 0.15, 0.1, 0.05)
FUSION = Fusion(encoder=1.0, neighbors=0.5, transitions=0.3, popularity=0.0, floor=0.1)
FOLLOWS = {"a": {"b": 1.0}, "b": {"c": 0.75, "d": 0.25}}
MOMENTS = [("bob", 0, "c"), ("bob", 60, "d"), ("cara", 10, "e"), ("dan", 30, "c")]
"""Whose moment it is, where on the circle they were, and what they did next."""


def direction(degrees):
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], np.float32)


class MemoryStore:
    """Histories in memory; what was read or written may be held back from the caller for a while."""

    def __init__(self):
        self.shared = False
        self.stamped = False  # whether it says by a stamp that nothing has changed
        self.histories = {}
        self.rewrites = {}
        self.names = {}  # what a name of an owner means
        self.reads = []
        self.read_begun = asyncio.Semaphore(0)
        self.reading_allowed = asyncio.Event()
        self.reading_allowed.set()
        self.write_done = asyncio.Semaphore(0)
        self.answering_allowed = asyncio.Event()
        self.answering_allowed.set()
        self.failure = None  # raised instead of an answer

    def stamp(self):
        return (len(self.events), sum(self.rewrites.values())) if self.stamped else None

    async def write(self, events):
        if self.failure:
            raise self.failure
        appended, new = {}, 0
        ids = {}
        for event in events:
            history = self.histories.setdefault(event.owner, [])
            if event.owner not in ids:
                ids[event.owner] = {known.event_id for known in history}
            if event.event_id not in ids[event.owner]:
                ids[event.owner].add(event.event_id)
                new += 1
                before = appended[event.owner].before if event.owner in appended else self.version(event.owner)
                history.append(event)
                added = appended[event.owner].events if event.owner in appended else ()
                appended[event.owner] = Appended(before, self.version(event.owner), (*added, event))
        self.write_done.release()
        await self.answering_allowed.wait()
        return Written(new, len(events) - new, appended)

    async def history(self, owner, known=None):
        if self.failure:
            raise self.failure
        self.reads.append(owner.removeprefix("user:"))
        owner = self.names.get(owner, owner)
        version, events = self.version(owner), list(self.histories.get(owner, ()))
        self.read_begun.release()
        await self.reading_allowed.wait()
        since = known.version if known is not None and known.owner == owner else None
        if since is not None and since.rewrites == version.rewrites and since.position <= version.position:
            return History(owner, version, events[since.position :], whole=False)
        names = frozenset(name for name, of in self.names.items() if of == owner)
        return History(owner, version, sorted(events, key=lambda event: event.time_s), names=names)

    @property
    def events(self):
        """Every event by its id, owner after owner."""
        return {event.event_id: event for history in self.histories.values() for event in history}

    def version(self, owner):
        return Version(self.rewrites.get(owner, 0), len(self.histories.get(owner, ())))


class FakeEncoder:
    """An Encoder to work out by eye: the query vector is the last item's embedding.

    The state is [events so far, the items' numbers, each counting half as much as the one after it].
    """

    state_size = 2

    def __init__(self, embeddings, temperature=TEMPERATURE):
        self.calls = []  # every batch that arrived, failed ones included
        self.closed = False
        self.failure = None  # raised instead of an answer
        self.unsound = ()  # items: what it answers after one of them is not finite
        self.call_begun = asyncio.Semaphore(0)
        self.answering_allowed = asyncio.Event()
        self.answering_allowed.set()
        self._embeddings = embeddings
        self._temperature = temperature

    @property
    def rows(self):
        """The items of every row that arrived, as lists."""
        return [[steps.items.tolist() for steps in batch] for batch in self.calls]

    @property
    def events(self):
        """How many events arrived."""
        return sum(len(steps.items) for batch in self.calls for steps in batch)

    async def encode(self, batch, timeout_s):
        self.calls.append(list(batch))
        self.call_begun.release()
        await self.answering_allowed.wait()
        if self.failure:
            raise self.failure
        return [None if steps.items[-1] in self.unsound else self._encoded(steps) for steps in batch]

    async def close(self):
        self.closed = True

    def _encoded(self, steps):
        count, trace = steps.state.tolist()
        for item in steps.items.tolist():
            count, trace = count + 1, trace / 2 + item
        query = self._embeddings[steps.items[-1]]
        logits = self._embeddings[1:] @ query / self._temperature
        log_z = float(np.log(np.exp(logits).sum()))
        best = np.argsort(-logits, kind="stable")[: steps.top_n]
        return Encoded(query, np.array([count, trace], np.float32), best + 1, logits[best] - log_z, log_z)


def make_event(event_id, item_id="a", time_s=0.0, user_id="ann", **rest):
    return Event(event_id, user_id, item_id, rest.pop("type", EventType.VIEW), time_s, **rest)


@pytest.fixture
def event():
    """Makes a valid event: event(event_id, item_id, time_s, user_id)."""
    return make_event


@pytest.fixture
def make_snapshot(tmp_path_factory):
    """Makes a world's snapshot; a test changes what it is about."""

    def made(degrees=DEGREES, popularity=POPULARITY, follows=FOLLOWS, moments=MOMENTS, fusion=FUSION, **neighbors):
        ids = tuple(degrees)
        catalog = Catalog(ids, tuple(ItemInfo(f"Title {item}", ("letters",)) for item in ids))
        users = tuple(dict.fromkeys(user for user, _, _ in moments))
        owners = tuple(user if user.startswith("session:") else f"user:{user}" for user in users)
        positions = Positions(
            user=np.array([users.index(user) for user, _, _ in moments], np.int32),
            next_item=np.array([catalog.number(item) for _, _, item in moments], np.int32),
            weight=np.ones(len(moments), np.float32),
        )
        vectors = np.array([direction(at) for _, at, _ in moments], np.float32).reshape(-1, 2)
        path = tmp_path_factory.mktemp("world") / "positions.ann"
        build_index(vectors, path, trees=10)
        manifest = Manifest(
            snapshot_id="world",
            created_time="2026-11-01T00:00:00+00:00",
            encoder=EncoderFacts(2, FakeEncoder.state_size, TEMPERATURE),
            neighbors=NeighborSettings(**({"count": 4, "min_similarity": 0.9, "temperature": 0.5} | neighbors)),
            transitions=TransitionSettings(lags=2, decay=0.5),
            fusion=fusion,
            user_count=len(users),
            item_count=len(ids),
            event_count=len(moments),
            model={},
            training={},
            metrics={},
        )
        return Snapshot(
            manifest=manifest,
            path=path.parent,
            catalog=catalog,
            owners=owners,
            owner_numbers={owner: number for number, owner in enumerate(owners)},
            embeddings=np.array([[0.0, 0.0], *(direction(at) for at in degrees.values())], np.float32),
            popularity=np.array([0.0, *popularity]),
            transitions=make_transitions(catalog, follows),
            neighbors=NeighborIndex(path, np.eye(2, dtype=np.float32), positions),
        )

    return made


def make_transitions(catalog, follows):
    rows = [follows.get(item, {}) for item in ("", *catalog.item_ids)]  # row 0 is padding
    return Transitions(
        offsets=np.cumsum([0, *(len(row) for row in rows)]),
        items=np.array([catalog.number(item) for row in rows for item in row], np.int32),
        probability=np.array([share for row in rows for share in row.values()], np.float32),
    )


@pytest.fixture
def make_world(make_snapshot):
    """Makes a recommender with all its parts; the encoder is fake and the events are in memory."""

    def made(*, capacity=10, snapshot=None, **changes):
        snapshot = snapshot or make_snapshot(**changes)
        store, encoder = MemoryStore(), FakeEncoder(snapshot.embeddings)
        coalescing = CoalescingEncoder(encoder, 10.0)
        states = UserStates(snapshot, store, coalescing, capacity)
        writer = HistoryWriter(store)
        writer.add(states)
        live, clock = LiveCatalog(snapshot.catalog), SimpleNamespace(now_s=1_000.0)
        trending = Trending(snapshot.catalog, lambda: clock.now_s)
        writer.add(trending)
        recommender = Recommender(snapshot, states, live=live, clock=lambda: clock.now_s, trending=trending)
        responses = Responses(recommender, lambda surface, items: "token", capacity)
        similar = SimilarItems(spaces_of(snapshot.embeddings, snapshot.content_vectors))
        finder = ItemFinder(snapshot, similar, live, none_new(snapshot, live, lambda: clock.now_s), lambda: clock.now_s)

        async def write(*events):
            await writer.write(events)

        async def did(user_id, items):
            """The user acts on the items, a second apart."""
            at = len(store.events)
            await write(*(make_event(f"{user_id}-{at + i}", item, at + i, user_id) for i, item in enumerate(items)))

        return SimpleNamespace(
            snapshot=snapshot,
            store=store,
            encoder=encoder,
            coalescing=coalescing,
            states=states,
            writer=writer,
            live=live,
            clock=clock,
            recommender=recommender,
            serving=Serving(snapshot, states, responses, finder, coalescing.close),
            write=write,
            did=did,
        )

    return made


@pytest.fixture
def world(make_world):
    return make_world()


@pytest.fixture
def timed_world(make_world, make_snapshot):
    """Only the encoder counts, and whoever comes back a day later has turned by 90 degrees; within the day nobody."""
    into, out = np.eye(2, dtype=np.float32), np.array([[0, -1], [1, 0]], np.float32)
    scale = np.zeros((32, 2), np.float32)
    scale[16:] = 1e3
    weights = RequestTimeWeights(np.zeros((32, 2), np.float32), scale, into, out)
    snapshot = make_snapshot(fusion=Fusion(encoder=1.0, neighbors=0.0, transitions=0.0, popularity=0.0))
    return make_world(snapshot=replace(snapshot, request_time=weights))


@pytest.fixture
def told_world(make_world, make_snapshot):
    """Its snapshot's head is all zeros, and values are 3 on average."""
    snapshot, types = make_snapshot(), len(EventType) + 1
    zeros = [np.zeros(shape, np.float32) for shape in ((types, 2), (types,), (2, 6), (2,), (2,), (1,))]
    head = BehaviorWeights(*zeros, np.array([3, 1], np.float32))
    manifest = replace(snapshot.manifest, model={"use_values": True})
    return make_world(snapshot=replace(snapshot, manifest=manifest, behavior=head))


@pytest.fixture
def config(tiny_snapshots, tmp_path):
    """Settings of a server; tests change what they are about."""

    def made(**changes):
        base = {"snapshot_dir": tiny_snapshots, "data_dir": tmp_path / "data", "listen": "127.0.0.1:0"}
        return ServerConfig(**(base | {"encoder": "local", "stop_grace_s": 1.0} | changes))

    return made


@pytest.fixture(scope="session")
def tiny_snapshot(tiny_snapshots):
    return load_snapshot(tiny_snapshots)


def copies(source, directory, *names):
    """The same snapshot under several names, the first being current; each a second younger than the one before."""
    directory.mkdir()
    for second, name in enumerate(names):
        folder = copy_snapshot(resolve(source), directory)
        manifest = (folder / MANIFEST).read_text()
        was = read_manifest(folder)
        manifest = manifest.replace(was.snapshot_id, name)
        manifest = manifest.replace(was.created_time, f"2026-11-01T00:00:0{second}+00:00")
        (folder / MANIFEST).write_text(manifest)
        folder.rename(directory / name)
    (directory / CURRENT).write_text(names[0])
    return directory


@pytest.fixture
def copied(tiny_snapshots, tmp_path):
    """Makes a snapshot directory: copied("a", "b") holds the tiny snapshot under two names, the first being current."""
    return lambda *names: copies(tiny_snapshots, tmp_path / "snapshots", *names)


@pytest.fixture
async def served(tiny_snapshots, tmp_path):
    """Snapshots a, b and c, of which a is served, over an event log in a file."""
    directory = copies(tiny_snapshots, tmp_path / "snapshots", "a", "b", "c")
    store = SqliteEventStore(tmp_path / "events.db")
    writer = HistoryWriter(store)
    opened = []

    async def open_serving(folder):
        snapshot = load_snapshot(folder)
        encoder = CoalescingEncoder(LocalEncoder(snapshot.path / ENCODER, AnswerSizes.of(snapshot.embeddings)), 10.0)
        states = UserStates(snapshot, store, encoder, 100)
        writer.add(states)
        released = asyncio.Event()

        async def release():
            released.set()
            writer.remove(states)
            await encoder.close()

        responses = Responses(Recommender(snapshot, states), lambda surface, items: "token")
        similar = SimilarItems(spaces_of(snapshot.embeddings, snapshot.content_vectors))
        live = LiveCatalog(snapshot.catalog)
        finder = ItemFinder(snapshot, similar, live, none_new(snapshot, live, time.time), time.time)
        serving = Serving(snapshot, states, responses, finder, release)
        opened.append(SimpleNamespace(serving=serving, released=released, encoder=encoder))
        return serving

    servings = Servings(await open_serving(directory / "a"), open_serving, Bars(recall=0.0, latency_s=10.0))
    activation = Activation(directory, directory / "a", servings, 2)
    yield SimpleNamespace(
        activation=activation, servings=servings, writer=writer, store=store, directory=directory, opened=opened
    )
    await activation.close()
    await servings.close()
    await writer.close()
    await store.close()
    assert all(one.released.is_set() for one in opened)


@pytest.fixture
def held(monkeypatch):
    """Holds a function of a module until the event loop lets it go, which it cannot where the function holds it up."""

    def hold(module, name):
        function, begun, go_on = getattr(module, name), threading.Event(), threading.Event()

        def wait(*given):
            begun.set()
            assert go_on.wait(5), f"{name} held the event loop up"
            return function(*given)

        async def meanwhile():
            assert await asyncio.to_thread(begun.wait, 5)
            go_on.set()

        monkeypatch.setattr(module, name, wait)
        return meanwhile()

    return hold
