"""Joins the calls of many callers: what arrives while a call to the encoder runs goes out together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from longtide_server.encoder import ON_CPU, Batches, Encoded, Encoder, Steps
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded

FEW_EVENTS = 32
LEAST_SHARED = 16  # users: fewer are not worth several calls
MAX_WAITING = 4096

log = structlog.get_logger(__name__)


class CoalescingEncoder:
    """Joins the calls of many callers: a call runs, one for each GPU, and what arrives meanwhile is the next one.

    A lone caller waits for nobody. The queue is bounded, and so is a batch: long histories go on from call to call,
    many side by side, so that a call is never long and the encoder's weights are read for many at once.
    """

    def __init__(self, encoder: Encoder, call_timeout_s: float, batches: Batches = ON_CPU) -> None:
        self._encoder = encoder
        self._call_timeout_s = call_timeout_s
        self._batches = batches
        self._waiting: list[_Waiting] = []
        self._running: list[asyncio.Task[None]] = []
        self._under_way = 0
        """Calls."""

    @property
    def waiting(self) -> int:
        """How many users wait for the next call."""
        return len(self._waiting)

    async def encode(self, steps: Steps, timeout_s: float, patient: Callable[[], bool] = lambda: False) -> Encoded:
        """Encode one user within `timeout_s`; as long as it is `patient`, others go first."""
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} users are waiting for the encoder")
        waiting = _Waiting(steps, asyncio.get_running_loop().create_future(), patient)
        self._waiting.append(waiting)
        self._start()
        try:
            return await asyncio.wait_for(waiting.result, timeout_s)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"the encoder did not answer within {timeout_s:.3f} s") from exc

    async def close(self) -> None:
        """Fail what waits, and close the encoder."""
        for running in self._running:
            running.cancel()
        _fail(self._waiting, EncoderUnavailable("the encoder is closing"))
        await self._encoder.close()

    def _start(self) -> None:
        """Have one more call made, where one more may be under way."""
        self._running = [running for running in self._running if not running.done()]
        if len(self._running) < self._batches.calls:
            self._running.append(asyncio.create_task(self._run()))

    async def _run(self) -> None:
        while batch := self._take():
            if self._waiting:
                self._start()
            most = self._most_steps(batch)
            steps = [waiting.next(most) for waiting in batch]
            self._under_way += 1
            try:
                results = await self._encoder.encode(steps, self._call_timeout_s)
            except (EncoderUnavailable, DeadlineExceeded, Overloaded) as exc:
                _fail(batch, exc)
            except asyncio.CancelledError:
                _fail(batch, EncoderUnavailable("the encoder is closing"))
                raise
            except Exception as exc:  # whatever it is, the callers must not wait for ever
                log.exception("encoder_failed")
                _fail(batch, EncoderUnavailable(f"the encoder failed: {exc}"))
            else:
                taken = zip(batch, steps, results, strict=True)
                left = [waiting for waiting, one, encoded in taken if not waiting.reached(encoded, len(one.items))]
                self._waiting = [*left, *self._waiting]
            finally:
                self._under_way -= 1

    def _take(self) -> list[_Waiting]:
        """The next batch, without the callers who gave up.

        Everybody with few events is in it, and of the others, the patient last, as many as do not take long: nobody
        waits for another's long history, and in every batch there is room for one. Where several calls may be under
        way, each has its share.
        """
        waiting = [one for one in self._waiting if not one.result.done()]
        free, events = self._batches.calls - self._under_way, self._batches.events
        users = min(max(-(-len(waiting) // free), LEAST_SHARED), self._batches.users)
        urgent = [one for one in waiting if one.urgent]
        others = sorted((one for one in waiting if not one.urgent), key=lambda one: one.patient())
        batch = urgent[: users - bool(others)]
        most, room = _fewest_steps(bool(batch)), events
        for one in others:
            if len(batch) == users or room <= 0:
                break
            batch.append(one)
            room -= min(len(one.steps.items), most)
        taken = set(map(id, batch))
        self._waiting = [one for one in waiting if id(one) not in taken]
        return batch

    def _most_steps(self, batch: Sequence[_Waiting]) -> int:
        """How many events of a history go into a call: few where somebody with few waits for the others."""
        if batch[0].urgent:
            return FEW_EVENTS
        return min(self._batches.steps, max(_fewest_steps(False), self._batches.events // len(batch)))


@dataclass(slots=True, eq=False)
class _Waiting:
    steps: Steps
    """What is left, with the state that has been reached."""
    result: asyncio.Future[Encoded]
    patient: Callable[[], bool]

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for little."""
        return len(self.steps.items) <= FEW_EVENTS and not self.patient()

    def next(self, most: int) -> Steps:
        """The next events, at most so many."""
        if len(self.steps.items) <= most:
            return self.steps
        return replace(_part(self.steps, slice(most)), top_n=1)

    def reached(self, encoded: Encoded | None, count: int) -> bool:
        """Go on behind `count` events; whether there is no more to do, and whoever waits has been told."""
        if encoded is None:
            _fail([self], EncoderUnavailable("the encoder answered nothing that is finite for this user"))
            return True
        if len(self.steps.items) > count:
            self.steps = replace(_part(self.steps, slice(count, None)), state=encoded.state)
            return False
        if not self.result.done():
            self.result.set_result(encoded)
        return True


def _fewest_steps(urgent: bool) -> int:
    """Of each long history in a call, for its state to be worth sending: more where nobody waits for the others."""
    return FEW_EVENTS if urgent else 2 * FEW_EVENTS


def _part(steps: Steps, part: slice) -> Steps:
    return replace(
        steps, items=steps.items[part], types=steps.types[part], gaps=steps.gaps[part], values=steps.values[part]
    )


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.result.done():
            waiting.result.set_exception(error)
