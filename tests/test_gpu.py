"""On a machine with a GPU: the encoder there says what it says on a CPU, TorchServe hosts it there, training works.

CI has no GPU: there all of this is skipped.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.histories import random_steps

import longtide_handlers.encoder_handler as handler_file
from longtide_handlers.encoder_handler import LongtideEncoderHandler
from longtide_server.encoder import ON_GPU, AnswerSizes, Steps
from longtide_server.encoder.arrays import pack, unpack
from longtide_server.encoder.hosted import MODEL_NAME, LocalEncoder, TorchServeEncoder
from longtide_server.torchserve import TorchServe, TorchServeClient, TorchServeConfig, build_archive
from longtide_server.training.dataset import Holdout, Sequences, hold_out_last
from longtide_server.training.learning.checkpoint import Checkpoints
from longtide_server.training.learning.loop import Run
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.serving import ServingEncoder
from longtide_server.training.learning.train import TrainConfig, train_encoder
from longtide_server.training.learning.workers import Workers, best_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
ITEMS = 12_000  # enough for half precision
CONFIG = ModelConfig(ITEMS, dim=64, hidden=64, blocks=2, use_types=True, use_gaps=True, use_values=True)
SIZES = AnswerSizes(CONFIG.dim, CONFIG.item_count)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "encoder.pt"
    torch.jit.script(ServingEncoder(Encoder(CONFIG).eval())).save(str(path))
    return path


def batch(rows: int, longest: int) -> list[Steps]:
    rng = np.random.default_rng(rows)
    return [random_steps(count, ITEMS, CONFIG.state_size, 10, rng) for count in rng.integers(1, longest + 1, rows)]


def handler(weights, gpu):
    made = LongtideEncoderHandler()
    made.load(weights, gpu)
    return made


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.query, other.query, atol=1e-4)
        np.testing.assert_allclose(one.state, other.state, atol=1e-4)
        np.testing.assert_allclose(one.log_probability, other.log_probability, atol=5e-4)
        assert one.log_z == pytest.approx(other.log_z, abs=5e-4)
    same = [one.items.tolist() == other.items.tolist() for one, other in zip(found, expected, strict=True)]
    assert np.mean(same) >= 0.999


@pytest.mark.parametrize(("rows", "longest"), [(1, 1), (1_000, 1), (7, 600), (1_000, 40)])
def test_the_gpu_says_what_the_cpu_says(weights, rows, longest):
    steps = batch(rows, longest)
    found = unpack(handler(weights, 0).answer(pack(steps)), steps, SIZES)
    assert_alike(found, unpack(handler(weights, None).answer(pack(steps)), steps, SIZES))


def test_on_the_gpu_a_large_call_goes_on_from_piece_to_piece(weights, tmp_path):
    in_pieces = ServingEncoder(Encoder(CONFIG).eval())
    in_pieces.load_state_dict(torch.jit.load(str(weights)).state_dict())
    in_pieces.chunk_on_gpu = 100
    torch.jit.script(in_pieces).save(str(tmp_path / "encoder.pt"))
    steps = batch(30, 40)
    found = unpack(handler(tmp_path / "encoder.pt", 0).answer(pack(steps)), steps, SIZES)
    assert_alike(found, unpack(handler(weights, None).answer(pack(steps)), steps, SIZES))


def test_the_local_encoder_takes_the_gpu(weights):
    local = LocalEncoder(weights, SIZES)
    assert local.batches == ON_GPU
    steps = batch(3, 9)
    found = asyncio.run(local.encode(steps, 60.0))
    assert_alike(found, unpack(handler(weights, None).answer(pack(steps)), steps, SIZES))


async def test_torchserve_hosts_the_encoder_on_the_gpu(weights, tmp_path):
    archive = tmp_path / "encoder.mar"
    build_archive(archive, model_name=MODEL_NAME, version="1", handler=Path(handler_file.__file__), weights=weights)
    serve = TorchServe(
        TorchServeConfig(work_dir=tmp_path / "work", archive=archive, model_name=MODEL_NAME, device="cuda")
    )
    await serve.start()
    try:
        assert serve.on_gpu
        assert [worker.on_gpu for worker in await serve.workers()] == [True]
        encoder = TorchServeEncoder(TorchServeClient(serve.grpc_address), SIZES)
        steps = batch(300, 30)
        found = await encoder.encode(steps, 60.0)
        await encoder.close()
    finally:
        await serve.stop()
    assert_alike(found, unpack(handler(weights, None).answer(pack(steps)), steps, SIZES))


def ring(items: int, users: int, length: int) -> Sequences:
    """Everyone walks the ring of items from another start."""
    starts, steps = np.arange(users)[:, None], np.arange(length)
    count = users * length
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(users)),
        item_ids=tuple(f"i{n}" for n in range(items)),
        offsets=np.arange(0, count + 1, length),
        items=((starts + steps) % items + 1).ravel(),
        types=np.ones(count, np.int64),
        times=np.tile(steps.astype(np.float64), users),
        gaps=np.zeros(count, np.float32),
        values=np.full(count, np.nan, np.float32),
    )


def task(**changes) -> tuple[ModelConfig, TrainConfig, Holdout]:
    """What is learned, and how."""
    config = ModelConfig(20, dim=16, hidden=16, blocks=1, dropout=0.0)
    settings = TrainConfig(epochs=12, batch_events=64, chunk=4, learning_rate=0.02, patience=12)
    return config, replace(settings, **changes), hold_out_last(ring(20, 60, 9))


def learned(run: Run, **changes) -> list[float]:
    """Validation NDCG by epoch."""
    told = []
    train_encoder(*task(**changes), told.append, run)
    return [progress.ndcg for progress in told if progress.finished]


@pytest.mark.parametrize("changes", [{}, {"bfloat16": True}, {"negatives": 16}])
def test_what_follows_what_is_learnt_on_the_gpu(changes):
    assert best_device().type == "cuda"
    assert max(learned(Run(Workers(device=best_device())), **changes)) == 1.0


def test_a_training_on_the_gpu_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    run = Run(Workers(device=best_device()), Checkpoints(tmp_path))
    whole = learned(replace(run, checkpoints=None))

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.finished and progress.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        train_encoder(*task(), kill, run)
    assert learned(run) == pytest.approx(whole[3:], abs=0.02)  # sums on a GPU come in any order
