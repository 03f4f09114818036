"""Nearest neighbours, exact: blocks of one matrix product, so memory stays bounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.curation.neighbours.vectors import Directions

EXACT_LIMIT = 50_000
"""Rows up to which comparing all with all is the better choice than an index."""

_QUERIES, _KNOWN = 1024, 16_384
_SPARE = 8
"""Candidates beyond k: a product's last bits depend on its blocks, an answer must not."""


def nearest_exact(
    queries: NDArray[np.float32], known: Directions, among: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` nearest of the rows ``among`` of ``known`` to each query, nearest first.

    Args:
        queries: Unit vectors ``[q, d]``.

    Returns:
        Positions in ``among``, int64 ``[q, k]``, and cosine distances, float32 ``[q, k]``.
    """
    k = min(k, len(among))
    wide = min(k + _SPARE, len(among))
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
    return refined(queries, known, among, where, k)


def refined(
    queries: NDArray[np.float32],
    known: Directions,
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
