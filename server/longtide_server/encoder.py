"""Asks the encoder: packs many users' next events into one call, and reads the packed answer.

The seam has two sides: TorchServeEncoder calls the hosted handler, LocalEncoder runs the very same handler in this
process. CoalescingEncoder stands before either: what arrives while a call runs goes out together in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, Overloaded
from longtide_server.torchserve.client import TorchServeClient

MODEL_NAME = "longtide-encoder"
FEW_EVENTS = 32
LEAST_SHARED = 16  # users: fewer are not worth several calls
MAX_WAITING = 4096
ANSWER_TYPES = (np.float32, np.float32, np.int32, np.float32, np.float32)
MAX_LOG_PROBABILITY = 0.1  # what rounding may make of 0, in half precision too

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """One user's next events, and the state that they go on from."""

    items: NDArray[np.int32]
    """(T,) catalogue numbers from 1, T at least 1."""
    types: NDArray[np.uint8]
    """(T,)"""
    gaps: NDArray[np.float32]
    """(T,) seconds since the event before."""
    values: NDArray[np.float32]
    """(T,) NaN where absent."""
    state: NDArray[np.float32]
    """(S,) zeros for a user without events before these."""
    top_n: int
    """How many of the best items to return, 1 or more."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A user after some events."""

    query: NDArray[np.float32]
    """(D,) of length 1."""
    state: NDArray[np.float32]
    """(S,)"""
    items: NDArray[np.int64]
    """(N,) the best items of the catalogue, best first; N is at least what was asked for, or the whole catalogue."""
    log_probability: NDArray[np.float32]
    """(N,)"""
    log_z: float
    """log-probability of item i = cosine(query, i) / temperature - log_z."""


@dataclass(frozen=True, slots=True)
class Batches:
    """How much goes into a call to the encoder, and how many calls go out side by side."""

    users: int = 256
    """Users in a call at most."""
    events: int = 4_096
    """Events of long histories in a call: on one core a sixth of a second, which is what others may wait for it."""
    steps: int = 256
    """Events of one history in a call at most, for they are taken one after the other."""
    calls: int = 1
    """Calls under way at a time, 1 or more."""


ON_CPU = Batches()
ON_GPU = Batches(users=512, events=65_536)
"""A GPU takes a step of hundreds of users in the time of a step of one; more at a time hold the event loop up."""


@dataclass(frozen=True, slots=True)
class EncoderAt:
    """A TorchServe that hosts an encoder."""

    address: str
    """HOST:PORT of its gRPC inference."""
    batches: Batches
    """What is best sent to it at a time."""


@dataclass(frozen=True, slots=True)
class AnswerSizes:
    """How large what a snapshot's encoder answers is, beside states, which are as large as those that it is sent."""

    dim: int
    """Width D of a query vector."""
    item_count: int
    """Items of the catalogue, those without events included."""

    @classmethod
    def of(cls, embeddings: NDArray[np.float32]) -> AnswerSizes:
        """Those that go with a snapshot's item embeddings (I + 1, D)."""
        return cls(embeddings.shape[1], embeddings.shape[0] - 1)


