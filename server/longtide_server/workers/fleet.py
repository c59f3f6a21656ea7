"""All workers: started, watched, started again when one is lost, and led to another snapshot together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from longtide_server.encoder import EncoderAt
from longtide_server.errors import DeadlineExceeded, LongtideError, Unavailable
from longtide_server.serving.servings import DRAIN_S
from longtide_server.workers.link import LinkGone
from longtide_server.workers.messages import Abandon, Commit, Drain, Look, Prepare, Sample
from longtide_server.workers.process import Worker
from longtide_server.workers.totals import Totals

LOAD_S = 300.0
PREPARE_S = 600.0
LISTEN_S = 30.0
COMMIT_S = 15.0
LOOK_EVERY_S = 2.0
LOOK_S = 30.0
STOP_MARGIN_S = 20.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
HEALTHY_S = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Hosted:
    """A snapshot that workers can serve, and the TorchServe that has its encoder."""

    folder: Path
    snapshot_id: str
    torchserve: EncoderAt | None
    """None where workers run the encoder themselves."""
    close: Callable[[], Awaitable[None]]
    """Ends TorchServe."""


class Fleet:
    """The workers of one server. Also the way to another snapshot, see `activation.Swap`.

    What is served changes at one moment, between two awaits. A worker that has what was prepared is told to swap, and
    one that has not, because it has only just come up, or that does not do it in time, is ended: whoever starts from
    then on starts with the new snapshot.
    """

    def __init__(
        self,
        workers: int,
        first: Hosted,
        host: Callable[[Path], Awaitable[Hosted]],
        make: Callable[[int, Hosted], Worker],
        totals: Totals,
        stop_grace_s: float,
    ) -> None:
        """`host` checks a folder's snapshot and starts a TorchServe for it; `make` makes the worker of a number."""
        self._numbers = range(workers)
        self._hosted = first
        self._host = host
        self._make = make
        self._totals = totals
        self._stop_after_s = stop_grace_s + STOP_MARGIN_S
        self._loaded: dict[int, Worker] = {}
        """By number, those that take part in what is asked of all."""
        self._next: tuple[Hosted, Sequence[Worker]] | None = None
        """What is prepared, and by whom."""
        self._keeping: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def snapshot_id(self) -> str:
        """What is served."""
        return self._hosted.snapshot_id

    @property
    def pids(self) -> list[int]:
        """Of the workers that are up."""
        return [worker.pid for worker in self._loaded.values()]

    async def start(self) -> None:
        """Start all workers, and from then on keep them going. Raises why one cannot start; none is left then."""
        starting = [asyncio.create_task(self._begun(number)) for number in self._numbers]
        try:
            begun = await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.wait(starting)
            raise
        self._keeping = [asyncio.create_task(self._keep(worker)) for worker in begun]
        for keeping in self._keeping:
            keeping.add_done_callback(_log_if_failed)

    async def stop(self) -> None:
        """Have every worker finish its calls and end."""
        for keeping in self._keeping:
            keeping.cancel()
        if self._keeping:
            await asyncio.wait(self._keeping)
        await asyncio.gather(*(worker.stop(self._stop_after_s) for worker in self._loaded.values()))
        self._loaded.clear()
        if self._leaving:
            await asyncio.wait(self._leaving)  # no worker is left for them to wait for
        await self.abandon()
        await self._hosted.close()

    # To another snapshot

    async def prepare(self, folder: Path) -> None:
        """See Swap. One worker tries it first, so that a snapshot that is not fit costs no more than that."""
        await self.abandon()
        hosted = await self._host(folder)
        workers = list(self._loaded.values())
        self._next = hosted, workers
        if not workers:
            raise Unavailable("no worker is up")
        message = Prepare(hosted.folder, hosted.torchserve)
        await workers[0].call(message, type(None), PREPARE_S)
        preparing = [asyncio.create_task(worker.call(message, type(None), PREPARE_S)) for worker in workers[1:]]
        try:
            await asyncio.gather(*preparing)
        finally:
            for task in preparing:
                task.cancel()
            if preparing:
                await asyncio.wait(preparing)

    async def commit(self) -> None:
        """See Swap."""
        assert self._next is not None
        (hosted, prepared), self._next = self._next, None
        old, self._hosted = self._hosted, hosted
        now = list(self._loaded.values())
        for worker in now:
            if worker not in prepared:
                log.info("worker_has_another_snapshot", worker=worker.number)
                worker.terminate()
        try:
            await asyncio.gather(*(self._committed(worker, hosted) for worker in now if worker in prepared))
        finally:
            leaving = asyncio.create_task(self._left(old, now))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def abandon(self) -> None:
        """See Swap."""
        if self._next is None:
            return
        (hosted, workers), self._next = self._next, None
        await asyncio.gather(*(self._abandoned(worker) for worker in workers))
        await hosted.close()

    async def _committed(self, worker: Worker, hosted: Hosted) -> None:
        try:
            await worker.call(Commit(hosted.folder), type(None), COMMIT_S)
        except LongtideError as exc:
            log.error("worker_did_not_swap", worker=worker.number, reason=str(exc))
            worker.kill()
            await worker.ended()  # nobody is answered from the old one when this returns

    async def _abandoned(self, worker: Worker) -> None:
        try:
            await worker.call(Abandon(), type(None), COMMIT_S)
        except LongtideError as exc:  # it has ended, and with it what it had prepared
            log.warning("worker_did_not_abandon", worker=worker.number, reason=str(exc))

    async def _left(self, old: Hosted, workers: Sequence[Worker]) -> None:
        """End what was served before once no worker uses it."""
        drained = (worker.call(Drain(), type(None), DRAIN_S + COMMIT_S) for worker in workers)
        try:
            await asyncio.gather(*drained, return_exceptions=True)
        finally:
            await old.close()

    # One worker after the other

    async def _keep(self, worker: Worker) -> None:
        """Whenever the worker is lost, start another one with its number, until this is cancelled."""
        number, failures = worker.number, 0
        while True:
            begun_s = _now_s()
            reason = await self._lost(worker)
            self._loaded.pop(number, None)
            self._totals.ended(number)
            failures = 0 if _now_s() - begun_s > HEALTHY_S else failures + 1
            log.warning("worker_lost", worker=number, pid=worker.pid, reason=reason)
            await worker.end()
            worker = await self._begun_again(number, failures)
            log.info("worker_restarted", worker=number, pid=worker.pid)

    async def _begun_again(self, number: int, failures: int) -> Worker:
        while True:
            if failures:
                await asyncio.sleep(min(BACKOFF_FIRST_S * 2 ** (failures - 1), BACKOFF_MAX_S))
            try:
                worker = await self._begun(number)
            except (LongtideError, OSError) as exc:
                failures += 1
                log.error("worker_not_started", worker=number, attempt=failures, reason=str(exc))
            else:
                self._totals.restarted()
                return worker

    async def _begun(self, number: int) -> Worker:
        """A worker that answers calls."""
        while True:
            hosted = self._hosted
            worker = self._make(number, hosted)
            try:
                await worker.start()
                await worker.loaded(LOAD_S)
                if hosted is self._hosted:
                    self._loaded[number] = worker  # and is asked, from now on, whatever all are asked
                    await worker.listen(LISTEN_S)
                    self._totals.looked(number, await worker.call(Look(), Sample, LOOK_S))
                    return worker
            except BaseException:
                self._loaded.pop(number, None)
                await worker.end()
                raise
            log.info("worker_has_another_snapshot", worker=number)
            await worker.stop(self._stop_after_s)

    async def _lost(self, worker: Worker) -> str:
        """Why the worker is lost, once it is: it has ended, or does not answer and is ended for it."""
        while (status := await worker.ended(LOOK_EVERY_S)) is None:
            try:
                self._totals.looked(worker.number, await worker.call(Look(), Sample, LOOK_S))
            except DeadlineExceeded:
                return f"it did not answer for {LOOK_S:g} s"
            except LinkGone:
                worker.kill()  # it is about to end, if it has not hung itself up
            except LongtideError as exc:
                log.error("worker_not_looked_at", worker=worker.number, reason=str(exc))
        return f"it ended with status {status}"


def _log_if_failed(keeping: asyncio.Task[None]) -> None:
    if not keeping.cancelled() and keeping.exception() is not None:
        log.error("worker_no_longer_kept", exc_info=keeping.exception())


def _now_s() -> float:
    return asyncio.get_running_loop().time()
