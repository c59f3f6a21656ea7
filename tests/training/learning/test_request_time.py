"""What the time of a request changes: nothing at first, then what was learnt; the same in torch and in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

from longtide_server.sources.request_time import query_after
from longtide_server.training.dataset import Sequences, hold_out_last, nothing_held_out, select, to_sequences
from longtide_server.training.files.log import read_log
from longtide_server.training.judging.evaluate import evaluate
from longtide_server.training.learning.encoding import last_queries
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.request_time import WAITS, RequestTime
from longtide_server.training.learning.serving import ServingEncoder
from longtide_server.training.learning.train import TrainConfig, train_encoder
from longtide_server.training.settings import settings_for, with_overrides

DIM = 8


pytestmark = pytest.mark.usefixtures("one_thread")


def learnt() -> RequestTime:
    """A module in which every weight has a say."""
    torch.manual_seed(0)
    module = RequestTime(DIM)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.5)
    return module


def queries(count: int) -> torch.Tensor:
    return normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)), dim=1)


def test_it_begins_as_the_identity():
    query = queries(3)
    assert_close(RequestTime(DIM)(query, torch.tensor([0.0, 60.0, 1e9])), query)


@torch.inference_mode()
@pytest.mark.parametrize("wait_s", [0.0, 0.9, 1.0, 3.0, 59.5, 86_400.0, 4e9, 1e12])
def test_the_server_moves_a_query_as_training_did(wait_s):
    module, query = learnt(), queries(1)
    moved = module(query, torch.tensor([wait_s]))
    assert_close(moved.norm(dim=1), torch.ones(1))
    assert not torch.allclose(moved, query, atol=0.01)
    served = query_after(module.weights(), query[0].numpy(), wait_s)
    assert_close(torch.from_numpy(served), moved[0], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_waits_are_told_apart_by_the_power_of_two():
    module, query = learnt(), queries(1).expand(6, DIM)
    moved = module(query, torch.tensor([0.0, 0.99, 1.0, 2.9, 3.0, 2.0**40]))
    assert_close(moved[0], moved[1])  # below a second
    assert_close(moved[2], moved[3])  # below three seconds
    assert not torch.allclose(moved[1], moved[2], atol=0.01)
    assert not torch.allclose(moved[3], moved[4], atol=0.01)
    assert_close(moved[5], module(query[:1], torch.tensor([2.0**WAITS]))[0])  # the last one is open


@torch.inference_mode()
def test_in_training_half_of_the_waits_are_hidden_and_what_is_unknown_stays():
    torch.manual_seed(0)
    module, query = learnt(), queries(1).expand(1_000, DIM)
    moved = module.of_known(query, torch.full((1_000,), 60.0))
    expected = module(query[:1], torch.tensor([60.0]))
    changed = (moved - query).abs().amax(dim=1) > 1e-6
    assert 400 < int(changed.sum()) < 600
    assert_close(moved[changed], expected.expand(int(changed.sum()), DIM))
    assert torch.equal(module.of_known(query, torch.full((1_000,), float("nan"))), query)
    assert module.of_known(query[:0], torch.zeros(0)).shape == (0, DIM)


def test_what_is_hosted_answers_before_the_time_is_known():
    config = ModelConfig(5, dim=DIM, hidden=8, blocks=1, use_request_time=True)
    model = Encoder(config).eval()
    assert model.request_time is not None
    served = ServingEncoder(model.folded(config, torch.zeros(0, DIM)))
    assert not any("request_time" in name for name in served.state_dict())
    assert Encoder(replace(config, use_request_time=False)).request_time is None


def by_the_minute_or_the_day(tmp_path, users: int = 300) -> Sequences:
    """After any item, whoever comes back within a minute takes `soon`, and whoever comes back a day later, `late`."""
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp"]
    for user in range(users):
        at = 1_600_000_000
        for step in range(10):
            late = bool(rng.random() < 0.5)
            at += 86_400 if late else 60
            item = ("late" if late else "soon") if step % 2 else f"other-{rng.integers(4)}"
            rows.append(f"u{user},{item},{at}")
    path = tmp_path / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    return to_sequences(read_log(path)[0])


def test_training_learns_what_a_wait_means(tmp_path):
    sequences = by_the_minute_or_the_day(tmp_path)
    last = sequences.offsets[1:] - 1
    history = select(sequences, ~np.isin(np.arange(len(sequences.items)), last))
    config = ModelConfig(sequences.item_count, dim=16, hidden=16, blocks=1, dropout=0.0, use_request_time=True)
    settings = TrainConfig(epochs=20, learning_rate=5e-3, batch_events=512)
    model = train_encoder(config, settings, nothing_held_out(history), lambda _: None)
    assert model.request_time is not None

    queries = last_queries(model, history, np.arange(history.user_count), 512)
    waits = sequences.gaps[last]
    weights, embeddings = model.request_time.weights(), model.item_embeddings().detach().numpy()
    timed = np.stack([query_after(weights, query, wait) for query, wait in zip(queries, waits.tolist(), strict=True)])
    assert ((embeddings[1:] @ timed.T).argmax(axis=0) + 1 == sequences.items[last]).mean() > 0.95
    # Without the time it is a coin's toss, and the encoder says so: both are as likely.
    numbers = [sequences.item_ids.index(name) + 1 for name in ("soon", "late")]
    chance = np.exp(queries @ embeddings[1:].T / model.temperature)
    chance /= chance.sum(axis=1, keepdims=True)
    assert chance[:, np.array(numbers) - 1].mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.1)


def test_an_evaluation_measures_with_and_without_the_time(tmp_path):
    sequences = by_the_minute_or_the_day(tmp_path)
    changes = {"model.dim": "16", "model.hidden": "16", "train.epochs": "20", "train.learning_rate": "0.01"}
    settings = with_overrides(settings_for(sequences, times_are_real=True, seed=0), changes)
    found = evaluate(hold_out_last(sequences), {}, settings, lambda _: None)
    assert list(found.overall) == ["longtide", "longtide_timed", "transitions", "popularity"]
    assert list(found.slices.history_length[0].metrics) == list(found.popularity_bias) == list(found.overall)
