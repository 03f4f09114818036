"""Nearest neighbours, exact: blocks of one matrix product, so memory stays bounded.

Distances are cosine distances of centred vectors. Centring matters: features behind a ReLU all
point into one orthant, and without it every pair looks alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError

_BLOCK = 2048
EXACT_LIMIT = 50_000
"""Rows up to which comparing all with all is the better choice than an index."""


def directions(
    vectors: NDArray[np.floating], centre: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Unit vectors ``[n, d]`` about ``centre`` (default: their own mean). Constant ones are zero.

    Raises:
        DataError: A number is missing or infinite.
    """
    values = np.asarray(vectors, np.float32)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise DataError(f"{bad} of {len(values)} vectors are not finite", hint="Embed them again")
    values = values - (values.mean(0) if centre is None else centre)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > 1e-6
    )
    return unit


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
    if not len(known):
        return np.full(len(queries), 2, np.float32)
    k = min(k, len(known))
    result = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        best = np.full((len(block), k), -np.inf, np.float32)
        for first in range(0, len(known), 16 * _BLOCK):
            likeness = block @ known[first : first + 16 * _BLOCK].T
            both = np.concatenate([best, likeness], axis=1)
            best = -np.partition(-both, k - 1, axis=1)[:, :k]
        result[start : start + _BLOCK] = 1 - best.mean(axis=1)
    return result
