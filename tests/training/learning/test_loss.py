import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from longtide_server.training.learning import loss
from longtide_server.training.learning.had import HAD_COUNTS, Past
from longtide_server.training.learning.loss import full_softmax_loss, sampled_softmax_loss, unit_length

TEMPERATURE = 0.07


@pytest.fixture
def problem():
    """Unit queries (50, 6), unit items (9, 6) and targets."""
    draw = torch.Generator().manual_seed(0)
    query, items = (normalize(torch.randn(count, 6, generator=draw), dim=1).requires_grad_() for count in (50, 9))
    return query, items, torch.randint(0, 9, (50,), generator=draw)


def by_torch(query, items, target):
    value = cross_entropy(query @ items.t() / TEMPERATURE, target)
    return value, *torch.autograd.grad(value, (query, items))


def by_slices(query, items, target, dtype=torch.float32):
    value = full_softmax_loss(query, items, target, torch.full((50,), 1 / 50), TEMPERATURE, dtype)
    return value, *torch.autograd.grad(value, (query, items))


@pytest.mark.parametrize("cells", [1, 9, 63, 10_000], ids=["smaller than a row", "one row", "seven rows", "one slice"])
def test_it_is_cross_entropy_however_it_is_sliced(problem, monkeypatch, cells):
    monkeypatch.setattr(loss, "SLICE_CELLS", cells)
    for found, expected in zip(by_slices(*problem), by_torch(*problem), strict=True):
        assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_factor_on_the_loss_is_a_factor_on_its_gradients(problem):
    query, items, target = problem
    (full_softmax_loss(query, items, target, torch.full((50,), 1 / 50), TEMPERATURE) * 3.0).backward()
    _, query_grad, items_grad = by_torch(query, items, target)
    assert_close(query.grad, query_grad * 3.0, atol=1e-5, rtol=1e-5)
    assert_close(items.grad, items_grad * 3.0, atol=1e-5, rtol=1e-5)


def test_no_events_cost_nothing(problem):
    """The share of a process that has none in this step."""
    query, items, target = problem
    found = full_softmax_loss(query[:0], items, target[:0], torch.ones(0), TEMPERATURE)
    found.backward()
    assert found.item() == 0.0
    assert (query.grad.abs().sum(), items.grad.abs().sum()) == (0.0, 0.0)


def test_products_are_of_few_shapes(problem, monkeypatch):
    """A new one costs more than it takes."""
    monkeypatch.setattr(loss, "SLICE_CELLS", 63)
    query, items, target = problem
    shapes, multiply = set(), torch.mm

    def mm(left, right):
        shapes.add((tuple(left.shape), tuple(right.shape)))
        return multiply(left, right)

    monkeypatch.setattr(torch, "mm", mm)
    for events in (50, 49, 8, 1):
        full_softmax_loss(query[:events], items, target[:events], torch.ones(events), TEMPERATURE)
    assert len(shapes) == 3


def test_unit_length_is_what_normalize_gives():
    rows = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert_close(unit_length(rows), normalize(rows, dim=1))
    assert torch.autograd.gradcheck(unit_length, rows)
    assert unit_length(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_a_certain_answer_costs_nothing():
    unit = torch.eye(3)
    assert full_softmax_loss(unit, unit, torch.arange(3), torch.ones(3), 0.01).item() == pytest.approx(0.0, abs=1e-6)


def test_knowing_nothing_costs_the_logarithm_of_the_catalogue():
    found = full_softmax_loss(torch.zeros(2, 4), torch.ones(8, 4), torch.tensor([0, 7]), torch.ones(2), 0.1)
    assert found.item() == pytest.approx(2 * 2.0794, abs=1e-3)  # ln 8 each


def test_in_bfloat16_it_is_close_and_its_gradients_stay_float32(problem):
    value, query_grad, items_grad = by_slices(*problem, dtype=torch.bfloat16)
    expected, *gradients = by_torch(*problem)
    assert_close(value, expected, atol=0.02, rtol=0.02)
    for found, wanted in zip((query_grad, items_grad), gradients, strict=True):
        assert found.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.999
    assert not torch.equal(query_grad, gradients[0])  # it was made in bfloat16


# What was had before


@pytest.fixture
def past():
    """Two histories: of the items 2 and 5, and of the item 9; 50 moments after none, some or all of them."""
    row, place = torch.arange(50) % 2, torch.arange(50) // 2 % 3
    return Past(torch.tensor([2, 5, 9]), 2 * row, torch.minimum(place, 2 - row))


def had_by_hand(past):
    mask = torch.zeros(50, 9, dtype=torch.bool)
    for moment, (begin, count) in enumerate(zip(past.begin.tolist(), past.count.tolist(), strict=True)):
        mask[moment, past.items[begin : begin + count] - 1] = True
    return mask


@pytest.mark.parametrize("cells", [9, 63, 10_000])
def test_what_was_had_counts_less_but_for_the_target(problem, past, monkeypatch, cells):
    monkeypatch.setattr(loss, "SLICE_CELLS", cells)
    query, items, target = problem
    had = had_by_hand(past)
    assert had[torch.arange(50), target].any()  # some take again what they have had
    had[torch.arange(50), target] = False
    expected = cross_entropy(query @ items.t() / TEMPERATURE + np.log(HAD_COUNTS) * had, target)
    found = full_softmax_loss(query, items, target, torch.full((50,), 1 / 50), TEMPERATURE, past=past)
    assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad(found, (query, items)), torch.autograd.grad(expected, (query, items)), strict=True
    ):
        assert_close(one, other, atol=1e-6, rtol=1e-5)


