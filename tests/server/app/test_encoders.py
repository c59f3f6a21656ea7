"""Where the encoder is hosted, and how it is called."""

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from longtide import AsyncClient, Event
from longtide_server.app import encoders, running
from longtide_server.encoder import ON_CPU, ON_GPU, Batches, EncoderAt
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.snapshot import ENCODER, resolve


@pytest.mark.parametrize(("on_gpu", "batches"), [(True, ON_GPU), (False, ON_CPU)])
async def test_torchserve_is_called_with_what_suits_it(config, copied, monkeypatch, on_gpu, batches):
    """Without a GPU, and without TorchServe, which the end-to-end tests start."""
    told = []

    class Started:
        grpc_address = "127.0.0.1:1"

        def __init__(self, settings):
            told.append(settings.workers)
            self.on_gpu = on_gpu

        async def start(self):
            pass

        async def stop(self):
            pass

    monkeypatch.setattr(encoders, "TorchServe", Started)
    settings = config(snapshot_dir=copied("a"), torchserve_workers=3)
    settings.data_dir.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        found = await encoders.TorchServes(settings).start(resolve(settings.snapshot_dir) / ENCODER, stack)
    assert found == EncoderAt("127.0.0.1:1", replace(batches, calls=3))
    assert told == [3]


async def test_calls_are_as_large_as_suits_the_encoder(config, monkeypatch):
    encode, sizes = LocalEncoder.encode, []

    async def seen(self, batch, timeout_s):
        sizes.append(len(batch))
        return await encode(self, batch, timeout_s)

    monkeypatch.setattr(LocalEncoder, "encode", seen)
    monkeypatch.setattr(LocalEncoder, "batches", Batches(users=2))
    async with running(config()) as address, AsyncClient(address) as client:
        await client.write_events([Event(f"u{n}", "item-3", "view") for n in range(9)])
        assert len([answer async for answer in client.recommend_many([f"u{n}" for n in range(9)])]) == 9
    assert max(sizes) == 2
