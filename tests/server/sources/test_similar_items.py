"""Items that are alike, worked out by eye: on a circle by what people do, on a line of corners by what they are."""

import tracemalloc

import numpy as np
import pytest

from longtide_server.sources import similar_items
from longtide_server.sources.similar_items import Basis, SimilarItems, spaces_of

NOWHERE = [0.0, 0.0]


def vectors(*rows):
    return np.array([NOWHERE, *rows], np.float32)


BEHAVIOR = vectors([1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1])
CONTENT = vectors([1, 0], [0, 1], [1, 0], NOWHERE)
"""Items 1 and 3 are the same thing, of item 4 nothing is said."""


def found(similar, basis, item, limit=10, without=()):
    allowed = np.array([number not in {0, *without} for number in range(5)])
    allowed[item] = False
    items, cosine = similar.find(basis, similar.vector(basis, item), allowed, limit)
    return dict(zip(items.tolist(), np.round(cosine, 3).tolist(), strict=True))


@pytest.fixture(params=["compared", "indexed"])
async def similar(request, monkeypatch):
    made = SimilarItems(spaces_of(BEHAVIOR, CONTENT))
    if request.param == "indexed":
        monkeypatch.setattr(similar_items, "COMPARED_AT_MOST", 0)
        await made.build()
    return made


async def test_by_behaviour_the_nearest_come_first(similar):
    alike = found(similar, Basis.BEHAVIOR, 1)
    assert list(alike.items()) == [(2, pytest.approx(0.8)), (3, pytest.approx(0.6)), (4, pytest.approx(0))]


async def test_by_content_only_items_that_it_says_something_of_are_found(similar):
    assert found(similar, Basis.CONTENT, 1) == {3: 1.0, 2: 0.0}
    assert found(similar, Basis.CONTENT, 4) == {}


async def test_by_both_a_cosine_is_the_mean(similar):
    alike = found(similar, Basis.BOTH, 1)
    assert list(alike) == [3, 2, 4]
    assert alike[3] == pytest.approx((0.6 + 1.0) / 2, abs=1e-3)


async def test_items_that_may_not_appear_leave_their_place_to_others(similar):
    assert list(found(similar, Basis.BEHAVIOR, 1, limit=2, without={2})) == [3, 4]


async def test_no_more_than_asked_for(similar):
    assert list(found(similar, Basis.BEHAVIOR, 2, limit=1)) == [3]


async def test_without_content_behaviour_is_all_there_is():
    alone = SimilarItems(spaces_of(BEHAVIOR, None))
    assert alone.basis(None) is alone.basis(Basis.CONTENT) is Basis.BEHAVIOR
    assert SimilarItems(spaces_of(BEHAVIOR, CONTENT)).basis(None) is Basis.BOTH
    assert SimilarItems(spaces_of(BEHAVIOR, CONTENT)).basis(Basis.CONTENT) is Basis.CONTENT


async def test_an_index_finds_what_a_comparison_finds(monkeypatch):
    monkeypatch.setattr(similar_items, "COMPARED_AT_MOST", 0)
    rows = np.random.default_rng(0).normal(size=(5_001, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[0] = 0.0
    compared, indexed = SimilarItems(spaces_of(rows, None)), SimilarItems(spaces_of(rows, None))
    await indexed.build()
    allowed = np.arange(5_001) > 0
    hits = 0
    for vector in rows[1:51]:
        true, _ = compared.find(Basis.BEHAVIOR, vector, allowed, 10)
        near, _ = indexed.find(Basis.BEHAVIOR, vector, allowed, 10)
        assert len(near) == 10
        hits += len(set(true.tolist()) & set(near.tolist()))
    assert hits >= 0.8 * 500


async def test_to_compare_everything_takes_little_memory():
    rows = np.random.default_rng(0).normal(size=(100_001, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[::3] = 0.0
    similar, allowed = SimilarItems(spaces_of(rows, None)), np.arange(100_001) % 2 > 0
    tracemalloc.start()
    items, cosine = similar.find(Basis.BEHAVIOR, rows[1], allowed, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_500_000  # of the half that is allowed, a copy would take 6.4 MB
    possible = [number for number in range(1, 100_001, 2) if number % 3]
    by_hand = sorted(possible, key=lambda number: -float(rows[number] @ rows[1]))[:5]
    assert items.tolist() == by_hand
    assert cosine.tolist() == pytest.approx([float(rows[number] @ rows[1]) for number in by_hand], abs=1e-6)
