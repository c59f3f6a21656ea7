"""Every variant of the ablation can still be trained: the benchmark itself would take hours to say that one cannot."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.bench import ablation
from tests.bench.ablation import (
    VARIANTS,
    Row,
    WithoutLongTerm,
    WithoutMemories,
    WithoutShortTerm,
    every,
    measured,
    prepared,
    table,
)

from longtide_server.training.dataset import Sequences, hold_out_last
from longtide_server.training.learning.encoding import last_queries
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.settings import Settings, settings_for

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, EVENTS, ITEMS = 40, 6, 20


@pytest.fixture(scope="module")
def log() -> Sequences:
    """Everything that an encoder can read."""
    rng, count = np.random.default_rng(0), USERS * EVENTS
    gaps = rng.exponential(1e5, (USERS, EVENTS))
    gaps[:, 0] = 0.0
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(USERS)),
        item_ids=tuple(f"i{n}" for n in range(ITEMS)),
        offsets=np.arange(0, count + 1, EVENTS),
        items=rng.integers(1, ITEMS + 1, count),
        types=rng.integers(1, 5, count),
        times=(1.7e9 + gaps.cumsum(axis=1)).reshape(-1),
        gaps=gaps.reshape(-1).astype(np.float32),
        values=rng.normal(3.0, 1.0, count).astype(np.float32),
    )


def small(log: Sequences) -> Settings:
    settings = settings_for(log, times_are_real=True, seed=0)
    model = replace(settings.model, dim=8, hidden=8, dropout=0.0)
    return replace(settings, model=model, train=replace(settings.train, epochs=2, learning_rate=0.02))


@pytest.fixture
def learned(monkeypatch) -> list[np.ndarray]:
    """The query vectors after everybody's history, by each encoder that is judged."""
    found: list[np.ndarray] = []

    def queries(*arguments):
        found.append(last_queries(*arguments))
        return found[-1]

    monkeypatch.setattr(ablation, "last_queries", queries)
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_trained_and_judged(log, name, learned):
    measured("the encoder", small(log), hold_out_last(log))
    rows = measured(name, small(log), hold_out_last(log))
    assert np.array_equal(*learned) is (name == "the encoder")
    assert rows[0]["variant"] == name
    assert all(len(row["ranks"]) == USERS and max(row["ranks"]) < 10 for row in rows)
    assert len(rows) == (2 if name == "the encoder" else 1)  # told the time of the request, too


@pytest.mark.parametrize(
    ("variant", "silent"), [(WithoutShortTerm, [0]), (WithoutLongTerm, [1, 2]), (WithoutMemories, [0, 1, 2])]
)
def test_what_is_left_out_reaches_the_output_in_no_way(variant, silent):
    """Neither by itself nor through the gate; and what is not left out does."""
    torch.manual_seed(0)
    config = ModelConfig(ITEMS, dim=8, hidden=8)
    encoder, whole = variant(config).eval(), Encoder(config).eval()
    y, gap, memories = (torch.randn(2, 3, *shape) for shape in ((8,), (8,), (3, 8)))
    for memory in range(3):
        others = memories.clone()
        others[..., memory, :] = torch.randn(2, 3, 8)
        same = torch.equal(encoder._query(y, gap, memories), encoder._query(y, gap, others))
        assert same is (memory in silent)
        assert not torch.equal(whole._query(y, gap, memories), whole._query(y, gap, others))


def test_settings_are_those_of_the_whole_log(tmp_path):
    """Fewer users make a log look as if its items were seldom met."""
    rows = [f"u{user},i{(user + step) % 50},{step}" for user in range(200) for step in range(30)]
    (tmp_path / "a-log").mkdir()
    with gzip.open(tmp_path / "a-log" / "interactions.csv.gz", "wt") as file:
        file.write("\n".join(["user_id,item_id,timestamp", *rows]))
    of_all, _ = prepared(tmp_path, ablation.Log("a-log", 10), seed=0)
    of_few, holdout = prepared(tmp_path, ablation.Log("a-log", 10, users=20), seed=0)
    assert of_few == of_all
    assert holdout.history.user_count == 20
    assert of_all.train.item_rate != settings_for(holdout.history, times_are_real=False, seed=0).train.item_rate


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_log_with_two_phases_of_training_has_both(log, monkeypatch, epochs):
    tuned = []
    monkeypatch.setattr(ablation, "fine_tune", lambda *arguments: tuned.append(arguments))
    settings = settings_for(log, times_are_real=True, seed=0)
    short = replace(settings.train, epochs=1, fine_tune_epochs=epochs)
    measured("the encoder", replace(settings, train=short), hold_out_last(log))
    assert len(tuned) == epochs


def test_variants_are_compared_by_the_same_users():
    """Of two users one has a better place with the variant, over two seeds; the other has the same."""
    second = float(1 / np.log2(3))
    trainings = [
        [{"variant": "the encoder", "ranks": [1, 0]}, {"variant": "told the time", "ranks": [0, 0]}],
        [{"variant": "the encoder", "ranks": [-1, 0]}, {"variant": "told the time", "ranks": [1, 0]}],
    ]
    rows = table(trainings, {"the encoder": 1.0})
    assert rows["the encoder"] == Row([1.0, 0.5], [(second + 1) / 2, 0.5], 0.0, 0.0, 1.0)
    gained = (1 + second) / 2 - second / 2
    told = rows["told the time"]
    assert (told.more, told.error) == pytest.approx((gained / 2, gained / 2 / np.sqrt(2)))
    assert told.cost is None


@pytest.mark.parametrize(("users", "kept"), [(40, 40), (100, 40), (7, 7), (1, 1)])
def test_so_many_users_are_taken_evenly(log, users, kept):
    some = every(log, users)
    assert some.user_count == kept
    assert len(set(some.owners)) == kept
    assert len(some.items) == kept * EVENTS
