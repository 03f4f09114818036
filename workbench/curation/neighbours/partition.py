"""Cutting a space into cells, cheaply enough for a million vectors: k-means in two levels.

Plain k-means into c cells compares every sample with c centres, in every round; cells that grow in
number with the vectors then make training quadratic. Here sqrt(c) cells are found first, and each
is cut again by itself, as in a vocabulary tree (Nistér and Stewénius, 2006).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def centres(sample: NDArray[np.float32], count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """About ``count`` cell centres for a sample ``[s, d]`` of unit vectors, float32 ``[c, d]``.

    One thread: the same sample and seed give the same centres on any number of cores.
    """
    with one_thread():
        top = _means(sample, max(1, round(count**0.5)), seed)
        owner = _nearest(sample, top)
        parts = []
        for number in range(len(top)):
            mine = sample[owner == number]
            share = max(1, round(count * len(mine) / len(sample)))
            parts.append(_means(mine, share, seed) if len(mine) > share else mine)
    found: NDArray[np.float32] = np.concatenate(parts)
    return found


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """faiss on one thread: what several build together depends on who comes first."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _means(sample: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    import faiss

    found = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=_ROUNDS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=256,
    )
    found.train(sample)
    means = found.centroids
    return np.asarray(means, np.float32)


def _nearest(sample: NDArray[np.float32], means: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest centre of each row; on unit vectors ``|m|^2 / 2 - x m`` orders as distance."""
    half = (means * means).sum(1) / 2
    owner = np.empty(len(sample), np.int64)
    for start in range(0, len(sample), 16_384):
        part = slice(start, start + 16_384)
        owner[part] = np.argmin(half - sample[part] @ means.T, axis=1)
    return owner
