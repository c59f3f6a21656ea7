"""Calls over the socket between the supervisor and a worker."""

import asyncio
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from longtide_server.config import ServerConfig
from longtide_server.encoder import Batches, EncoderAt
from longtide_server.errors import (
    Conflict,
    DeadlineExceeded,
    EncoderUnreachable,
    FieldViolation,
    InvalidInput,
    SnapshotError,
    Unavailable,
)
from longtide_server.events import EventType
from longtide_server.workers.link import Link, LinkGone
from longtide_server.workers.messages import Activate, Begin, Family, Job, Look, Prepare, Sample, error_of, failure_of

SOON_S = 10.0


async def nothing(message):
    return None


@asynccontextmanager
async def linked(here, there):
    one, other = socket.socketpair()
    ours, theirs = await Link.over(one, here), await Link.over(other, there)
    yield ours, theirs
    await ours.close()
    await theirs.close()


async def test_each_side_asks_the_other_and_is_answered():
    config = ServerConfig(
        Path("snapshots"), Path("data"), retention={EventType.VIEW: 60.0}, workers=3, torchserve_ports=(1, 2, 3, 4)
    )
    job = Job(2, config, "127.0.0.1:1", Path("snapshots/a"), EncoderAt("127.0.0.1:2", Batches(calls=2)))
    sample = Sample(
        [Family("longtide_events", "Events.", "counter", [("longtide_events_total", {"outcome": "new"}, 3.0)])]
    )

    async def supervisor(message):
        return job if message == Begin() else None

    async def worker(message):
        return sample if message == Look() else None

    async with linked(supervisor, worker) as (ours, theirs):
        assert await theirs.call(Begin(), Job, SOON_S) == job
        found = await ours.call(Look(), Sample, SOON_S)
        assert found.families[0].samples[0] == ("longtide_events_total", {"outcome": "new"}, 3.0)
        assert await ours.call(Prepare(Path("b"), None), type(None), SOON_S) is None


async def test_many_calls_at_once_get_each_its_own_answer():
    async def late(message):
        await asyncio.sleep(0.01 * (10 - len(message.snapshot_id)))
        raise Conflict(message.snapshot_id)

    async with linked(nothing, late) as (ours, _):
        names = ["a" * n for n in range(1, 10)]
        asked = (ours.call(Activate(name), type(None), SOON_S) for name in names)
        assert [str(one) for one in await asyncio.gather(*asked, return_exceptions=True)] == names


@pytest.mark.parametrize(
    "error", [SnapshotError("damaged"), Unavailable("no"), InvalidInput("x", (FieldViolation("limit", "is 0"),))]
)
async def test_what_is_raised_there_is_raised_here(error):
    async def fails(message):
        raise error

    async with linked(nothing, fails) as (ours, _):
        with pytest.raises(type(error), match=str(error)) as caught:
            await ours.call(Look(), Sample, SOON_S)
    assert getattr(caught.value, "violations", ()) == getattr(error, "violations", ())


async def test_an_error_that_nobody_expected_is_told_too():
    async def fails(message):
        raise ZeroDivisionError("division by zero")

    async with linked(nothing, fails) as (ours, _):
        with pytest.raises(Unavailable, match="division by zero"):
            await ours.call(Look(), Sample, SOON_S)


def test_a_kind_of_error_that_is_not_known_there_is_sent_as_one_that_is():
    class Odd(SnapshotError):
        pass

    assert type(error_of(failure_of(Odd("odd")))) is SnapshotError
    assert type(error_of(failure_of(EncoderUnreachable("away")))) is EncoderUnreachable


async def test_an_answer_is_not_waited_for_longer_than_was_said():
    async def never(message):
        await asyncio.Event().wait()

    async with linked(nothing, never) as (ours, _):
        with pytest.raises(DeadlineExceeded, match=r"Look was not answered within 0\.05 s"):
            await ours.call(Look(), Sample, 0.05)


async def test_the_end_of_the_other_side_ends_every_call():
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def never(message):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with linked(nothing, never) as (ours, theirs):
        asking = asyncio.create_task(ours.call(Look(), Sample, SOON_S))
        await begun.wait()
        await theirs.close()
        with pytest.raises(LinkGone):
            await asking
        with pytest.raises(LinkGone):
            await ours.call(Look(), Sample, SOON_S)
        async with asyncio.timeout(SOON_S):
            await ours.gone()
            await cancelled.wait()


async def test_what_is_no_message_ends_the_link():
    one, other = socket.socketpair()
    link = await Link.over(one, nothing)
    with other:
        other.sendall(b"\0\0\0\3abc")
        async with asyncio.timeout(SOON_S):
            await link.gone()
    await link.close()