class Encoder(Protocol):
    """Encodes many users in one call."""

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """One result for each of the batch, in order; none where what was computed of that row alone is not finite.

        EncoderUnavailable, DeadlineExceeded or Overloaded.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


class TorchServeEncoder:
    """An Encoder hosted by TorchServe."""

    def __init__(self, client: TorchServeClient, sizes: AnswerSizes) -> None:
        self._client = client
        self._sizes = sizes

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """See Encoder."""
        return unpack(await self._client.predict(MODEL_NAME, pack(batch), timeout_s), batch, self._sizes)

    async def close(self) -> None:
        """See Encoder."""
        await self._client.close()


class LocalEncoder:
    """An Encoder in this process: TorchServe's handler itself, on a thread of its own and the first GPU there is."""

    def __init__(self, weights: Path, sizes: AnswerSizes) -> None:
        # Imported here because it brings torch, which a server with TorchServe does without.
        from longtide_handlers.encoder_handler import LongtideEncoderHandler

        self._handler = LongtideEncoderHandler()
        self._handler.load(weights, gpu=0)
        self._sizes = sizes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-encoder")

    @property
    def batches(self) -> Batches:
        """What is best sent to it at a time."""
        return ON_GPU if self._handler.device.type == "cuda" else ON_CPU

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """See Encoder."""
        loop = asyncio.get_running_loop()
        try:
            answer = await asyncio.wait_for(
                loop.run_in_executor(self._thread, self._handler.answer, pack(batch)), timeout_s
            )
        except TimeoutError as exc:
            raise DeadlineExceeded(f"the encoder did not answer within {timeout_s:.3f} s") from exc
        except Exception as exc:  # TorchScript raises what is no RuntimeError; all of it means: no encoder
            raise EncoderUnavailable(f"the encoder failed: {exc}") from exc
        return unpack(answer, batch, self._sizes)

    async def close(self) -> None:
        """See Encoder."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._handler.close()


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


def pack(batch: Sequence[Steps]) -> Mapping[str, bytes]:
    """The handler's inputs for a batch; see `longtide_handlers.encoder_handler`."""
    return {
        "lengths": np.array([len(steps.items) for steps in batch], np.int32).tobytes(),
        "items": b"".join(steps.items.tobytes() for steps in batch),
        "types": b"".join(steps.types.tobytes() for steps in batch),
        "gaps": b"".join(steps.gaps.tobytes() for steps in batch),
        "values": b"".join(steps.values.tobytes() for steps in batch),
        "states": b"".join(steps.state.tobytes() for steps in batch),
        "top_n": np.array([max(steps.top_n for steps in batch)], np.int32).tobytes(),
    }


def unpack(answer: bytes, batch: Sequence[Steps], expected: AnswerSizes) -> list[Encoded | None]:
    """The handler's answer, checked: none for a row that is not finite.

    EncoderUnavailable when it is not what a healthy handler sends, or no row is finite.
    """
    query, state, items, log_probability, log_z = _parts(answer, (len(batch), expected.dim, len(batch[0].state)))
    finite = np.all([np.isfinite(part).all(1) for part in (query, state, log_probability, log_z)], axis=0)  # (B,)
    if not finite.any():
        raise EncoderUnavailable("the encoder answered nothing that is finite")
    first, last = int(items.min()), int(items.max())
    if not 1 <= first <= last <= expected.item_count:
        raise EncoderUnavailable(f"the encoder answered items {first} to {last}; there are 1 to {expected.item_count}")
    likeliest = float(log_probability[finite].max())
    if likeliest > MAX_LOG_PROBABILITY:
        raise EncoderUnavailable(f"the encoder answered a log-probability of {likeliest:g}")
    # Copies, row by row, of what the row asked for: a kept state must not hold the whole batch's answer in memory.
    return [
        Encoded(
            query[row].copy(),
            state[row].copy(),
            items[row, : steps.top_n].astype(np.int64),
            log_probability[row, : steps.top_n].astype(np.float32),
            float(log_z[row, 0]),
        )
        if finite[row]
        else None
        for row, steps in enumerate(batch)
    ]


def _parts(answer: bytes, wanted: tuple[int, int, int]) -> list[NDArray[Any]]:
    """The arrays of an answer, each with a row for a user; `wanted`: users B, width D and state size S."""
    if len(answer) < 16:
        raise EncoderUnavailable(f"the encoder answered {len(answer)} bytes, too few for a header")
    b, d, s, n = np.frombuffer(answer, np.int32, 4).tolist()
    sizes = [b * d, b * s, b * n, b * n, b]
    if (b, d, s) != wanted or n < 1 or len(answer) != 16 + 4 * sum(sizes):
        raise EncoderUnavailable(
            f"the encoder answered {len(answer)} bytes of shape {(b, d, s, n)}, not {(*wanted, n)}"
        )
    bounds = [16 + 4 * sum(sizes[:i]) for i in range(len(sizes))]
    return [
        np.frombuffer(answer, dtype, size, at).reshape(b, -1)
        for dtype, size, at in zip(ANSWER_TYPES, sizes, bounds, strict=True)
    ]
