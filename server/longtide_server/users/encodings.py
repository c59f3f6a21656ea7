"""Has the encoder take a user's steps, in order, for all who wait for them; of events being written, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

import numpy as np

from longtide_server.encoder import Encoded
from longtide_server.encoder.coalescing import CoalescingEncoder
from longtide_server.errors import DeadlineExceeded
from longtide_server.event_store import Appended
from longtide_server.events import Event
from longtide_server.users.user_state import (
    KEPT_FAR_EVENTS,
    KEPT_NEAR_EVENTS,
    TOP_N_MARGIN,
    Expected,
    UserState,
    steps_between,
)

MAX_STEP_EVENTS = 256  # then the state is kept: however long a history is and however busy the encoder, it goes on
ITEMS_AHEAD = 10
MAX_EXPECTED = 32  # users at a time: where more write, several events of a user are better taken at once


class Encodings:
    """Has the encoder take steps, a user's one after the other, shared by all who wait for them."""

    def __init__(self, encoder: CoalescingEncoder, state_size: int, step_timeout_s: float) -> None:
        self._encoder = encoder
        self._step_timeout_s = step_timeout_s
        self._zeros = np.zeros(state_size, np.float32)
        self._expecting = 0
        """Encodings of events that are being written."""

    async def encoded(
        self, user: UserState, session: Sequence[int], top_n: int, timeout_s: float, *, patient: bool = False
    ) -> Encoded | None:
        """The user after every event and the session's items; None when there are none.

        Only events that the kept state has not seen are encoded, and the result without the session is kept. `patient`:
        nobody looks at a screen and waits, so all others go first.
        EncoderUnavailable, DeadlineExceeded or Overloaded when the encoder cannot answer.
        """
        end_s = time.monotonic() + timeout_s
        # Again, when an event came late meanwhile and what was encoded is no longer what happened.
        while len(user.items) > user.encoded_count:
            await self._advanced(user, top_n, end_s - time.monotonic(), patient)
        if session:
            state, count = user.state(), len(user.items)
            state = self._zeros if state is None else state
            steps = steps_between(user, count, count, session, state, top_n)
            return await self._encoder.encode(steps, end_s - time.monotonic(), lambda: patient)
        return user.encoded

    async def step(self, user: UserState) -> None:
        """Bring a user's state up to what happened, before anybody asks. Fails as `encoded` does."""
        await self.encoded(user, (), _top_n_ahead(user), self._step_timeout_s)

    def may_expect(self, user: UserState) -> bool:
        """Whether a user's state is fresh, and not too much is expected already."""
        idle = user.advancing is None and user.expected is None
        return self._expecting < MAX_EXPECTED and idle and user.encoded_count == len(user.items)

    def expect(self, user: UserState, events: Sequence[Event], numbers: Sequence[int]) -> None:
        """Take the steps of such a user's events that are being written, which follow all others."""
        ahead = UserState(user.owner)  # the last event, which says how long ago it was, and those that are expected
        ahead.times, ahead.items = user.times[-1:], user.items[-1:]
        ahead.types, ahead.values = user.types[-1:], user.values[-1:]
        ahead.append(events, numbers)
        state, start = user.state(), len(user.items[-1:])
        state = self._zeros if state is None else state
        steps = steps_between(ahead, start, len(ahead.items), (), state, _top_n_ahead(user))
        encoding = asyncio.create_task(self._encoder.encode(steps, self._step_timeout_s))
        self._expecting += 1
        encoding.add_done_callback(self._end_expecting)
        user.expected = Expected(user.version, tuple(events), encoding)

    def _end_expecting(self, encoding: asyncio.Task[Encoded]) -> None:
        self._expecting -= 1
        heard(encoding)

    def take_expected(self, user: UserState, appended: Appended) -> None:
        """Where what was written is what was expected, its steps are those that are under way."""
        expected, user.expected = user.expected, None
        if expected is None or user.advancing is not None:
            return
        if (expected.before, expected.events) != (appended.before, tuple(appended.events)):
            return
        user.patient = False
        user.advancing = asyncio.create_task(self._take(user, expected.encoding, len(user.items), user.generation))
        user.advancing.add_done_callback(partial(_over, user))

    @staticmethod
    async def _take(user: UserState, encoding: Awaitable[Encoded], count: int, generation: int) -> None:
        """Keep what comes of an encoding of the first `count` events, if these are still what happened."""
        encoded = await encoding
        if user.generation == generation and count >= user.encoded_count:
            user.advance(encoded, count)

    async def _advanced(self, user: UserState, top_n: int, timeout_s: float, patient: bool) -> None:
        """Wait for the user's next steps; they go on, and are kept, when this caller's time is over."""
        if user.advancing is None or user.advancing.done():
            user.patient = patient
            user.advancing = asyncio.create_task(self._advance(user, top_n))
            user.advancing.add_done_callback(partial(_over, user))
        user.patient &= patient
        advancing = user.advancing  # whoever is woken first may begin the next one
        done, _ = await asyncio.wait((advancing,), timeout=max(timeout_s, 0.0))
        if not done:
            raise DeadlineExceeded(f"the encoder did not answer within {timeout_s:.3f} s")
        advancing.result()

    async def _advance(self, user: UserState, top_n: int) -> None:
        start, generation = user.encoded_count, user.generation
        end = min(len(user.items), start + MAX_STEP_EVENTS)
        if end == len(user.items) and end - start > KEPT_FAR_EVENTS and not user.patient:
            end -= KEPT_NEAR_EVENTS  # so that a state is kept shortly before the end
        state = user.state()
        steps = steps_between(user, start, end, (), self._zeros if state is None else state, top_n)
        encoding = self._encoder.encode(steps, self._step_timeout_s, lambda: user.patient)
        await self._take(user, encoding, end, generation)


def _top_n_ahead(user: UserState) -> int:
    return TOP_N_MARGIN + ITEMS_AHEAD + len(user.seen)


def heard(task: asyncio.Task[Any]) -> None:
    """What failed after its last caller gave up is nobody's error; asyncio would report it as one."""
    if not task.cancelled():
        task.exception()


def _over(user: UserState, advancing: asyncio.Task[None]) -> None:
    """An encoding is over: nobody holds on to it."""
    heard(advancing)
    if user.advancing is advancing:
        user.advancing = None
