"""When supervision gives an instance up for lost."""

import asyncio
import time

from longtide_server.torchserve import TorchServe


async def test_processes_that_live_without_a_ready_worker_are_lost_after_the_startup_timeout(settings, tmp_path):
    instance = TorchServe(settings(tmp_path, startup_timeout_s=0.3))
    process = await asyncio.create_subprocess_exec("sleep", "30")
    begin_s = time.monotonic()
    await instance._until_lost(process)
    assert 0.3 <= time.monotonic() - begin_s < 1.0
    process.kill()
    begin_s = time.monotonic()
    await instance._until_lost(process)
    assert time.monotonic() - begin_s < 0.2
    await process.wait()
