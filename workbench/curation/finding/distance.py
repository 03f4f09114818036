"""How far things lie from labelled ones, in lengths rather than in angles.

An angle about the mean says nothing where all are close to the mean: there every direction is as
far as any other. A thing that is odd lies far out, and only a length tells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError

_BLOCK = 2048
_KNOWN_BLOCK = 32_768


def nearest_length(
    queries: NDArray[np.floating], known: NDArray[np.floating], neighbours: int = 3
) -> NDArray[np.float32]:
    """Mean Euclidean distance of each query to its nearest ``neighbours`` of ``known``.

    Args:
        queries: Float ``[n, d]``.
        known: Float ``[m, d]``, at least one.

    Returns:
        Float32 ``[n]``.

    Raises:
        DataError: Vectors that are not finite, or of different widths.
    """
    mine, others = np.asarray(queries, np.float32), np.asarray(known, np.float32)
    if mine.shape[1:] != others.shape[1:]:
        raise DataError(
            f"vectors of width {mine.shape[1]} cannot be compared with width {others.shape[1]}",
            hint="They come from different models; embed both with the same one",
        )
    for name, values in (("", mine), ("labelled ", others)):
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(values)} {name}vectors are not finite", hint="Embed them again"
            )
    centre = others.mean(0)
    mine, others = mine - centre, others - centre  # short vectors lose fewer digits when squared
    count = min(neighbours, len(others))
    squares = (others**2).sum(1)
    result = np.empty(len(mine), np.float32)
    for start in range(0, len(mine), _BLOCK):
        block = mine[start : start + _BLOCK]
        best = np.full((len(block), count), np.inf, np.float32)
        for first in range(0, len(others), _KNOWN_BLOCK):
            part = slice(first, first + _KNOWN_BLOCK)
            both = np.concatenate([best, squares[part] - 2 * block @ others[part].T], axis=1)
            best = np.partition(both, count - 1, axis=1)[:, :count]
        lengths = np.sqrt(np.clip(best + (block**2).sum(1, keepdims=True), 0, None))
        result[start : start + _BLOCK] = lengths.mean(axis=1)
    return result
