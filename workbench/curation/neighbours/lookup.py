"""Neighbours, whatever the number: what the rest of curation asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.curation.neighbours.exact import EXACT_LIMIT, nearest_exact
from workbench.curation.neighbours.groups import Groups
from workbench.curation.neighbours.index import NeighbourIndex, Recall, everyone
from workbench.curation.neighbours.vectors import Directions, Vectors
from workbench.errors import DataError, ParameterError

_FEW = 1000
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
    _check(k)
    known = Directions(vectors)
    groups = Groups(known)
    if len(groups) > limit:
        del known, groups
        index = NeighbourIndex(vectors, k=k, target=target)
        return Neighbours(*index.all(k), index.recall)

    def ask(own: NDArray[np.int64], wide: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return nearest_exact(known.take(groups.first[own]), known, groups.first, wide)

    return Neighbours(*everyone(groups, ask, k))


def search(
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
    _check(k)
    known = Directions(vectors)
    units = known.units(queries)
    return _search(units, known, vectors, k, target=target, limit=limit)


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
    found = _search(queries, Directions(known, origin), known, k, target=0.97, limit=EXACT_LIMIT)
    mean: NDArray[np.float32] = found.distances.mean(axis=1)
    return mean


def _search(
    units: NDArray[np.float32],
    known: Directions,
    vectors: Vectors,
    k: int,
    *,
    target: float,
    limit: int,
) -> Neighbours:
    k = min(k, len(known))
    if len(known) > limit and len(units) > _FEW:
        index = NeighbourIndex(vectors, k=k, target=target, centre=known.centre, queries=units)
        return Neighbours(*index.search(units, k), index.recall)
    groups = Groups(known)
    found, far = nearest_exact(units, known, groups.first, k)
    return Neighbours(*groups.spread(found, far, k))


def _check(k: int) -> None:
    if k < 1:
        raise ParameterError("neighbours are asked for by one or more", where=f"{k=}")
