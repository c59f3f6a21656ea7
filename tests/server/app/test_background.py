"""Work beside the calls."""

import asyncio
import contextlib

from longtide_server.app.background import cancelled


async def test_a_task_is_cancelled_even_if_it_swallows_that_once():
    """As Python 3.11's wait_for does when what it waits for is done at that moment."""
    begun = asyncio.Event()

    async def stubborn():
        with contextlib.suppress(asyncio.CancelledError):
            begun.set()
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    task = asyncio.create_task(stubborn())
    await begun.wait()
    async with asyncio.timeout(5.0):
        await cancelled(task)
    assert task.cancelled()
