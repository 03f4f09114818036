"""Centred unit vectors, exact nearest neighbours, and groups of identical vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError

Vectors = NDArray[np.floating[Any]]

_BLOCK = 16_384
_MIN_LENGTH = 1e-6


def unit_vectors(
    vectors: Vectors, centre: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Unit vectors ``[n, d]`` about ``centre`` (default: their own mean). Constant ones are zero.

    Raises:
        DataError: A number is missing or infinite.
    """
    values = np.asarray(vectors, np.float32)
    _check_finite(values)
    values = values - (values.mean(0) if centre is None else centre)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > _MIN_LENGTH
    )
    return unit


class UnitVectors:
    """``n`` unit vectors about one centre, made when asked for; the vectors may be mapped files.

    Args:
        vectors: ``[n, d]``, any floating type.
        centre: Float32 ``[d]``; by default, the mean of ``vectors``.

    Attributes:
        scale: Float32 ``[n]``: one over each length; 0 for a vector that is the centre itself.
        prints: Uint64 ``[n]``: equal for vectors of equal bytes, and hardly ever else.

    Raises:
        DataError: No vectors, or a number is missing or infinite.
    """

    def __init__(self, vectors: Vectors, centre: NDArray[np.float32] | None = None) -> None:
        if vectors.ndim != 2 or not vectors.size:
            raise DataError(f"vectors of shape {list(vectors.shape)} cannot be compared")
        self._parts: list[Vectors] = []
        self._starts = np.zeros(1, np.int64)
        self.width = vectors.shape[1]
        self.centre = _mean(vectors) if centre is None else centre
        self.scale = np.empty(0, np.float32)
        self.prints = np.empty(0, np.uint64)
        self.append(vectors)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def append(self, vectors: Vectors) -> None:
        """More vectors, about the same centre; their rows follow those that are there."""
        if vectors.shape[1:] != (self.width,):
            raise DataError(
                f"vectors of width {vectors.shape[-1]} cannot be compared with width {self.width}",
                hint="They come from different models; embed both with the same one",
            )
        scale = np.empty(len(vectors), np.float32)
        prints = np.empty(len(vectors), np.uint64)
        for start in range(0, len(vectors), _BLOCK):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK])
            values = block.astype(np.float32)
            _check_finite(values)
            values -= self.centre
            lengths = np.linalg.norm(values, axis=1)
            part = slice(start, start + len(block))
            scale[part] = np.divide(
                1, lengths, out=np.zeros_like(lengths), where=lengths > _MIN_LENGTH
            )
            prints[part] = _row_hashes(block)
        self._parts.append(vectors)
        self._starts = np.append(self._starts, len(self) + len(vectors))
        self.scale = np.concatenate([self.scale, scale])
        self.prints = np.concatenate([self.prints, prints])

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The unit vectors of these rows, float32 ``[..., d]``."""
        flat = np.asarray(rows).ravel()
        values = np.empty((len(flat), self.width), np.float32)
        owner = np.searchsorted(self._starts, flat, side="right") - 1
        for number, part in enumerate(self._parts):
            chosen = slice(None) if len(self._parts) == 1 else owner == number
            values[chosen] = part[flat[chosen] - self._starts[number]]
        values -= self.centre
        values *= self.scale[flat, None]
        return values.reshape(*np.shape(rows), self.width)

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All unit vectors in order, with the row each block starts at."""
        for start in range(0, len(self), size):
            yield start, self.take(np.arange(start, min(start + size, len(self))))

    def units(self, vectors: Vectors) -> NDArray[np.float32]:
        """Other vectors as directions about the same centre, float32 ``[m, d]``."""
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise DataError(
                f"vectors of width {vectors.shape[-1]} cannot be compared with width {self.width}",
                hint="They come from different models; embed both with the same one",
            )
        return unit_vectors(vectors, self.centre)


def _mean(vectors: Vectors) -> NDArray[np.float32]:
    total = np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), _BLOCK):
        total += np.asarray(vectors[start : start + _BLOCK], np.float32).sum(0, dtype=np.float64)
    mean: NDArray[np.float32] = (total / len(vectors)).astype(np.float32)
    return mean


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise DataError(f"{bad} of {len(values)} vectors are not finite", hint="Embed them again")


def _row_hashes(block: Vectors) -> NDArray[np.uint64]:
    """A 64-bit number for each row's bytes: their product with random numbers, modulo 2^64."""
    words = block.view(f"u{block.dtype.itemsize}")
    factors = np.random.default_rng(0).integers(0, 2**64, words.shape[1], np.uint64, endpoint=False)
    prints: NDArray[np.uint64] = words.astype(np.uint64) @ factors
    return prints