class Watched(Past):
    """Says how many pairs were made at a time."""

    most = 0

    def pairs(self):
        moment, item = super().pairs()
        Watched.most = max(Watched.most, len(moment))
        return moment, item

    def of(self, moments):
        return Watched(self.items, self.begin[moments], self.count[moments])


@pytest.mark.parametrize("way", ["whole", "sampled"])
def test_long_histories_do_not_fill_the_memory(problem, monkeypatch, way):
    """Everybody has had everything: a pair for every cell, however many histories there are."""
    monkeypatch.setattr(loss, "SLICE_CELLS", 27)
    monkeypatch.setattr(Watched, "most", 0)
    query, items, target = problem
    past = Watched(torch.arange(1, 10), torch.zeros(50, dtype=torch.int64), torch.full((50,), 9))
    if way == "whole":
        full_softmax_loss(query, items, target, torch.ones(50), TEMPERATURE, past=past)
    else:
        sampled(query, items, target, torch.arange(9), torch.full((9,), 1 / 9), past)
    assert Watched.most == 27


# From a sample


def sampled(query, items, target, drawn, chance, past=None):
    negatives, ones = items[drawn], torch.ones(len(target))
    return sampled_softmax_loss(
        query, items[target], negatives, target, drawn, chance[drawn], ones, TEMPERATURE, past=past
    )


def test_a_large_sample_costs_what_the_whole_catalogue_does(problem):
    query, items, target = problem
    chance = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])
    drawn = torch.multinomial(chance, 100_000, replacement=True, generator=torch.Generator().manual_seed(1))
    found = sampled(query, items, target, drawn, chance)
    expected = full_softmax_loss(query, items, target, torch.ones(50), TEMPERATURE)
    assert_close(found, expected, rtol=0.01, atol=0)
    for one, other in zip(
        torch.autograd.grad(found, (query, items)), torch.autograd.grad(expected, (query, items)), strict=True
    ):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("cells", [1, 5, 10_000])
def test_what_was_had_counts_less_in_a_sample_too(problem, past, monkeypatch, cells):
    query, items, target = problem
    chance = torch.full((9,), 1 / 9)
    drawn = torch.multinomial(chance, 100_000, replacement=True, generator=torch.Generator().manual_seed(1))
    expected = full_softmax_loss(query, items, target, torch.ones(50), TEMPERATURE, past=past)
    monkeypatch.setattr(loss, "SLICE_CELLS", cells)
    assert_close(sampled(query, items, target, drawn, chance, past), expected, rtol=0.01, atol=0)


def test_a_negative_that_is_the_target_does_not_count_against_it():
    unit = torch.eye(2)
    loss = sampled(unit[:1], unit, torch.tensor([0]), torch.tensor([0, 0, 0]), torch.tensor([0.5, 0.5]))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_a_negative_stands_for_all_that_were_not_drawn():
    """One negative, drawn with a chance of a quarter: it counts as four items of its kind."""
    query, items = torch.zeros(1, 2), torch.ones(5, 2)  # every cosine is 0
    loss = sampled(query, items, torch.tensor([0]), torch.tensor([3]), torch.full((5,), 0.25))
    assert loss.item() == pytest.approx(1.6094, abs=1e-4)  # ln (1 + 4)
