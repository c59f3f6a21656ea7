"""Leaves a failing encoder alone: after a few failures in a row callers are told at once, and a probe looks after it.

Callers never pay for finding out whether the encoder is back: a probe of one event does. The counting is purgatory's,
a circuit breaker after Nygard (Release It!, 2007).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import structlog
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import ClosedState

from longtide_server.encoder import Encoded, Encoder, Steps
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, EncoderUnreachable, Overloaded

FAILURES = 3
PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 2.0
CIRCUIT = "encoder"

log = structlog.get_logger(__name__)


class BreakingEncoder:
    """An Encoder that fails at once while the one behind it keeps failing."""

    def __init__(self, encoder: Encoder, state_size: int, probe_every_s: float = PROBE_EVERY_S) -> None:
        self._encoder = encoder
        self._probe_every_s = probe_every_s
        one = np.ones(1, np.float32)
        self._probe_steps = Steps(
            one.astype(np.int32), one.astype(np.uint8), 0 * one, 0 * one, np.zeros(state_size, np.float32), 1
        )
        # What is Overloaded is alive, and a caller who goes away says nothing.
        self._breakers = AsyncCircuitBreakerFactory(FAILURES, exclude=[Overloaded, asyncio.CancelledError])
        self._probing: asyncio.Task[None] | None = None
        self._why = ""
        self._kind = EncoderUnavailable

    @property
    def is_open(self) -> bool:
        """Whether callers are turned away."""
        return self._probing is not None

    async def encode(self, batch: Sequence[Steps], timeout_s: float) -> list[Encoded | None]:
        """See Encoder."""
        if self._probing is not None:
            raise self._kind(f"the encoder is left alone after {FAILURES} failures, the last: {self._why}")
        breaker = await self._breakers.get_breaker(CIRCUIT)
        try:
            async with breaker:
                return await self._encoder.encode(batch, timeout_s)
        except Exception as exc:
            if breaker.context.state == "opened" and self._probing is None:
                self._note(exc)
                log.warning("encoder_left_alone", reason=self._why)
                self._probing = asyncio.create_task(self._probe(), name="encoder-probe")
            raise

    async def close(self) -> None:
        """See Encoder."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait((self._probing,))
        await self._encoder.close()

    def _note(self, failure: Exception) -> None:
        """What those who are turned away are told."""
        self._why = str(failure)
        self._kind = EncoderUnreachable if isinstance(failure, EncoderUnreachable) else EncoderUnavailable

    async def _probe(self) -> None:
        """Try one event again and again; return when it is encoded."""
        while True:
            await asyncio.sleep(self._probe_every_s)
            try:
                # Past the breaker, whose own pause ends by the wall clock, which may have been set back.
                await self._encoder.encode([self._probe_steps], PROBE_TIMEOUT_S)
            except (EncoderUnavailable, DeadlineExceeded, Overloaded) as exc:
                self._note(exc)
                continue
            except Exception:  # whatever it is, the encoder must be looked after
                log.exception("encoder_probe_failed")
                continue
            (await self._breakers.get_breaker(CIRCUIT)).context.set_state(ClosedState())
            log.info("encoder_back")
            self._probing = None
            return