# ---- Nearest neighbours, exact: blocks of one matrix product, so memory stays bounded.


EXACT_LIMIT = 50_000
"""Rows up to which comparing all with all is the better choice than an index."""

_QUERIES, _KNOWN = 1024, 16_384
_EXTRA_CANDIDATES = 8
"""Candidates beyond k: a product's last bits depend on its blocks, an answer must not."""


def exact_neighbours(
    queries: NDArray[np.float32], known: UnitVectors, among: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` nearest of the rows ``among`` of ``known`` to each query, nearest first.

    Args:
        queries: Unit vectors ``[q, d]``.

    Returns:
        Positions in ``among``, int64 ``[q, k]``, and cosine distances, float32 ``[q, k]``.
    """
    k = min(k, len(among))
    wide = min(k + _EXTRA_CANDIDATES, len(among))
    best = np.full((len(queries), wide), -np.inf, np.float32)
    where = np.zeros((len(queries), wide), np.int64)
    for first in range(0, len(among), _KNOWN):
        block = known.take(among[first : first + _KNOWN])
        for start in range(0, len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            likeness = np.concatenate([best[part], queries[part] @ block.T], axis=1)
            chosen = np.argpartition(-likeness, wide - 1, axis=1)[:, :wide]
            old = np.take_along_axis(where[part], np.minimum(chosen, wide - 1), axis=1)
            where[part] = np.where(chosen < wide, old, chosen - wide + first)
            best[part] = np.take_along_axis(likeness, chosen, axis=1)
    return rerank(queries, known, among, where, k)


def rerank(
    queries: NDArray[np.float32],
    known: UnitVectors,
    among: NDArray[np.int64],
    candidates: NDArray[np.int64],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Candidates ``[q, j]`` (positions in ``among``, -1 for none) in true order, the first ``k``.

    Each distance is computed by itself, so that it depends on its two vectors alone, not on the
    batch; of equally near ones the lower row comes first.
    """
    rows = np.empty((len(queries), k), np.int64)
    far = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        chosen = np.sort(candidates[part], axis=1)
        vectors = known.take(among[np.maximum(chosen, 0)])
        likeness = np.einsum("qd,qjd->qj", queries[part], vectors)
        distance = np.where(chosen < 0, np.inf, np.maximum(1 - likeness, 0))
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        rows[part] = np.take_along_axis(chosen, order, axis=1)
        far[part] = np.take_along_axis(distance, order, axis=1)
    return rows, far


# ---- Identical vectors as groups: an index sees each vector once, however often it was recorded.
#
# A parked car gives thousands of equal frames. In an index they would fill one list, which every
# query there would have to read to its end; and which of them are "nearest" would be chance.


class DuplicateGroups:
    """Rows of equal vectors.

    Attributes:
        first: Int64 ``[u]``: the lowest row of each group, ascending.
        of: Int64 ``[n]``: the group of each row.
        sizes: Int64 ``[u]``.
    """

    def __init__(self, known: UnitVectors) -> None:
        _, first, inverse = np.unique(known.prints, return_index=True, return_inverse=True)
        lowest = first[inverse]
        repeated = np.flatnonzero(lowest != np.arange(len(known)))
        for start in range(0, len(repeated), _BLOCK):
            rows = repeated[start : start + _BLOCK]
            # Two vectors may share a print by chance; then each stays alone.
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
        """Groups ``[q, j]``, nearest first, as the first ``k`` of their rows; -1 where none is."""
        if len(self) == len(self.of):
            return groups[:, :k], distances[:, :k]
        there = groups >= 0
        sizes = np.where(there, np.minimum(self.sizes[groups], k), 0)
        ends = np.cumsum(sizes.ravel())
        starts = ends - sizes.ravel()
        begins = starts.reshape(sizes.shape)[:, :1]  # of each query, in the run of all
        places = np.arange(ends[-1])
        rows = self._members[
            places + np.repeat(self._starts[groups].ravel() - starts, sizes.ravel())
        ]
        query = np.repeat(np.arange(len(groups)), sizes.sum(1))
        column = places - begins[query, 0]
        kept = column < k
        out = np.full((len(groups), k), -1, np.int64)
        out[query[kept], column[kept]] = rows[kept]
        far = np.full((len(groups), k), np.inf, np.float32)
        far[query[kept], column[kept]] = np.repeat(distances.ravel(), sizes.ravel())[kept]
        return out, far
