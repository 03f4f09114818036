"""Nearest-neighbour search: exact for small pools, a faiss index for large ones.

The index holds inverted lists of vectors with eight bits per number (faiss IVF-SQ8); its cells are
found through a small graph (HNSW, Malkov and Yashunin, 2018). Cells are many and small, because
reading them costs more than finding them. The codes encode the vectors, not residuals: comparing
them as integers takes half the time, and exact distances rerank what the lists propose. A result
depends on its query alone, not on other queries or their order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.curation.vectors import (
    EXACT_LIMIT,
    DuplicateGroups,
    UnitVectors,
    Vectors,
    exact_neighbours,
    rerank,
)

__all__ = ()

_KMEANS_ROUNDS = 8
_RowsAndDistances = tuple[NDArray[np.int64], NDArray[np.float32]]
_VECTORS_PER_CELL = 64
"""Average; cells grow in number, not in size, so the cost of a query stays the same."""

_SAMPLES_PER_CELL = 16
"""Vectors per cell that its centre is computed from."""

_CHUNK = 8192
_EXTRA_CANDIDATES = 6
_PROBES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)
_RECALL_QUERIES = 256
_RECALL_MARGIN = 0.008
_GRAPH, _CONSTRUCTION, _BREADTH = 16, 80, 64
_FEW_QUERIES = 1000
_OTHERS_BLOCK = 1024
"""Queries up to which comparing with all vectors is cheaper than building an index."""


@dataclass(frozen=True)
class Neighbours:
    """The ``k`` nearest of each of ``n`` vectors, nearest first; ties by row.

    Attributes:
        rows: Int64 ``[n, k]``.
        distances: Float32 ``[n, k]``: cosine distance of centred vectors, in [0, 2].
        recall: Measured, where an index was used; None where the search was exact.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float32]
    recall: _Recall | None = None


