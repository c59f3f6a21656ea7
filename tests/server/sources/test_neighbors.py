"""The index over moments: what it finds, what it refuses."""

import numpy as np
import pytest

from longtide_server.errors import SnapshotError
from longtide_server.sources.neighbors import (
    NeighborIndex,
    Positions,
    build_index,
    index_bytes,
    principal_directions,
    project,
    recall,
)


def positions(count):
    return Positions(
        user=np.zeros(count, np.int32), next_item=np.ones(count, np.int32), weight=np.ones(count, np.float32)
    )


def unit(*rows):
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_units(count, dim, seed):
    return unit(*np.random.default_rng(seed).normal(size=(count, dim)))


@pytest.fixture
def build(tmp_path):
    """Builds an index of vectors and opens it."""

    def built(vectors):
        build_index(vectors, tmp_path / "index.ann", trees=10)
        return NeighborIndex(
            tmp_path / "index.ann", np.eye(vectors.shape[1], dtype=np.float32), positions(len(vectors))
        )

    return built


CORNERS = unit([1, 0], [0.8, 0.6], [0, 1], [-1, 0])


def test_the_nearest_comes_first_with_its_cosine(build):
    found = build(CORNERS).search(CORNERS[0], 4, 100, -1.0)
    assert found.position.tolist() == [0, 1, 2, 3]
    assert found.similarity.tolist() == pytest.approx([1.0, 0.8, 0.0, -1.0], abs=1e-6)


@pytest.mark.parametrize("row", range(4))
def test_every_vector_finds_itself(build, row):
    assert build(CORNERS).search(CORNERS[row], 1, 100, -1.0).position.tolist() == [row]


@pytest.mark.parametrize(("least", "found"), [(-1.0, 4), (-0.5, 3), (0.5, 2), (0.9, 1), (1.0, 1)])
def test_what_is_less_similar_is_cut_off(build, least, found):
    assert build(CORNERS).search(CORNERS[0], 4, 100, least).position.tolist() == list(range(found))


def test_nothing_may_be_similar_enough(build):
    found = build(CORNERS).search(unit([0.6, -0.8])[0], 4, 100, 0.9)
    assert len(found.position) == len(found.similarity) == 0


def test_at_most_so_many_are_found(build):
    index = build(CORNERS)
    assert len(index.search(CORNERS[0], 2, 100, -1.0).position) == 2
    assert len(index.search(CORNERS[0], 100, 100, -1.0).position) == 4


def test_all_vectors_are_found_as_brute_force_finds_them(build):
    vectors, queries = random_units(300, 8, seed=1), random_units(20, 8, seed=2)
    index = build(vectors)
    for query in queries:
        found = index.search(query, 10, 10_000, -1.0)
        assert found.position.tolist() == np.argsort(-(vectors @ query))[:10].tolist()
        assert found.similarity.tolist() == pytest.approx((vectors @ query)[found.position].tolist(), abs=1e-5)


def test_recall_is_1_for_a_search_that_looks_at_everything(build):
    vectors, queries = random_units(300, 8, seed=1), random_units(20, 8, seed=2)
    assert recall(build(vectors), vectors, queries, count=50, search_k=10_000) == 1.0


def test_recall_is_the_share_of_true_neighbours_found(build):
    vectors = random_units(300, 8, seed=1)
    index = build(vectors)
    assert 0.0 < recall(index, vectors, vectors[:20], count=10, search_k=20, at=10) < 1.0
    elsewhere = -vectors  # what the index holds is the opposite of what is asked for
    assert recall(index, elsewhere, vectors[:20], count=10, search_k=10_000, at=10) == 0.0


def test_a_search_for_fewer_is_asked_for_no_more(build):
    vectors = random_units(300, 8, seed=1)
    assert recall(build(vectors), vectors, vectors[:20], count=5, search_k=10_000, at=10) == 1.0


