"""Typicality: what to label first, while almost nothing is labelled.

With no labels, rare is only strange, and a model learns little from strange frames alone (Hacohen,
Dekel and Weinshall 2022, "Active learning on a budget: opposite strategies suit high and low
budgets"). So the pool is cut into clusters, those without labels come first, and in each the frame
in the densest place comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.finding.ranks import rank_within
from workbench.curation.neighbours import directions, nearest_distance

NEIGHBOURS = 20
_SAMPLE = 20_000


def typicality(
    pool: Embeddings, groups: Sequence[str], clusters: int = 50, seed: int = 0
) -> NDArray[np.float64]:
    """Float64 ``[n]`` in (0, 1): 1 is the middle of its cluster.

    A frame's density is one over its mean distance to its 20 nearest frames of the same condition
    and cluster, ranked within the cluster, so that no cluster has all the high places.

    Args:
        groups: Condition of each frame; clusters never reach across conditions.
        clusters: In all; each condition gets its share of them, by its number of frames.
    """
    numbers = cluster_within(pool.vectors, groups, clusters, seed)
    density = np.zeros(len(numbers))
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number)
        unit = directions(pool.vectors[rows])
        known = unit if len(unit) <= _SAMPLE else unit[:: -(-len(unit) // _SAMPLE)]
        density[rows] = -nearest_distance(unit, known, NEIGHBOURS)
    return rank_within(density, [str(number) for number in numbers.tolist()])


def cluster_within(
    vectors: NDArray[np.floating], groups: Sequence[str], clusters: int, seed: int = 0
) -> NDArray[np.int64]:
    """Int64 ``[n]``: a cluster's number for each frame, k-means within each condition.

    The same seed gives the same clusters; a condition of few or equal frames gets no more clusters
    than it has different ones.
    """
    import faiss

    names = np.asarray(groups)
    numbers = np.zeros(len(names), np.int64)
    first = 0
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        unit = directions(vectors[rows])
        wanted = max(1, round(clusters * len(rows) / len(names)))
        wanted = min(wanted, len(np.unique(unit.round(4), axis=0)))
        if wanted > 1:
            means = faiss.Kmeans(
                unit.shape[1], wanted, niter=15, seed=seed + 1, min_points_per_centroid=1
            )
            means.train(unit)
            numbers[rows] = first + means.index.search(unit, 1)[1][:, 0]
        else:
            numbers[rows] = first
        first += wanted
    return numbers
