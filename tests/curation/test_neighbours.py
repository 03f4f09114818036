"""Nearest neighbours, exact and by index, compared with brute force."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.core.errors import DataError, ParameterError
from workbench.curation import neighbours
from workbench.curation.neighbours import (
    NeighbourIndex,
    _cell_centres,
    all_neighbours,
    distance_to_others,
    nearest_distance,
)
from workbench.curation.vectors import DuplicateGroups, exact_neighbours, unit_vectors


def scenes(count: int, width: int = 32, seed: int = 0) -> np.ndarray:
    """Vectors that lie like those of drives: runs of similar ones, in many directions."""
    rng = np.random.default_rng(seed)
    runs = rng.normal(size=(count // 20 + 1, width))
    spread = runs[rng.integers(0, len(runs), count)] + 0.4 * rng.normal(size=(count, width))
    return (3 + spread).astype(np.float16)


def brute(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    unit = unit_vectors(vectors).astype(np.float64)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    rows = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distance, rows, axis=1)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return scenes(6000)


@pytest.fixture(scope="module")
def index(vectors: np.ndarray) -> NeighbourIndex:
    return NeighbourIndex(vectors, k=5)


def test_small_pools_get_exact_neighbours(vectors: np.ndarray) -> None:
    rows, far = brute(vectors[:3000], 7)
    found = all_neighbours(vectors[:3000], 7)
    assert found.recall is None
    np.testing.assert_allclose(found.distances, far, atol=2e-6)
    assert (found.rows == rows).mean() > 0.999  # float64 may order near ties otherwise


def test_measured_recall_is_the_actual_recall(vectors: np.ndarray) -> None:
    rows, _ = brute(vectors, 5)
    found = all_neighbours(vectors, 5, limit=1000)
    share = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(found.rows, rows, strict=True)])
    assert found.recall is not None
    assert found.recall.mean >= 0.95
    assert abs(share - found.recall.mean) < 0.03
    assert (found.rows != np.arange(len(vectors))[:, None]).all()  # never itself
    assert str(found.recall).startswith("recall@5 0.9")


def test_a_result_depends_on_its_query_alone(vectors: np.ndarray, index: NeighbourIndex) -> None:
    queries = index.known.units(vectors[100:400] + np.float16(0.05))
    rows, far = index.search(queries, 5)
    backward = index.search(np.ascontiguousarray(queries[::-1]), 5)
    np.testing.assert_array_equal(backward[0][::-1], rows)
    np.testing.assert_array_equal(backward[1][::-1], far)
    alone = [index.search(queries[row : row + 1], 5)[0][0] for row in range(0, 300, 30)]
    np.testing.assert_array_equal(alone, rows[::30])
    every = np.arange(len(vectors))
    exact = exact_neighbours(queries, index.known, every, 5)
    reverse = exact_neighbours(np.ascontiguousarray(queries[::-1]), index.known, every, 5)
    np.testing.assert_array_equal(exact[0], reverse[0][::-1])
    np.testing.assert_array_equal(exact[1], reverse[1][::-1])


def test_the_same_vectors_give_the_same_index(vectors: np.ndarray, index: NeighbourIndex) -> None:
    again = NeighbourIndex(vectors, k=5)
    np.testing.assert_array_equal(again.all(5)[0], index.all(5)[0])
    sample = index.known.take(np.arange(2000))
    np.testing.assert_array_equal(_cell_centres(sample, 20), _cell_centres(sample, 20))


def test_identical_vectors_are_each_others_neighbours() -> None:
    base = scenes(2000)
    twice = np.concatenate([base, base[:50], np.repeat(base[7:8], 300, axis=0)])
    for limit in (100, 10_000):
        found = all_neighbours(twice, 4, limit=limit)
        assert found.rows[0, 0] == 2000
        assert found.rows[2000, 0] == 0
        np.testing.assert_allclose(found.distances[:50, 0], 0, atol=1e-6)
        same = {7, 2007, *range(2050, 2350)}
        assert all(set(found.rows[row]) <= same - {row} for row in sorted(same))
        assert (found.rows >= 0).all()


def test_a_pool_of_identical_frames() -> None:
    found = all_neighbours(np.ones((300, 8), np.float16), 3)
    assert (found.rows[0] == [1, 2, 3]).all()
    assert (found.distances == 0).all()
    assert all(row not in near for row, near in enumerate(found.rows))


def test_hash_collisions_do_not_make_vectors_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.curation import vectors as module

    monkeypatch.setattr(module, "_row_hashes", lambda block: np.zeros(len(block), np.uint64))
    known = module.UnitVectors(np.array([[1, 0], [0, 1], [1, 0]], np.float32))
    assert DuplicateGroups(known).sizes.sum() == 3
    assert DuplicateGroups(known).of[1] != DuplicateGroups(known).of[0]


def test_nearest_distance_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    queries = unit_vectors(rng.normal(size=(40, 6)))
    known = unit_vectors(rng.normal(size=(70_000, 6)).astype(np.float32))
    expected = 1 - np.sort(queries @ known.T, axis=1)[:, -3:].mean(axis=1)
    np.testing.assert_allclose(nearest_distance(queries, known, 3), expected, atol=1e-5)
    order = rng.permutation(40)
    np.testing.assert_array_equal(
        nearest_distance(queries[order], known), nearest_distance(queries, known)[order]
    )
    assert nearest_distance(queries, known[:0]).tolist() == [2] * 40


@pytest.mark.parametrize("known_count", [0, 1, 3, 90])
def test_the_distance_to_others_is_that_of_a_search_for_each_owner(
    known_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_OTHERS_BLOCK", 7)
    units = unit_vectors(scenes(120))
    queries, known = units[:100], units[:known_count]
    owners = np.array([f"drive {row // 4}" for row in range(120)])
    owners[:30] = "drive 0"
    of_query, of_known = owners[:100], owners[:known_count]
    found = distance_to_others(queries, known, (of_query, of_known))
    for owner in np.unique(of_query):
        own = of_query == owner
        expected = nearest_distance(queries[own], known[of_known != owner])
        np.testing.assert_array_equal(found[own], expected)


def test_nearest_distance_to_many_vectors_uses_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    class RecordingIndex(NeighbourIndex):
        def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            batches.append(len(queries))
            return super().search(queries, k)

    monkeypatch.setattr(neighbours, "NeighbourIndex", RecordingIndex)
    monkeypatch.setattr(neighbours, "EXACT_LIMIT", 4000)
    known = unit_vectors(scenes(6000))
    queries = unit_vectors(scenes(1500, seed=1))
    far = nearest_distance(queries, known)
    exact = 1 - np.sort(queries @ known.T, axis=1)[:, -3:].mean(axis=1)
    assert batches == [1500]
    assert np.abs(far - exact).mean() < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_rejected(vectors: np.ndarray, bad: float) -> None:
    invalid = vectors[:100].copy()
    invalid[3, 1] = bad
    for ask in (
        lambda: all_neighbours(invalid),
        lambda: unit_vectors(invalid),
        lambda: NeighbourIndex(invalid),
    ):
        with pytest.raises(DataError, match="NaN or infinity"):
            ask()


def test_invalid_arguments_are_rejected(vectors: np.ndarray) -> None:
    with pytest.raises(ParameterError):
        all_neighbours(vectors[:10], 0)
    with pytest.raises(ParameterError):
        NeighbourIndex(vectors[:10], target=1.2)
    with pytest.raises(DataError, match="cannot compare"):
        all_neighbours(vectors[:0])
    with pytest.raises(DataError, match="of width 4 and 32"):
        nearest_distance(unit_vectors(vectors[:3, :4]), unit_vectors(vectors[:10]))
    assert all_neighbours(vectors[:4], 10).rows.shape == (4, 3)  # of fewer others, all