def all_neighbours(
    vectors: Vectors, k: int = 10, *, target: float = 0.97, limit: int = EXACT_LIMIT
) -> Neighbours:
    """The nearest others of every vector; all others where there are fewer than ``k``.

    Args:
        vectors: ``[n, d]``.
        k: Neighbours per vector.
        target: Recall of the index.
        limit: Distinct vectors up to which the search is exact.

    Raises:
        DataError: No vectors, or a number is NaN or infinite.
        ParameterError: ``k`` is below 1.
    """
    _check_k(k)
    known = UnitVectors(vectors)
    groups = DuplicateGroups(known)
    if len(groups) > limit:
        del known, groups
        index = NeighbourIndex(vectors, k=k, target=target)
        return Neighbours(*index.all(k), index.recall)

    def search(own: NDArray[np.int64], wide: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return exact_neighbours(known.take(groups.first[own]), known, groups.first, wide)

    return Neighbours(*_neighbours_of_all(groups, search, k))


def nearest_distance(
    queries: NDArray[np.float32], known: NDArray[np.float32], k: int = 3
) -> NDArray[np.float32]:
    """Mean cosine distance of each query to its ``k`` nearest of ``known``, float32 ``[n]``.

    Args:
        queries: Unit vectors ``[n, d]``, see `unit_vectors`.
        known: Unit vectors ``[m, d]``; where there are none, every distance is 2, the largest.
        k: Neighbours to average.

    Raises:
        DataError: Different widths, or a number is NaN or infinite.
    """
    if queries.shape[1:] != known.shape[1:]:
        raise DataError(
            f"cannot compare vectors of width {queries.shape[1]} and {known.shape[1]}",
            hint="Embed both with the same model",
        )
    if not len(known) or not len(queries):
        return np.full(len(queries), 2, np.float32)
    origin = np.zeros(known.shape[1], np.float32)  # already centred
    k = min(k, len(known))
    neighbours = _search_units(
        queries, UnitVectors(known, origin), known, k, target=0.97, limit=EXACT_LIMIT
    )
    mean: NDArray[np.float32] = neighbours.distances.mean(axis=1)
    return mean


def distance_to_others(
    queries: NDArray[np.float32],
    known: NDArray[np.float32],
    owners: tuple[NDArray[Any], NDArray[Any]],
    k: int = 3,
) -> NDArray[np.float32]:
    """As `nearest_distance`, but only of ``known`` vectors that have another owner than the query.

    One product of both for all owners: with a search for each of them, a thousand drives of one
    frame took a thousand times as long.

    Args:
        queries: Unit vectors ``[n, d]``.
        known: Unit vectors ``[m, d]``.
        owners: Of each query and of each known vector, such as their drives.
        k: Neighbours to average; fewer where others have fewer.

    Returns:
        Float32 ``[n]``; 2, the largest distance, where there are no others.
    """
    _, code = np.unique(np.concatenate(owners), return_inverse=True)
    of_query, of_known = code[: len(queries)], code[len(queries) :]
    k = min(k, len(known))
    distance = np.full(len(queries), 2, np.float32)
    if not k:
        return distance
    wide = min(k + _EXTRA_CANDIDATES, len(known))
    vectors, rows = UnitVectors(known, np.zeros(known.shape[1], np.float32)), np.arange(len(known))
    for start in range(0, len(queries), _OTHERS_BLOCK):
        part = slice(start, start + _OTHERS_BLOCK)
        cosine = queries[part] @ known.T
        cosine[of_query[part, None] == of_known] = -np.inf
        candidates = np.argpartition(-cosine, wide - 1, axis=1)[:, :wide]
        candidates[np.isneginf(np.take_along_axis(cosine, candidates, axis=1))] = -1
        _, nearest = rerank(queries[part], vectors, rows, candidates, k)
        found = np.isfinite(nearest)
        total = np.where(found, nearest, 0).sum(axis=1) / np.maximum(found.sum(axis=1), 1)
        distance[part] = np.where(found.any(axis=1), total, 2)
    return distance


def _search_units(
    units: NDArray[np.float32],
    known: UnitVectors,
    vectors: Vectors,
    k: int,
    *,
    target: float,
    limit: int,
) -> Neighbours:
    k = min(k, len(known))
    if len(known) > limit and len(units) > _FEW_QUERIES:
        index = NeighbourIndex(vectors, k=k, target=target, centre=known.centre, queries=units)
        return Neighbours(*index.search(units, k), index.recall)
    groups = DuplicateGroups(known)
    nearest_groups, distances = exact_neighbours(units, known, groups.first, k)
    return Neighbours(*groups.spread(nearest_groups, distances, k))


def _check_k(k: int) -> None:
    if k < 1:
        raise ParameterError("invalid number of neighbours: must be ≥ 1", where=f"{k=}")


@dataclass(frozen=True)
class _Recall:
    """Share of the true ``k`` nearest neighbours that an index finds.

    Attributes:
        k: Neighbours per query.
        sample: Number of random queries.
        mean: Mean share over the sample.
        error: Its standard error.
    """

    k: int
    sample: int
    mean: float
    error: float

    def __str__(self) -> str:
        return f"recall@{self.k} {self.mean:.3f} ± {1.96 * self.error:.3f} (n={self.sample})"


class NeighbourIndex:
    """An approximate nearest-neighbour index with a measured recall.

    Args:
        vectors: ``[n, d]``, any floating type, such as a mapped file; read again by each query.
        k: Neighbours that the recall refers to.
        target: Recall to reach; as many cells are read as it takes, judged on random queries.
        centre: Float32 ``[d]``; by default the vectors' mean.
        seed: Of the sample that cells are computed from.
        queries: Typical queries, unit vectors ``[q, d]`` about ``centre``, to judge the recall on:
            queries unlike the vectors need more cells. By default, the vectors.

    Attributes:
        lists: The faiss index.
        unit: Value of one step of the 8-bit codes.
        probes: Cells that a query reads.
        recall: Measured against all vectors, on other queries than those that set ``probes``.

    Raises:
        DataError: A number is NaN or infinite.
        ParameterError: ``k`` or ``target`` is out of range.
    """

    def __init__(
        self,
        vectors: Vectors,
        *,
        k: int = 10,
        target: float = 0.97,
        centre: NDArray[np.float32] | None = None,
        seed: int = 0,
        queries: NDArray[np.float32] | None = None,
    ) -> None:
        if k < 1 or not 0 < target <= 1:
            raise ParameterError(
                "invalid index: k must be ≥ 1 and target in (0, 1]", where=f"{k=}, {target=}"
            )
        self.known = UnitVectors(vectors, centre)
        self.groups = DuplicateGroups(self.known)
        self.k, self.target, self.seed = k, target, seed
        self._queries = queries
        self.lists, self.unit = _train(self.known, self.groups.first, seed)
        self._add(self.groups.first)
        self.probes, self.recall = self._tune()

    def __len__(self) -> int:
        return len(self.known)

    def search(self, queries: NDArray[np.float32], k: int) -> _RowsAndDistances:
        """The ``k`` nearest vectors of each query.

        Args:
            queries: Unit vectors ``[q, d]`` about this index's centre, see `UnitVectors.units`.
            k: Neighbours per query.

        Returns:
            Rows int64 and cosine distances float32 ``[q, k]``, nearest first.
        """
        parts = [
            self.groups.spread(*self._nearest(queries[start : start + _CHUNK], k), k)
            for start in range(0, max(len(queries), 1), _CHUNK)
        ]
        rows, far = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(far)

    def all(self, k: int) -> _RowsAndDistances:
        """The ``k`` nearest others of each vector: int64 and float32 ``[n, k]``."""

        def search(groups: NDArray[np.int64], wide: int) -> _RowsAndDistances:
            return self._nearest(self.known.take(self.groups.first[groups]), wide)

        return _neighbours_of_all(self.groups, search, k)

    def _nearest(
        self, queries: NDArray[np.float32], k: int, probes: int | None = None
    ) -> _RowsAndDistances:
        """Nearest groups and their distances; -1 and infinity where there are fewer."""
        probes = probes or self.probes
        self.lists.nprobe = probes
        codes = _quantize(queries, self.unit)
        similarity, cells = self.lists.quantizer.search(codes, probes)
        # Queries that follow each other then read the same lists.
        order = np.argsort(cells[:, 0], kind="stable")
        _, reported = self.lists.search_preassigned(
            codes[order], k + _EXTRA_CANDIDATES, cells[order], similarity[order]
        )
        candidates = np.empty_like(reported)
        candidates[order] = reported
        return rerank(queries, self.known, self.groups.first, candidates, k)

    def _add(self, rows: NDArray[np.int64]) -> None:
        for start in range(0, len(rows), _CHUNK):
            self.lists.add(_quantize(self.known.take(rows[start : start + _CHUNK]), self.unit))

    def _tune(self) -> tuple[int, _Recall]:
        """The fewest cells that reach the target, and the recall on other queries."""
        exclude_self = self._queries is None
        pool = self.groups.first if self._queries is None else np.arange(len(self._queries))
        rng = np.random.default_rng([self.seed, 1])
        chosen = rng.choice(len(pool), min(len(pool), 2 * _RECALL_QUERIES), replace=False)
        sample = (
            self._queries[chosen] if self._queries is not None else self.known.take(pool[chosen])
        )
        # An indexed vector finds itself and k others.
        k = min(self.k + exclude_self, len(self.groups))
        exact, _ = exact_neighbours(sample, self.known, self.groups.first, k)
        half = max(1, len(chosen) // 2)
        probes = _PROBES[0]
        for probes in _PROBES:
            reported, _ = self._nearest(sample[:half], k, probes)
            reached = _recall_per_query(reported, exact[:half], exclude_self).mean() >= min(
                1.0, self.target + _RECALL_MARGIN
            )
            if reached or probes >= self.lists.nlist:
                break
        reported, _ = self._nearest(sample[-half:], k, probes)
        shares = _recall_per_query(reported, exact[-half:], exclude_self)
        error = float(shares.std() / np.sqrt(len(shares)))
        return probes, _Recall(self.k, len(shares), float(shares.mean()), error)


def _cell_centres(sample: NDArray[np.float32], count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """About ``count`` cell centres of a sample ``[s, d]`` of unit vectors, float32 ``[c, d]``.

    Two-level k-means, as in a vocabulary tree (Nistér and Stewénius, 2006): plain k-means would be
    quadratic, because cells grow in number with the vectors. Runs on one thread, so equal samples
    and seeds give equal centres on any machine.
    """
    with _single_thread():
        top = _kmeans(sample, max(1, round(count**0.5)), seed)
        owner = _nearest_centre(sample, top)
        parts = []
        for number in range(len(top)):
            members = sample[owner == number]
            own_count = max(1, round(count * len(members) / len(sample)))
            parts.append(_kmeans(members, own_count, seed) if len(members) > own_count else members)
    centres: NDArray[np.float32] = np.concatenate(parts)
    return centres


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """Run faiss on one thread, so that results do not depend on scheduling."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _kmeans(sample: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    import faiss

    kmeans = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=_KMEANS_ROUNDS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=256,
    )
    kmeans.train(sample)
    means = kmeans.centroids
    return np.asarray(means, np.float32)


def _nearest_centre(sample: NDArray[np.float32], means: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest centre of each row; for unit vectors ``|m|^2 / 2 - x m`` orders as distance."""
    half = (means * means).sum(1) / 2
    owner = np.empty(len(sample), np.int64)
    for start in range(0, len(sample), 16_384):
        part = slice(start, start + 16_384)
        owner[part] = np.argmin(half - sample[part] @ means.T, axis=1)
    return owner


def _neighbours_of_all(groups: DuplicateGroups, search: Any, k: int) -> _RowsAndDistances:
    """The ``k`` nearest others of every row, from the nearest groups of each group.

    Args:
        search: Maps groups ``[q]`` and a count to their nearest groups and distances ``[q,
            count]``.
    """
    total = len(groups.of)
    k = min(k, total - 1)
    whole = np.full((len(groups), k + 1), -1, np.int32)
    whole_far = np.full((len(groups), k + 1), np.inf, np.float32)
    for start in range(0, len(groups), _CHUNK):
        own = np.arange(start, min(start + _CHUNK, len(groups)))
        nearest, nearest_distances = search(own, min(k + 1, len(groups)))
        missing = ~(nearest == own[:, None]).any(axis=1)
        nearest[missing, -1] = own[missing]
        nearest_distances[nearest == own[:, None]] = -1
        order = np.argsort(nearest_distances, axis=1, kind="stable")
        nearest, nearest_distances = (
            np.take_along_axis(nearest, order, 1),
            np.take_along_axis(nearest_distances, order, 1),
        )
        nearest_distances[:, 0] = 0
        rows, distances = groups.spread(nearest, nearest_distances, k + 1)
        whole[own, : rows.shape[1]], whole_far[own, : rows.shape[1]] = rows, distances
    return _without_self(groups, whole, whole_far, k)


def _without_self(
    groups: DuplicateGroups, whole: NDArray[np.int32], far: NDArray[np.float32], k: int
) -> _RowsAndDistances:
    """Turn each group's ``k + 1`` nearest rows, its own included, into ``k`` others per row."""
    total = len(groups.of)
    rows, distances = np.empty((total, k), np.int64), np.empty((total, k), np.float32)
    columns = np.arange(k)
    for start in range(0, total, _CHUNK):
        part = np.arange(start, min(start + _CHUNK, total))
        own_rows = whole[groups.of[part]]
        own = own_rows == part[:, None]
        at = np.where(own.any(axis=1), own.argmax(axis=1), k)  # may be absent in a large group
        chosen = columns + (columns >= at[:, None])
        rows[part] = np.take_along_axis(own_rows, chosen, axis=1)
        distances[part] = np.take_along_axis(far[groups.of[part]], chosen, axis=1)
    return rows, distances


def _recall_per_query(
    reported: NDArray[np.int64], exact: NDArray[np.int64], exclude_self: bool
) -> NDArray[np.float64]:
    """Share of each query's true neighbours that were reported."""
    hits = (reported[:, :, None] == exact[:, None, :]).any(axis=1).sum(axis=1)
    shares: NDArray[np.float64] = np.maximum(hits - exclude_self, 0) / max(
        exact.shape[1] - exclude_self, 1
    )
    return shares


def _quantize(units: NDArray[np.float32], unit: float) -> NDArray[np.float32]:
    """Integers from 0 to 255, 128 for zero, as the float32 that faiss expects."""
    scaled = units / np.float32(unit)
    np.rint(scaled, out=scaled)
    scaled += 128
    return np.clip(scaled, 0, 255, out=scaled)


def _train(known: UnitVectors, rows: NDArray[np.int64], seed: int) -> tuple[Any, float]:
    """An empty index with its cells, and the unit of the codes."""
    import faiss

    cells = max(1, len(rows) // _VECTORS_PER_CELL)
    rng = np.random.default_rng([seed, 0])
    chosen = np.sort(
        rng.choice(len(rows), min(len(rows), _SAMPLES_PER_CELL * cells), replace=False)
    )
    sample = known.take(rows[chosen])
    unit = float(max(np.abs(sample).max(), 1e-3) / 127)
    centres = _cell_centres(sample, cells, seed=seed) / np.float32(unit) + 128
    graph = faiss.IndexHNSWFlat(known.width, _GRAPH)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = _CONSTRUCTION, _BREADTH
    lists = faiss.IndexIVFScalarQuantizer(
        graph,
        known.width,
        len(centres),
        faiss.ScalarQuantizer.QT_8bit_direct,
        faiss.METRIC_L2,
        False,  # encode vectors, not residuals
    )
    with _single_thread():
        graph.add(centres)
        lists.train(centres)  # nothing to learn for 8-bit codes; faiss requires the call
    return lists, unit
