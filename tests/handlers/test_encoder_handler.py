"""The handler: alone it gives the bytes that the server's own process gives, and it goes where TorchServe sends it."""

import asyncio
import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.histories import random_steps

import longtide_handlers.encoder_handler as handler_file
from longtide_handlers.encoder_handler import PARALLEL_EVENTS, LongtideEncoderHandler, shares, using
from longtide_server.encoder import AnswerSizes, Encoded, Steps
from longtide_server.encoder.arrays import pack, unpack
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.torchserve.archive import build_archive
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.serving import ServingEncoder

BARE_LOAD = Path(__file__).parents[1] / "torchserve" / "bare_load.py"
CONFIG = ModelConfig(30, dim=8, hidden=8, blocks=1, use_types=True, use_gaps=True, use_values=True)
SIZES = AnswerSizes(CONFIG.dim, CONFIG.item_count)

ANSWER = """
import importlib, pathlib, runpy, sys, types
bare_load, folder = sys.argv[1:]
sys.meta_path.insert(0, runpy.run_path(bare_load)["Refuse"]())
sys.path.insert(0, folder)
found = importlib.import_module("encoder_handler").LongtideEncoderHandler()
manifest = {"model": {"serializedFile": "encoder.pt"}}
found.initialize(types.SimpleNamespace(system_properties={"model_dir": folder, "gpu_id": None}, manifest=manifest))
request = {path.name: path.read_bytes() for path in pathlib.Path(folder, "request").iterdir()}
sys.stdout.buffer.write(b"".join(found.handle([request], None)))
"""


