"""Steps that cost what they touch: the items' vectors that a step needs, their gradients, and what changes by them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

from longtide_server.catalog.catalog import ItemInfo
from longtide_server.training.dataset import Sequences, batches, chunks
from longtide_server.training.learning.content import content_of
from longtide_server.training.learning.encoding import inputs
from longtide_server.training.learning.had import had_by_event
from longtide_server.training.learning.model import Encoder, ModelConfig
from longtide_server.training.learning.objective import Batch, Objective
from longtide_server.training.learning.optimizers import LAZY_RATE, MAX_GRADIENT_NORM, Optimizers, Rates

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 40
CONFIG = ModelConfig(ITEMS, dim=16, hidden=16, blocks=1, dropout=0.0)
RATES = Rates(encoder=0.01, items=3.0, head=1.0, weight_decay=0.0)
CPU = torch.device("cpu")


def sequences() -> Sequences:
    """Six users, on the first half of the items alone."""
    lengths = np.array([3, 4, 5, 6, 7, 8])
    items = np.random.default_rng(0).integers(1, ITEMS // 2 + 1, lengths.sum())
    return Sequences(
        owners=tuple(f"user:u{n}" for n in range(6)),
        item_ids=tuple(str(n) for n in range(1, ITEMS + 1)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=items,
        types=np.ones(len(items), np.int64),
        times=np.arange(len(items), dtype=np.float64),
        gaps=np.ones(len(items), np.float32),
        values=np.full(len(items), np.nan, np.float32),
    )


def one_batch() -> Batch:
    log = sequences()
    (group,) = batches(log, np.arange(6), 1_000, 64, None)
    (piece,) = chunks(log, group, 64)
    every = (piece.targets > 0).astype(np.float32)
    told = (piece.targets, piece.next_types, piece.next_gaps, piece.next_values, every)
    past = had_by_event(log).at(torch.from_numpy(piece.events[piece.targets > 0]))
    return Batch(past, *inputs(piece, CPU), *map(torch.from_numpy, told))


def content():
    infos = {str(n): ItemInfo(tags=tuple({f"t{n % 3}", f"t{n % 7}"})) for n in range(1, ITEMS, 2)}
    text = np.random.default_rng(1).normal(size=(ITEMS + 1, 5)).astype(np.float32)
    return content_of([str(n) for n in range(1, ITEMS + 1)], infos, text)


def objective(negatives: int, *, known=None) -> Objective:
    torch.manual_seed(0)
    return Objective(Encoder(CONFIG, known), torch.ones(ITEMS + 1), negatives, bfloat16=False)


def loss_of(trained: Objective, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)  # the same negatives each time
    batch = one_batch()
    return trained(batch, trained.encoder.initial_state(len(batch.items)))[0].items


def step(optimizers: Optimizers, loss: torch.Tensor) -> None:
    optimizers.add(loss)
    optimizers.step(1.0)


@pytest.mark.parametrize("known", [None, content()], ids=["ids", "ids and content"])
def test_the_vectors_of_some_items_are_those_of_the_table(known):
    table = objective(4, known=known).encoder.items
    rows = torch.tensor([7, 0, 12, 39])
    assert_close(table.some(rows), table()[rows])


@pytest.mark.parametrize("known", [None, content()], ids=["ids", "ids and content"])
def test_the_loss_of_a_sample_is_that_of_the_whole_table_and_so_are_its_gradients(known, monkeypatch):
    """Looked up in the whole table, as it is without negatives, everything must come out the same."""
    some, whole = objective(4, known=known), objective(4, known=known)

    def looked_up(batch, drawn):
        return whole.encoder.items(), batch.items, batch.next_items, drawn + 1

    monkeypatch.setattr(whole, "_looked_up", looked_up)
    losses = [loss_of(one) for one in (some, whole)]
    assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(some.named_parameters(), whole.parameters(), strict=True):
        if one.requires_grad and other.grad is not None:
            assert one.grad.is_sparse is (name == "encoder.items.ids.weight")
            assert_close(one.grad.to_dense(), other.grad, msg=name)


def test_a_step_changes_no_embedding_that_it_does_not_touch():
    trained = objective(4)
    trained.chance[ITEMS // 2 :] = 0.0  # nobody has the second half, and it is not drawn
    before = trained.encoder.items.ids.weight.detach().clone()
    optimizers = Optimizers(trained, RATES, steps=10)
    for _ in range(3):
        step(optimizers, loss_of(trained))
    changed = (trained.encoder.items.ids.weight != before).any(dim=1)
    touched = {0, *range(ITEMS // 2 + 1, ITEMS + 1)}
    assert {n for n in range(ITEMS + 1) if not changed[n]} >= touched
    assert changed.sum() > ITEMS // 4


@pytest.mark.parametrize("negatives", [0, 10])
def test_sparse_and_dense_steps_learn(negatives):
    trained = objective(negatives)
    optimizers = Optimizers(trained, RATES, steps=40)
    first = float(loss_of(trained).detach())
    for _ in range(40):
        step(optimizers, loss_of(trained))
    assert float(loss_of(trained).detach()) < 0.7 * first


def largest_change(trained: Objective, name: str, rates: Rates) -> float:
    """Of a weight, by the first step: with Adam, the learning rate."""
    weight = dict(trained.named_parameters())[name]
    before = weight.detach().clone()
    step(Optimizers(trained, rates, steps=1), loss_of(trained))
    return float((weight.detach() - before).abs().max())


@pytest.mark.parametrize(("negatives", "times"), [(0, 3.0), (10, 3.0 * LAZY_RATE)])
def test_item_embeddings_learn_faster_lazy_ones_faster_still(negatives, times):
    rates = replace(RATES, encoder=1e-4)
    gate = largest_change(objective(negatives), "encoder.gate.weight", rates)
    assert gate == pytest.approx(1e-4, rel=0.01)
    ids = largest_change(objective(negatives), "encoder.items.ids.weight", rates)
    assert ids == pytest.approx(times * 1e-4, rel=0.01)


@pytest.mark.parametrize("negatives", [0, 10])
def test_a_step_goes_down_the_mean_of_all_losses_that_were_added(negatives):
    one_by_one, at_once = objective(negatives), objective(negatives)
    optimizers = Optimizers(one_by_one, RATES, steps=10)
    for seed in (1, 2):
        optimizers.add(loss_of(one_by_one, seed))
    optimizers.step(8.0)
    optimizers = Optimizers(at_once, RATES, steps=10)
    optimizers.add((loss_of(at_once, 1) + loss_of(at_once, 2)) / 8.0)
    optimizers.step(1.0)
    assert_close(one_by_one.state_dict(), at_once.state_dict(), rtol=0, atol=2e-5)
    assert all(weight.grad is None for weight in one_by_one.parameters())  # the next step begins with nothing


def test_all_gradients_together_are_bounded():
    trained = objective(4)
    optimizers = Optimizers(trained, RATES, steps=10)
    gradients = []

    def look(optimizer, *_):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients.extend(weight.grad.to_dense().flatten() for weight in weights if weight.grad is not None)

    hook = register_optimizer_step_pre_hook(look)
    step(optimizers, 1_000.0 * loss_of(trained))
    hook.remove()
    assert torch.cat(gradients).norm() == pytest.approx(MAX_GRADIENT_NORM, rel=1e-3)


def test_what_was_kept_is_taken_up():
    runs = []
    for again in (False, True):
        trained = objective(4)
        optimizers = Optimizers(trained, RATES, steps=10)
        for number in range(4):
            if again and number == 2:
                weights, state = trained.state_dict(), optimizers.state()
                trained = objective(4)
                optimizers = Optimizers(trained, RATES, steps=10)
                trained.load_state_dict(weights)
                optimizers.restore(state)
            step(optimizers, loss_of(trained))
        runs.append(trained.state_dict())
    assert_close(runs[0], runs[1], rtol=0, atol=0)


def test_the_full_softmax_needs_every_vector():
    trained = objective(0)
    loss_of(trained).backward()
    assert not trained.encoder.items.ids.weight.grad.is_sparse