def test_an_index_takes_about_the_disk_that_is_asked_for(tmp_path):
    vectors = random_units(5_000, 64, seed=1)
    for trees in (5, 20):
        build_index(vectors, tmp_path / "index.ann", trees)
        size = (tmp_path / "index.ann").stat().st_size
        assert size < index_bytes(5_000, 64, trees) < 2.5 * size


def test_equal_moments_are_interchangeable(build):
    vectors = np.repeat(unit([1, 0]), 100, axis=0)
    assert recall(build(vectors), vectors, vectors[:3], count=10, search_k=1_000, at=10) == 1.0


def test_two_builds_give_the_same_file(tmp_path):
    vectors = random_units(500, 8, seed=3)
    build_index(vectors, tmp_path / "one.ann", trees=10)
    build_index(vectors, tmp_path / "two.ann", trees=10)
    assert (tmp_path / "one.ann").read_bytes() == (tmp_path / "two.ann").read_bytes()


@pytest.mark.parametrize("count", [0, 1])
def test_an_index_may_be_nearly_empty(build, count):
    vectors = CORNERS[:count]
    assert len(build(vectors)) == count
    assert build(vectors).search(CORNERS[0], 10, 100, -1.0).position.tolist() == list(range(count))


@pytest.mark.parametrize("dim", [4, 7, 9, 16])
def test_an_index_of_other_dimensions_is_refused(tmp_path, dim):
    build_index(random_units(100, 8, seed=1), tmp_path / "index.ann", trees=10)
    with pytest.raises(SnapshotError, match=r"index\.ann"):
        NeighborIndex(tmp_path / "index.ann", np.eye(dim, dtype=np.float32), positions(100))


def test_an_index_of_other_positions_is_refused(tmp_path):
    build_index(CORNERS, tmp_path / "index.ann", trees=10)
    with pytest.raises(SnapshotError, match=r"index\.ann: holds 4 vectors for 5 positions"):
        NeighborIndex(tmp_path / "index.ann", np.eye(2, dtype=np.float32), positions(5))


def test_an_index_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SnapshotError, match=r"absent\.ann"):
        NeighborIndex(tmp_path / "absent.ann", np.eye(2, dtype=np.float32), positions(0))


# Fewer dimensions


def test_the_principal_directions_hold_what_the_vectors_mostly_are():
    """Points on a circle in the plane of the first and third axis, with a little of the second."""
    angle = np.linspace(0, 2 * np.pi, 100)
    vectors = unit(*np.stack([np.cos(angle), 0.01 * np.sin(9 * angle), np.sin(angle)], axis=1))
    directions = principal_directions(vectors, 2)
    assert directions.shape == (3, 2)
    np.testing.assert_allclose(directions.T @ directions, np.eye(2), atol=1e-6)
    assert np.abs(directions[1]).max() < 0.01
    np.testing.assert_allclose(
        project(vectors, directions) @ project(vectors, directions).T, vectors @ vectors.T, atol=1e-3
    )


def test_there_are_no_more_directions_than_dimensions():
    assert principal_directions(random_units(10, 3, seed=1), 64).shape == (3, 3)


def test_a_projected_vector_has_length_1_unless_nothing_is_left_of_it():
    axis = np.array([[1.0], [0.0]], np.float32)
    assert project(unit([3, 4], [0, 1]), axis).tolist() == [[1.0], [0.0]]


def test_a_search_compares_along_the_directions_of_the_index(tmp_path):
    vectors = unit([1, 0, 9], [0, 1, -9])  # far apart by the third axis, which is no direction of the index
    directions = np.eye(3, dtype=np.float32)[:, :2]
    build_index(project(vectors, directions), tmp_path / "index.ann", trees=10)
    index = NeighborIndex(tmp_path / "index.ann", directions, positions(2))
    found = index.search(unit([1, 0, -9])[0], 2, 100, -1.0)
    assert found.position.tolist() == [0, 1]
    assert found.similarity.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
