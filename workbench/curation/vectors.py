"""Centred unit vectors, exact nearest neighbours, and groups of identical vectors.

Vectors are compared by the cosine of centred vectors, read a block at a time from memory or from
mapped files. Centring matters: features after a ReLU all point into one orthant, and without
centring every pair looks similar.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError

__all__ = ()

Vectors = NDArray[np.floating[Any]]
_BLOCK = 16_384
_MIN_LENGTH = 1e-6
EXACT_LIMIT = 50_000
"""Number of vectors up to which comparing all with all is cheaper than an index."""

_QUERIES, _KNOWN = 1024, 16_384
_EXTRA_CANDIDATES = 8
"""Candidates beyond k: a product's last bits depend on its blocks, results must not."""


def unit_vectors(
    vectors: Vectors, centre: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Unit vectors about a centre.

    Args:
        vectors: ``[n, d]``, any floating type.
        centre: Float32 ``[d]``; by default the mean of ``vectors``.

    Returns:
        Float32 ``[n, d]``; zero for a vector at the centre.

    Raises:
        DataError: A number is NaN or infinite.
    """
    values = np.asarray(vectors, np.float32)
    _check_finite(values)
    values = values - (values.mean(0) if centre is None else centre)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > _MIN_LENGTH
    )
    return unit


def principal_components(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """First two principal components of unit vectors ``[n, d]``, float32 ``[n, 2]``; signs are
    fixed.

    All zero for fewer than three vectors.
    """
    points = np.zeros((len(units), 2), np.float32)
    if len(units) >= 3:
        # The d x d matrix is much smaller than n x n.
        values, axes = np.linalg.eigh(units.T @ units)
        first = axes[:, np.argsort(values)[::-1][:2]]
        first = first * np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
        points[:, : first.shape[1]] = units @ first
    return points


class UnitVectors:
    """``n`` unit vectors about one centre, computed on request; the vectors may be mapped files.

    Args:
        vectors: ``[n, d]``, any floating type.
        centre: Float32 ``[d]``; by default the mean of ``vectors``.

    Attributes:
        scale: Float32 ``[n]``: one over each length; 0 for a vector at the centre.
        hashes: Uint64 ``[n]``: equal for vectors of equal bytes, very rarely for others.

    Raises:
        DataError: No vectors, or a number is NaN or infinite.
    """

    def __init__(self, vectors: Vectors, centre: NDArray[np.float32] | None = None) -> None:
        if vectors.ndim != 2 or not vectors.size:
            raise DataError(f"cannot compare vectors of shape {list(vectors.shape)}")
        self._vectors = vectors
        self.width = vectors.shape[1]
        self.centre = _mean(vectors) if centre is None else centre
        self.scale = np.empty(len(vectors), np.float32)
        self.hashes = np.empty(len(vectors), np.uint64)
        for start in range(0, len(vectors), _BLOCK):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK])
            values = block.astype(np.float32)
            _check_finite(values)
            values -= self.centre
            lengths = np.linalg.norm(values, axis=1)
            part = slice(start, start + len(block))
            self.scale[part] = np.divide(
                1, lengths, out=np.zeros_like(lengths), where=lengths > _MIN_LENGTH
            )
            self.hashes[part] = _row_hashes(block)

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Unit vectors of these rows, float32 ``[..., d]``."""
        flat = np.asarray(rows).ravel()
        values = np.asarray(self._vectors[flat], np.float32) - self.centre
        values *= self.scale[flat, None]
        return values.reshape(*np.shape(rows), self.width)

    def units(self, vectors: Vectors) -> NDArray[np.float32]:
        """Other vectors as unit vectors about the same centre, float32 ``[m, d]``.

        Raises:
            DataError: Another width, or a number is NaN or infinite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise DataError(
                f"cannot compare vectors of width {vectors.shape[-1]} and {self.width}",
                hint="Embed both with the same model",
            )
        return unit_vectors(vectors, self.centre)


def exact_neighbours(
    queries: NDArray[np.float32], known: UnitVectors, among: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Exact ``k`` nearest neighbours among some rows; memory is bounded by blocks.

    Args:
        queries: Unit vectors float32 ``[q, d]``.
        known: The vectors to search.
        among: Rows of ``known`` to search, int64 ``[m]``.
        k: Neighbours per query; fewer where ``among`` is shorter.

    Returns:
        Positions in ``among``, int64 ``[q, k]``, and cosine distances, float32 ``[q, k]``, nearest
        first.
    """
    k = min(k, len(among))
    wide = min(k + _EXTRA_CANDIDATES, len(among))
    best = np.full((len(queries), wide), -np.inf, np.float32)
    where = np.zeros((len(queries), wide), np.int64)
    for first in range(0, len(among), _KNOWN):
        block = known.take(among[first : first + _KNOWN])
        for start in range(0, len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            cosine = np.concatenate([best[part], queries[part] @ block.T], axis=1)
            best_columns = np.argpartition(-cosine, wide - 1, axis=1)[:, :wide]
            previous = np.take_along_axis(where[part], np.minimum(best_columns, wide - 1), axis=1)
            where[part] = np.where(best_columns < wide, previous, best_columns - wide + first)
            best[part] = np.take_along_axis(cosine, best_columns, axis=1)
    return rerank(queries, known, among, where, k)


def rerank(
    queries: NDArray[np.float32],
    known: UnitVectors,
    among: NDArray[np.int64],
    candidates: NDArray[np.int64],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sort candidates by exact distance and keep the first ``k``.

    Each distance is computed by itself, so it depends on its two vectors only, not on the batch.
    Ties are in order of row.

    Args:
        queries: Unit vectors float32 ``[q, d]``.
        known: The vectors to search.
        among: Rows of ``known`` that candidates refer to.
        candidates: Positions in ``among``, int64 ``[q, j]``; -1 for none.
        k: Neighbours to keep.

    Returns:
        As `exact_neighbours`; -1 and infinity where a query has fewer candidates.
    """
    rows = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        sorted_candidates = np.sort(candidates[part], axis=1)
        vectors = known.take(among[np.maximum(sorted_candidates, 0)])
        cosine = np.einsum("qd,qjd->qj", queries[part], vectors)
        distance = np.where(sorted_candidates < 0, np.inf, np.maximum(1 - cosine, 0))
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        rows[part] = np.take_along_axis(sorted_candidates, order, axis=1)
        distances[part] = np.take_along_axis(distance, order, axis=1)
    return rows, distances


class DuplicateGroups:
    """Rows of identical vectors, grouped.

    A parked car gives thousands of equal frames. In an index they would fill one cell, which every
    query there would have to read to its end, and which of them is nearest would be arbitrary.

    Attributes:
        first: Int64 ``[u]``: the lowest row of each group, ascending.
        of: Int64 ``[n]``: the group of each row.
        sizes: Int64 ``[u]``: rows in each group.
    """

    def __init__(self, known: UnitVectors) -> None:
        _, first, inverse = np.unique(known.hashes, return_index=True, return_inverse=True)
        lowest = first[inverse]
        repeated = np.flatnonzero(lowest != np.arange(len(known)))
        for start in range(0, len(repeated), _BLOCK):
            rows = repeated[start : start + _BLOCK]
            # On a hash collision each vector stays in a group of its own.
            differ = (known.take(rows) != known.take(lowest[rows])).any(axis=1)
            lowest[rows[differ]] = rows[differ]
        self.first, self.of, self.sizes = np.unique(lowest, return_inverse=True, return_counts=True)
        self._members = np.argsort(self.of, kind="stable")
        self._starts = np.cumsum(self.sizes) - self.sizes

    def __len__(self) -> int:
        return len(self.first)

    def spread(
        self, groups: NDArray[np.int64], distances: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Expand nearest groups to their rows.

        Args:
            groups: Int64 ``[q, j]``, nearest first; -1 for none.
            distances: Float32 ``[q, j]``.
            k: Rows to return per query.

        Returns:
            Rows int64 ``[q, k]`` and distances float32 ``[q, k]``; -1 and infinity for none.
        """
        if len(self) == len(self.of):
            return groups[:, :k], distances[:, :k]
        present = groups >= 0
        sizes = np.where(present, np.minimum(self.sizes[groups], k), 0)
        ends = np.cumsum(sizes.ravel())
        starts = ends - sizes.ravel()
        query_starts = starts.reshape(sizes.shape)[:, :1]
        positions = np.arange(ends[-1])
        rows = self._members[
            positions + np.repeat(self._starts[groups].ravel() - starts, sizes.ravel())
        ]
        query = np.repeat(np.arange(len(groups)), sizes.sum(1))
        column = positions - query_starts[query, 0]
        kept = column < k
        out = np.full((len(groups), k), -1, np.int64)
        out[query[kept], column[kept]] = rows[kept]
        far = np.full((len(groups), k), np.inf, np.float32)
        far[query[kept], column[kept]] = np.repeat(distances.ravel(), sizes.ravel())[kept]
        return out, far


def _mean(vectors: Vectors) -> NDArray[np.float32]:
    total = np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), _BLOCK):
        total += np.asarray(vectors[start : start + _BLOCK], np.float32).sum(0, dtype=np.float64)
    mean: NDArray[np.float32] = (total / len(vectors)).astype(np.float32)
    return mean


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise DataError(f"{bad} of {len(values)} vectors contain NaN or infinity")


def _row_hashes(block: Vectors) -> NDArray[np.uint64]:
    """A 64-bit hash of each row's bytes: their product with random numbers, modulo 2^64."""
    words = block.view(f"u{block.dtype.itemsize}")
    factors = np.random.default_rng(0).integers(0, 2**64, words.shape[1], np.uint64, endpoint=False)
    hashes: NDArray[np.uint64] = words.astype(np.uint64) @ factors
    return hashes
