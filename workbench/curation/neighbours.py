"""Nearest-neighbour search: exact for small pools, a faiss index for large ones."""

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

_KMEANS_ROUNDS = 8


def _cell_centres(sample: NDArray[np.float32], count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """About ``count`` cell centres for a sample ``[s, d]`` of unit vectors, float32 ``[c, d]``.

    One thread: the same sample and seed give the same centres on any number of cores.
    """
    with _single_thread():
        top = _kmeans(sample, max(1, round(count**0.5)), seed)
        owner = _nearest_centre(sample, top)
        parts = []
        for number in range(len(top)):
            mine = sample[owner == number]
            share = max(1, round(count * len(mine) / len(sample)))
            parts.append(_kmeans(mine, share, seed) if len(mine) > share else mine)
    found: NDArray[np.float32] = np.concatenate(parts)
    return found


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """faiss on one thread: what several build together depends on who comes first."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _kmeans(sample: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    import faiss

    found = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=_KMEANS_ROUNDS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=256,
    )
    found.train(sample)
    means = found.centroids
    return np.asarray(means, np.float32)


def _nearest_centre(sample: NDArray[np.float32], means: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest centre of each row; on unit vectors ``|m|^2 / 2 - x m`` orders as distance."""
    half = (means * means).sum(1) / 2
    owner = np.empty(len(sample), np.int64)
    for start in range(0, len(sample), 16_384):
        part = slice(start, start + 16_384)
        owner[part] = np.argmin(half - sample[part] @ means.T, axis=1)
    return owner


# ---- An index for more vectors than can all be compared: cells of similar vectors, few of them read.
#
# Inverted lists of vectors with eight bits a number (faiss, IVF-SQ8), their cells found through a
# small graph (HNSW, Malkov and Yashunin, 2018). Many small cells: reading them costs more than
# finding them. The bits are of the vectors themselves, not of what a cell's centre leaves: compared
# as whole numbers they take half the time, and what they blur is mended, because the true distances
# order what the lists propose. So an answer depends on the query alone: not on what else is asked,
# nor in which order.


_BuiltIndex = tuple[Any, float, int, "Recall"]
_RowsAndDistances = tuple[NDArray[np.int64], NDArray[np.float32]]

_VECTORS_PER_CELL = 64
"""Vectors in a cell, on average. Cells grow in number, not in size, so a query costs the same."""

_SAMPLES_PER_CELL = 16
"""Vectors a cell that its centre is found from."""

_CHUNK = 8192
_EXTRA_CANDIDATES = 6
_PROBES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)
_RECALL_QUERIES = 256
_RECALL_MARGIN = 0.008
_GRAPH, _CONSTRUCTION, _BREADTH = 16, 80, 64


@dataclass(frozen=True)
class Recall:
    """How many of the true ``k`` nearest are found: the mean over ``sample`` random queries.

    ``error`` is its standard error.
    """

    k: int
    sample: int
    mean: float
    error: float

    def __str__(self) -> str:
        return f"recall@{self.k} {self.mean:.3f} ± {1.96 * self.error:.3f} (n={self.sample})"