@pytest.fixture(autouse=True)
def log_level():
    """The handler makes the process that it is hosted in quiet."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "encoder.pt"
    torch.jit.script(ServingEncoder(Encoder(CONFIG).eval())).save(str(path))
    return path


def steps(count: int, top_n: int = 5) -> Steps:
    return random_steps(count, 30, CONFIG.state_size, top_n, np.random.default_rng(count))


BATCH = [steps(3), steps(1), steps(40, top_n=7)]


def context(weights: Path, gpu_id) -> SimpleNamespace:
    return SimpleNamespace(
        system_properties={"model_dir": str(weights.parent), "gpu_id": gpu_id},
        manifest={"model": {"serializedFile": weights.name}},
    )


def handler(weights: Path, gpu_id=None) -> LongtideEncoderHandler:
    made = LongtideEncoderHandler()
    made.initialize(context(weights, gpu_id))
    return made


async def encode_here(weights: Path) -> list[Encoded]:
    local = LocalEncoder(weights, SIZES)
    try:
        return await local.encode(BATCH, 60.0)
    finally:
        await local.close()


def test_unpacked_and_alone_it_answers_as_the_local_encoder_does(weights, tmp_path):
    build_archive(tmp_path / "e.mar", model_name="e", version="1", handler=Path(handler_file.__file__), weights=weights)
    with zipfile.ZipFile(tmp_path / "e.mar") as archive:
        archive.extractall(tmp_path / "unpacked")
        assert json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]["handler"] == "encoder_handler.py"
    (tmp_path / "unpacked" / "request").mkdir()
    for name, raw in pack(BATCH).items():
        (tmp_path / "unpacked" / "request" / name).write_bytes(raw)

    command = [sys.executable, "-I", "-c", ANSWER, str(BARE_LOAD), str(tmp_path / "unpacked")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()

    for found, wanted in zip(unpack(done.stdout, BATCH, SIZES), asyncio.run(encode_here(weights)), strict=True):
        for name in ("query", "state", "items", "log_probability"):
            assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes(), name
        assert found.log_z == wanted.log_z


@torch.inference_mode()
def test_the_answer_is_what_the_model_says(weights):
    found = unpack(handler(weights).answer(pack([steps(3)])), [steps(3)], SIZES)[0]
    model = torch.jit.load(str(weights))
    one = steps(3)
    query, state, items, log_probability, log_z = model(
        *(torch.from_numpy(part.astype(kind)) for part, kind in (
            (one.items, np.int64), (one.types, np.int64), (one.gaps, np.float32), (one.values, np.float32))),
        torch.tensor([3]), torch.from_numpy(one.state)[None], 5,
    )  # fmt: skip
    np.testing.assert_allclose(found.query, query[0].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.state, state[0].numpy(), rtol=1e-5, atol=1e-6)
    assert found.items.tolist() == items[0].tolist()
    np.testing.assert_allclose(found.log_probability, log_probability[0].numpy(), rtol=1e-5, atol=1e-5)
    assert found.log_z == pytest.approx(float(log_z), rel=1e-5)


def test_a_batch_of_requests_gets_an_answer_each(weights):
    made = handler(weights)
    requests = [pack(BATCH), pack(BATCH[:1])]
    assert made.handle(requests, None) == [made.answer(request) for request in requests]


def test_rows_of_unlike_lengths_are_answered_as_each_alone(weights):
    batch = [steps(count, top_n=5) for count in (300, 2, 90, 1, 4, 250, 3, 5, 100, 280, 110, 1)]
    made = handler(weights)
    for found, one in zip(unpack(made.answer(pack(batch)), batch, SIZES), batch, strict=True):
        [alone] = unpack(made.answer(pack([one])), [one], SIZES)
        np.testing.assert_allclose(found.query, alone.query, atol=1e-5)
        np.testing.assert_allclose(found.state, alone.state, atol=1e-5)
        assert found.items.tolist() == alone.items.tolist()


def test_rows_shared_between_threads_are_answered_as_by_one(weights):
    batch = [steps(count, top_n=5) for count in (300, 2, 90, 700, 4, 250, 3, 5)]
    answers = []
    for threads in (1, 3):
        with using(threads):
            answers.append(unpack(handler(weights).answer(pack(batch)), batch, SIZES))
    for found, one in zip(*answers, strict=True):
        np.testing.assert_allclose(found.query, one.query, atol=1e-5)
        np.testing.assert_allclose(found.state, one.state, atol=1e-5)
        assert found.items.tolist() == one.items.tolist()


@pytest.mark.parametrize(
    ("lengths", "threads", "rows"),
    [
        ([1], 4, [[0]]),
        ([1] * 8, 4, [[0, 1, 2, 3, 4, 5, 6, 7]]),  # not worth a thread
        ([300] * 4, 1, [[0, 1, 2, 3]]),
        ([300] * 4, 2, [[0, 2], [1, 3]]),
        ([500, 600], 2, [[1], [0]]),
        ([200, 256, 256, 256], 2, [[1, 3], [0, 2]]),
        ([1, 1, 2_000], 2, [[2], [0, 1]]),
        ([600] * 3, 8, [[0], [1], [2]]),
    ],
)
def test_threads_have_rows_of_about_as_many_events(lengths, threads, rows):
    assert [part.tolist() for part in shares(np.array(lengths), threads)] == rows


@given(st.lists(st.integers(1, 256), min_size=1, max_size=64), st.integers(1, 16))
def test_every_row_has_one_thread_and_none_has_far_more_than_its_share(lengths, threads):
    parts = shares(np.array(lengths), threads)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert len(parts) <= threads
    assert max(sum(lengths[row] for row in part) for part in parts) <= sum(lengths) / len(parts) + max(lengths)


def test_large_calls_are_shared_between_threads_that_have_one_core_each(weights, monkeypatch):
    used = []
    encoded = LongtideEncoderHandler._encoded

    def noting(self, request, lengths, rows):
        used.append((torch.get_num_threads(), len(rows)))
        return encoded(self, request, lengths, rows)

    monkeypatch.setattr(LongtideEncoderHandler, "_encoded", noting)
    with using(2):
        made = handler(weights)
        made.answer(pack([steps(300)] * 4))
        assert torch.get_num_threads() == 2  # as before, for all others
        made.close()
    assert used == [(1, 2), (1, 2)]


def test_threads_share_the_memory_of_the_scores(weights):
    with using(1):
        alone = handler(weights).model.scored_cells
    with using(4):
        assert handler(weights).model.scored_cells == alone // 4


def test_every_row_keeps_as_many_items_as_it_asked_for(weights):
    found = unpack(handler(weights).answer(pack(BATCH)), BATCH, SIZES)
    assert [len(one.items) for one in found] == [one.top_n for one in BATCH]


@pytest.mark.parametrize(("events", "threads"), [(1, 1), (PARALLEL_EVENTS - 1, 1), (PARALLEL_EVENTS, 2)])
def test_only_long_histories_share_operations_between_threads(weights, monkeypatch, events, threads):
    used = []
    monkeypatch.setattr(LongtideEncoderHandler, "_tensor", noting_threads(used, LongtideEncoderHandler._tensor))
    with using(2):
        handler(weights).answer(pack([steps(events)]))
        assert torch.get_num_threads() == 2
    assert set(used) == {threads}


def noting_threads(used, method):
    """A method that notes how many threads torch may use."""

    def noting(self, *arguments):
        used.append(torch.get_num_threads())
        return method(self, *arguments)

    return noting


def test_it_is_ready_only_once_initialised(weights):
    assert not LongtideEncoderHandler().initialized
    assert handler(weights).initialized


def test_it_has_torchserve_print_nothing_at_a_call_and_leaves_other_processes_as_they_are(weights):
    logging.getLogger().setLevel(logging.INFO)
    LongtideEncoderHandler().load(weights, None)
    assert logging.getLogger().isEnabledFor(logging.INFO)
    handler(weights)
    assert not logging.getLogger().isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("gpus", "assigned", "device"),
    [
        (False, None, "cpu"),
        (False, 0, "cpu"),  # TorchServe counts GPUs that torch cannot use
        (True, None, "cpu"),  # TorchServe gave this worker none
        (True, 1, "cuda:1"),
    ],
)
def test_it_goes_to_the_gpu_it_was_given_and_to_the_cpu_without_one(weights, monkeypatch, gpus, assigned, device):
    loaded_onto = []

    def load(path, map_location):
        loaded_onto.append(map_location)
        return torch.nn.Identity()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.jit, "load", load)
    assert handler(weights, assigned).device == torch.device(device)
    assert loaded_onto == [torch.device(device)]
