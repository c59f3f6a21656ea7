"""Workers that are no processes, and a fleet of them."""

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from longtide_server.errors import Unavailable
from longtide_server.workers.fleet import Fleet, Hosted
from longtide_server.workers.link import LinkGone
from longtide_server.workers.messages import Look, Sample
from longtide_server.workers.totals import Totals


class FakeWorker:
    """Does what a Worker does, at once, and remembers what was asked of it."""

    pids = itertools.count(1)

    def __init__(self, number, hosted):
        self.number, self.hosted, self.pid = number, hosted, next(self.pids)
        self.asked = []
        self.failures = {}  # by the name of a message: what is raised instead of an answer
        self.hangs = False
        self.status = None
        self.over = asyncio.Event()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.listens = False

    async def start(self):
        self.hosted.started.append(self)

    async def loaded(self, within_s):
        await self.may_load.wait()
        if self.over.is_set():
            raise Unavailable("it ended while it started")

    async def listen(self, within_s):
        self.listens = True

    async def call(self, message, answer, timeout_s):
        if self.over.is_set():
            raise LinkGone("gone")
        if self.hangs:
            await asyncio.sleep(timeout_s)
            raise self.failures["hang"]
        if not isinstance(message, Look):
            self.asked.append(type(message).__name__)
        if failure := self.failures.get(type(message).__name__):
            raise failure
        return Sample() if isinstance(message, Look) else None

    async def ended(self, within_s=None):
        try:
            async with asyncio.timeout(within_s):
                await self.over.wait()
        except TimeoutError:
            return None
        return self.status

    def terminate(self):
        self._end(0)

    def kill(self):
        self._end(-9)

    async def stop(self, grace_s):
        self._end(0)

    async def end(self):
        self._end(-9)

    def _end(self, status):
        if not self.over.is_set():
            self.status, self.listens = status, False
            self.over.set()


@pytest.fixture
async def fleet(monkeypatch):
    """A fleet of three fake workers that serves the snapshot `old`; whom it has made, and what it has hosted."""
    monkeypatch.setattr("longtide_server.workers.fleet.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("longtide_server.workers.fleet.LOOK_S", 0.05)
    monkeypatch.setattr("longtide_server.workers.fleet.BACKOFF_FIRST_S", 0.01)
    found = SimpleNamespace(made=[], hosted=[], closed=[], prepared_for=lambda worker: None)

    class Recording(Hosted):
        started = found.made

    def hosting(name):
        async def close():
            found.closed.append(name)

        found.hosted.append(name)
        return Recording(Path(name), name, f"{name}:1", close)

    async def host(folder):
        return hosting(folder.name)

    def make(number, hosted):
        worker = FakeWorker(number, hosted)
        found.prepared_for(worker)
        return worker

    found.totals = Totals(3, CollectorRegistry())
    found.fleet = Fleet(3, hosting("old"), host, make, found.totals, 0.0)
    yield found
    await found.fleet.stop()
    assert not any(worker.listens for worker in found.made)
    assert sorted(found.closed) == sorted(found.hosted)