class NeighbourIndex:
    """Vectors and their index.

    Args:
        vectors: ``[n, d]``, any floating type, such as a mapped file; read again when asked.
        k: Neighbours that the recall is meant for.
        target: Recall that as many cells are read for as it takes, judged on random queries.
        centre: Float32 ``[d]``; by default, their mean.
        seed: Of the sample that cells are found from.
        queries: Unit vectors ``[q, d]`` about ``centre`` of the kind that will be asked, to judge
            the recall on: what lies off the vectors needs more cells. By default, the vectors.
        built: Lists, cells to read and recall of an index of the same vectors, read from disk.

    Attributes:
        lists: What faiss keeps.
        unit: The value of one step of the eight bits.
        probes: Cells that a query reads.
        recall: Measured against all vectors, on other queries than those it was set on.

    Raises:
        DataError: A number is missing or infinite.
        ParameterError: ``k`` or ``target`` make no sense.
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
        built: _BuiltIndex | None = None,
    ) -> None:
        if k < 1 or not 0 < target <= 1:
            raise ParameterError(
                "an index needs k of 1 or more and a target in (0, 1]", where=f"{k=}, {target=}"
            )
        self.known = UnitVectors(vectors, centre)
        self.groups = DuplicateGroups(self.known)
        self.k, self.target, self.seed = k, target, seed
        self._queries = queries
        if built is not None:
            self.lists, self.unit, self.probes, self.recall = built
            return
        self.lists, self.unit = _train(self.known, self.groups.first, seed)
        self._add(self.groups.first)
        self.probes, self.recall = self._tuned()

    def __len__(self) -> int:
        return len(self.known)

    def add(self, vectors: Vectors) -> None:
        """More vectors, in the cells that are there; their rows follow.

        Recall is measured again and more cells are read if need be. Cells grow fuller by this: when
        there are twice as many vectors as it was built from, build anew.
        """
        before = len(self.groups)
        self.known.append(vectors)
        self.groups = DuplicateGroups(self.known)
        self._add(self.groups.first[before:])
        self.probes, self.recall = self._tuned()

    def search(self, queries: NDArray[np.float32], k: int) -> _RowsAndDistances:
        """The ``k`` nearest vectors of each query, as rows and cosine distances ``[q, k]``.

        Args:
            queries: Unit vectors ``[q, d]`` about this index's centre, see `Directions.units`.
        """
        parts = [
            self.groups.spread(*self._nearest(queries[start : start + _CHUNK], k), k)
            for start in range(0, max(len(queries), 1), _CHUNK)
        ]
        rows, far = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(far)

    def all(self, k: int) -> _RowsAndDistances:
        """The ``k`` nearest other vectors of each vector, int64 and float32 ``[n, k]``."""

        def ask(groups: NDArray[np.int64], wide: int) -> _RowsAndDistances:
            return self._nearest(self.known.take(self.groups.first[groups]), wide)

        return _neighbours_of_all(self.groups, ask, k)

    def _nearest(
        self, queries: NDArray[np.float32], k: int, probes: int | None = None
    ) -> _RowsAndDistances:
        """Groups, not rows, and distances, nearest first; -1 and infinity where none is left."""
        probes = probes or self.probes
        self.lists.nprobe = probes
        asked = _quantize(queries, self.unit)
        likeness, cells = self.lists.quantizer.search(asked, probes)
        order = np.argsort(cells[:, 0], kind="stable")  # neighbours in turn read the same lists
        _, found = self.lists.search_preassigned(
            asked[order], k + _EXTRA_CANDIDATES, cells[order], likeness[order]
        )
        candidates = np.empty_like(found)
        candidates[order] = found
        return rerank(queries, self.known, self.groups.first, candidates, k)

    def _add(self, rows: NDArray[np.int64]) -> None:
        for start in range(0, len(rows), _CHUNK):
            self.lists.add(_quantize(self.known.take(rows[start : start + _CHUNK]), self.unit))

    def _tuned(self) -> tuple[int, Recall]:
        """The fewest cells that reach the target, and the recall on other queries."""
        own = self._queries is None
        pool = self.groups.first if self._queries is None else np.arange(len(self._queries))
        rng = np.random.default_rng([self.seed, 1])
        drawn = rng.choice(len(pool), min(len(pool), 2 * _RECALL_QUERIES), replace=False)
        asked = self._queries[drawn] if self._queries is not None else self.known.take(pool[drawn])
        k = min(self.k + own, len(self.groups))  # a vector of its own finds itself, and k others
        true, _ = exact_neighbours(asked, self.known, self.groups.first, k)
        half = max(1, len(drawn) // 2)
        probes = _PROBES[0]
        for probes in _PROBES:
            found, _ = self._nearest(asked[:half], k, probes)
            enough = _found_share(found, true[:half], own).mean() >= min(
                1.0, self.target + _RECALL_MARGIN
            )
            if enough or probes >= self.lists.nlist:
                break
        found, _ = self._nearest(asked[-half:], k, probes)
        shares = _found_share(found, true[-half:], own)
        error = float(shares.std() / np.sqrt(len(shares)))
        return probes, Recall(self.k, len(shares), float(shares.mean()), error)


def _neighbours_of_all(groups: DuplicateGroups, ask: Any, k: int) -> _RowsAndDistances:
    """The ``k`` nearest others of every row, from the nearest groups of each group.

    Args:
        ask: Groups ``[q]`` and a count to their nearest groups and distances ``[q, count]``.
    """
    total = len(groups.of)
    k = min(k, total - 1)
    whole = np.full((len(groups), k + 1), -1, np.int32)
    whole_far = np.full((len(groups), k + 1), np.inf, np.float32)
    for start in range(0, len(groups), _CHUNK):
        own = np.arange(start, min(start + _CHUNK, len(groups)))
        found, far = ask(own, min(k + 1, len(groups)))
        missing = ~(found == own[:, None]).any(axis=1)
        found[missing, -1] = own[missing]
        far[found == own[:, None]] = -1
        order = np.argsort(far, axis=1, kind="stable")
        found, far = np.take_along_axis(found, order, 1), np.take_along_axis(far, order, 1)
        far[:, 0] = 0
        rows, distances = groups.spread(found, far, k + 1)
        whole[own, : rows.shape[1]], whole_far[own, : rows.shape[1]] = rows, distances
    return _without_self(groups, whole, whole_far, k)


def _without_self(
    groups: DuplicateGroups, whole: NDArray[np.int32], far: NDArray[np.float32], k: int
) -> _RowsAndDistances:
    """From each group's ``k + 1`` nearest rows, its own among them, to ``k`` others a row."""
    total = len(groups.of)
    rows, distances = np.empty((total, k), np.int64), np.empty((total, k), np.float32)
    columns = np.arange(k)
    for start in range(0, total, _CHUNK):
        part = np.arange(start, min(start + _CHUNK, total))
        mine = whole[groups.of[part]]
        own = mine == part[:, None]
        at = np.where(own.any(axis=1), own.argmax(axis=1), k)  # in a large group, maybe not there
        chosen = columns + (columns >= at[:, None])
        rows[part] = np.take_along_axis(mine, chosen, axis=1)
        distances[part] = np.take_along_axis(far[groups.of[part]], chosen, axis=1)
    return rows, distances


