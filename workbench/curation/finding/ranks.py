"""Ranks: what makes signals of different units comparable, and how several become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ParameterError

Fusion = Literal["mean", "tail", "reciprocal"]

SMALLEST_GROUP = 20
"""A group of fewer is not ranked alone: first of five says little."""

RECIPROCAL_K = 60.0


def rank_within(values: NDArray[np.floating], groups: Sequence[str]) -> NDArray[np.float64]:
    """Mid-rank of each value in its group, scaled into (0, 1); ties share one rank."""
    ranks = np.empty(len(values))
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    for number in range(int(numbers.max(initial=-1)) + 1):
        rows = np.flatnonzero(numbers == number)
        _, inverse, counts = np.unique(values[rows], return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks[rows] = (ends - counts / 2)[inverse] / len(rows)
    return ranks


def merged(conditions: Sequence[str]) -> list[str]:
    """Conditions as groups: those too small to rank within are compared with each other."""
    counts: dict[str, int] = {}
    for condition in conditions:
        counts[condition] = counts.get(condition, 0) + 1
    rest = "other" if max(counts.values(), default=0) >= SMALLEST_GROUP else "all"
    return [c if counts[c] >= SMALLEST_GROUP else rest for c in conditions]


def fuse(
    ranks: NDArray[np.float64], weights: Sequence[float], how: Fusion = "tail"
) -> NDArray[np.float64]:
    """One value a row out of ranks ``[n, s]`` in (0, 1); larger is rarer.

    ``mean`` is the weighted mean of ranks. ``tail`` is the weighted sum of ``-log(1 - rank)``
    (Fisher's combination of p-values): being among the first thousandth in one signal counts more
    than being a little above the middle in all of them. ``reciprocal`` is the weighted sum of
    ``1 / (60 + place)`` (Cormack, Clarke and Buettcher 2009), which looks at the first places only.

    Raises:
        ParameterError: Not one weight a signal, a negative one, or none above zero.
    """
    shares = np.asarray(weights, np.float64)
    if shares.shape != ranks.shape[1:] or not (shares >= 0).all() or not shares.sum() > 0:
        raise ParameterError(
            f"{list(weights)} are no weights for {ranks.shape[1]} signals",
            where="weights",
            hint="Give one number a signal, none negative, one above zero",
        )
    shares = shares / shares.sum()
    if how == "mean":
        values = ranks
    elif how == "tail":
        values = -np.log1p(-np.clip(ranks, 0.0, 1.0 - 1e-9))
    else:
        values = 1.0 / (RECIPROCAL_K + (1.0 - ranks) * len(ranks))
    fused: NDArray[np.float64] = values @ shares
    return fused
