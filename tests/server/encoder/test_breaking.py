"""A failing encoder is left alone, looked after, and used again, without its callers paying for any of it."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from longtide_server.encoder.breaking import FAILURES, BreakingEncoder
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable, EncoderUnreachable, Overloaded

SOON_S = 5.0


@pytest.fixture
async def breaking(world):
    encoder = BreakingEncoder(world.encoder, state_size=2, probe_every_s=0.02)
    yield encoder
    world.encoder.answering_allowed.set()
    await encoder.close()


@pytest.fixture
def steps(breaking):
    return breaking._probe_steps


async def failures(breaking, steps, count=FAILURES):
    for _ in range(count):
        with pytest.raises((EncoderUnavailable, DeadlineExceeded, Overloaded)):
            await breaking.encode([steps], SOON_S)


async def until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (EncoderUnavailable("down"), EncoderUnavailable),
        (EncoderUnreachable("away"), EncoderUnreachable),
        (DeadlineExceeded("slow"), EncoderUnavailable),
    ],
)
async def test_after_some_failures_in_a_row_callers_are_told_at_once(world, breaking, steps, failure, kind):
    world.encoder.failure = failure
    await failures(breaking, steps)
    world.encoder.answering_allowed.clear()  # whoever asks the encoder now waits
    with pytest.raises(EncoderUnavailable, match=f"left alone after 3 failures, the last: {failure}") as told:
        async with asyncio.timeout(1.0):
            await breaking.encode([steps], SOON_S)
    assert told.type is kind


async def test_a_failure_between_successes_is_no_reason(world, breaking, steps):
    for _ in range(3 * FAILURES):
        world.encoder.failure = EncoderUnavailable("down")
        await failures(breaking, steps, 1)
        world.encoder.failure = None
        assert len(await breaking.encode([steps], SOON_S)) == 1
    assert not breaking.is_open


async def test_a_row_without_an_answer_is_no_reason_where_others_have_one(world, breaking, steps):
    world.encoder.unsound = (2,)
    unsound = replace(steps, items=steps.items + 1)
    for _ in range(3 * FAILURES):
        answered, unanswered = await breaking.encode([steps, unsound], SOON_S)
        assert (answered is None, unanswered) == (False, None)
    assert not breaking.is_open


async def test_a_full_queue_is_no_reason(world, breaking, steps):
    world.encoder.failure = Overloaded("full")
    await failures(breaking, steps, 3 * FAILURES)
    assert not breaking.is_open


async def test_the_probe_finds_an_encoder_that_is_back(world, breaking, steps):
    world.encoder.failure = EncoderUnavailable("down")
    await failures(breaking, steps)
    probed = len(world.encoder.calls)
    await until(lambda: len(world.encoder.calls) > probed + 2)  # it goes on while the encoder fails
    assert breaking.is_open
    world.encoder.failure = None
    await until(lambda: not breaking.is_open)
    assert len(await breaking.encode([steps], SOON_S)) == 1


async def test_the_probe_finds_it_back_although_the_clock_was_set_back(world, breaking, steps, monkeypatch):
    world.encoder.failure = EncoderUnavailable("down")
    await failures(breaking, steps)
    monkeypatch.setattr("purgatory.domain.model.time", SimpleNamespace(time=lambda: 0.0))
    world.encoder.failure = None
    await until(lambda: not breaking.is_open)
    assert len(await breaking.encode([steps], SOON_S)) == 1


async def test_what_nobody_expected_is_looked_after_too(world, breaking, steps):
    world.encoder.failure = RuntimeError("nobody thought of this")
    for _ in range(FAILURES):
        with pytest.raises(RuntimeError):
            await breaking.encode([steps], SOON_S)
    probed = len(world.encoder.calls)
    await until(lambda: len(world.encoder.calls) > probed + 2)
    assert breaking.is_open
    world.encoder.failure = None
    await until(lambda: not breaking.is_open)


async def test_it_may_fail_again(world, breaking, steps):
    for _ in range(2):
        world.encoder.failure = EncoderUnavailable("down")
        await failures(breaking, steps)
        assert breaking.is_open
        world.encoder.failure = None
        await until(lambda: not breaking.is_open)


async def test_it_is_looked_after_until_a_probe_finds_it_back_although_an_older_call_failed_meanwhile(world, steps):
    late, probing = asyncio.Event(), asyncio.Event()

    class Encoder:
        """The first call fails late, the next ones at once, and then each takes its time and succeeds."""

        calls = 0

        async def encode(self, batch, timeout_s):
            self.calls += 1
            if self.calls == 1:
                await late.wait()
                raise EncoderUnavailable("late")
            if self.calls <= 1 + FAILURES:
                raise EncoderUnavailable("down")
            probing.set()
            await asyncio.sleep(0.05)
            return [None]

        async def close(self):
            pass

    breaking = BreakingEncoder(Encoder(), state_size=2, probe_every_s=0.4)
    older = asyncio.ensure_future(breaking.encode([steps], SOON_S))
    await asyncio.sleep(0)
    await failures(breaking, steps)
    await probing.wait()
    late.set()
    with pytest.raises(EncoderUnavailable):
        await older
    await until(lambda: not breaking.is_open)
    assert await breaking.encode([steps], SOON_S) == [None]  # and nobody is turned away once it is said to be back
    await breaking.close()


async def test_closing_ends_the_probe(world, breaking, steps):
    world.encoder.failure = EncoderUnavailable("down")
    await failures(breaking, steps)
    await breaking.close()
    assert world.encoder.closed
    calls = len(world.encoder.calls)
    await asyncio.sleep(0.1)
    assert len(world.encoder.calls) == calls