def _found_share(
    found: NDArray[np.int64], true: NDArray[np.int64], own: bool
) -> NDArray[np.float64]:
    """The share of each query's true neighbours that were found; ``own``: itself counts not."""
    hits = (found[:, :, None] == true[:, None, :]).any(axis=1).sum(axis=1)
    shares: NDArray[np.float64] = np.maximum(hits - own, 0) / max(true.shape[1] - own, 1)
    return shares


def _quantize(units: NDArray[np.float32], unit: float) -> NDArray[np.float32]:
    """Whole numbers from 0 to 255, 128 for zero, as the float32 that faiss wants to be given."""
    scaled = units / np.float32(unit)
    np.rint(scaled, out=scaled)
    scaled += 128
    return np.clip(scaled, 0, 255, out=scaled)


def _train(known: UnitVectors, rows: NDArray[np.int64], seed: int) -> tuple[Any, float]:
    """Empty lists with their cells, and the unit of the bytes."""
    import faiss

    cells = max(1, len(rows) // _VECTORS_PER_CELL)
    rng = np.random.default_rng([seed, 0])
    drawn = np.sort(rng.choice(len(rows), min(len(rows), _SAMPLES_PER_CELL * cells), replace=False))
    sample = known.take(rows[drawn])
    unit = float(max(np.abs(sample).max(), 1e-3) / 127)
    found = _cell_centres(sample, cells, seed=seed) / np.float32(unit) + 128
    graph = faiss.IndexHNSWFlat(known.width, _GRAPH)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = _CONSTRUCTION, _BREADTH
    lists = faiss.IndexIVFScalarQuantizer(
        graph,
        known.width,
        len(found),
        faiss.ScalarQuantizer.QT_8bit_direct,
        faiss.METRIC_L2,
        False,  # no residuals
    )
    with _single_thread():
        graph.add(found)
        lists.train(found)  # nothing is learned for bytes; faiss wants to be told
    return lists, unit


# ---- Neighbours, whatever the number: what the rest of curation asks.


_FEW_QUERIES = 1000
"""Queries for which reading all vectors once is cheaper than building an index of them."""


@dataclass(frozen=True)
class Neighbours:
    """The ``k`` nearest of each of ``n`` vectors, nearest first; equally near by row.

    Attributes:
        rows: Int64 ``[n, k]``.
        distances: Float32 ``[n, k]``: cosine distance of centred vectors, in [0, 2].
        recall: Measured, where an index answered; None where all were compared.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float32]
    recall: Recall | None = None


def all_neighbours(
    vectors: Vectors, k: int = 10, *, target: float = 0.97, limit: int = EXACT_LIMIT
) -> Neighbours:
    """The nearest others of every vector ``[n, d]``; of fewer than ``k`` others, all.

    Args:
        target: Recall that an index is set to.
        limit: Distinct vectors up to which all are compared with all.

    Raises:
        DataError: No vectors, or a number is missing or infinite.
    """
    _check_k(k)
    known = UnitVectors(vectors)
    groups = DuplicateGroups(known)
    if len(groups) > limit:
        del known, groups
        index = NeighbourIndex(vectors, k=k, target=target)
        return Neighbours(*index.all(k), index.recall)

    def ask(own: NDArray[np.int64], wide: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return exact_neighbours(known.take(groups.first[own]), known, groups.first, wide)

    return Neighbours(*_neighbours_of_all(groups, ask, k))


def search_neighbours(
    queries: Vectors,
    vectors: Vectors,
    k: int = 10,
    *,
    target: float = 0.97,
    limit: int = EXACT_LIMIT,
) -> Neighbours:
    """The nearest of ``vectors`` ``[n, d]`` to each query ``[q, d]``, about the vectors' mean.

    Few queries are compared with all vectors, whatever their number; keep a `NeighbourIndex`
    where many small batches are asked.

    Raises:
        DataError: No vectors, other widths, or a number is missing or infinite.
    """
    _check_k(k)
    known = UnitVectors(vectors)
    units = known.units(queries)
    return _search_units(units, known, vectors, k, target=target, limit=limit)


def nearest_distance(
    queries: NDArray[np.float32], known: NDArray[np.float32], k: int = 3
) -> NDArray[np.float32]:
    """Mean cosine distance of each query to its ``k`` nearest of ``known``, float32 ``[n]``.

    Args:
        queries: Unit vectors ``[n, d]``, see `directions`.
        known: Unit vectors ``[m, d]``; with none, every query is as far as can be: 2.
    """
    if queries.shape[1:] != known.shape[1:]:
        raise DataError(
            f"vectors of width {queries.shape[1]} cannot be compared with width {known.shape[1]}",
            hint="They come from different models; embed both with the same one",
        )
    if not len(known) or not len(queries):
        return np.full(len(queries), 2, np.float32)
    origin = np.zeros(known.shape[1], np.float32)  # they are directions already
    k = min(k, len(known))
    found = _search_units(
        queries, UnitVectors(known, origin), known, k, target=0.97, limit=EXACT_LIMIT
    )
    mean: NDArray[np.float32] = found.distances.mean(axis=1)
    return mean


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
    found, far = exact_neighbours(units, known, groups.first, k)
    return Neighbours(*groups.spread(found, far, k))


def _check_k(k: int) -> None:
    if k < 1:
        raise ParameterError("neighbours are asked for by one or more", where=f"{k=}")
