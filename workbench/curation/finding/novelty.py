"""Novelty: objects unlike any labelled one, and unlike what other drives of the pool show.

Vectors are whitened by the spread of labelled objects, so that directions in which ordinary objects
differ (how bright, how far) count little, and compared by angle with objects of any class: what a
detector never learned gets any class it knows. What is new but common in the pool is not rare, so
a sample of the pool's own objects is compared with too, those of other drives only: frames of one
drive are near-duplicates.

Doubt is what one sees in a detector's scores alone: a large, whole box with a low score. Far and
cut-off things have low scores everywhere; near and whole ones do where the detector meets something
that it has not learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.finding.places import whitening
from workbench.curation.neighbours import nearest_distance
from workbench.perception.boxes import area

Peaks = tuple[NDArray[np.float64], NDArray[np.int64]]

SMALLEST_PX = 20.0
"""Square root of the area from which an object has enough pixels to be told from another."""
EXPECTED = 0.7
"""Score that a large and whole object of a learned class has as a rule."""
_LEAST = 0.1
_EDGE_PX = 3.0
_REFERENCE = 20_000
_POWER = 4
_SHRINK = 0.5


def novelty(
    pool: Embeddings,
    labelled: Embeddings | None,
    drives: Sequence[str] | None = None,
    neighbours: int = 3,
    seed: int = 0,
) -> Peaks:
    """How new each frame's objects are, summed, and the row of the newest (-1 for none).

    An object's distance is one minus the mean cosine to its nearest labelled objects, or to the
    nearest objects of other drives where those are nearer. Its fourth power is summed over the
    frame's whole boxes of 20 px and more: one very new object counts more than many that are
    a little so.

    Args:
        drives: Drive of each frame of the pool; without them the pool is compared with what is
            labelled only.
        seed: Of the samples of 20,000 objects at most that are compared with.
    """
    value, newest = np.zeros(len(pool.frames)), np.full(len(pool.frames), -1, np.int64)
    mine = np.flatnonzero(whole(pool) & (_sides(pool) > SMALLEST_PX))
    source = labelled if labelled is not None and len(labelled.scores) else None
    if not len(mine) or (source is None and drives is None):
        return value, newest
    rng = np.random.default_rng(seed)
    shape = source or pool
    mean, scale = whitening(shape.object_vectors, _SHRINK)
    distance = np.full(len(mine), 2.0, np.float32)
    vectors = _unit(pool.object_vectors[mine], mean, scale)
    if source is not None:
        rows = _sample(rng, np.arange(len(source.scores)))
        known = _unit(source.object_vectors[rows], mean, scale)
        distance = nearest_distance(vectors, known, neighbours)
    if drives is not None:
        others = _others(pool, mine, vectors, np.asarray(drives), (mean, scale), neighbours, rng)
        distance = np.minimum(distance, others)
    owner = pool.owner[mine]
    np.add.at(value, owner, distance.astype(float) ** _POWER)
    order = np.lexsort((-np.arange(len(distance)), distance))
    newest[owner[order]] = mine[order]  # the last one written is the newest of its frame
    return value, newest


def doubt(pool: Embeddings) -> NDArray[np.float64]:
    """Float64 ``[n]``: largest ``(0.7 - score) * sqrt(side)`` of a frame's whole boxes.

    Boxes below 0.1 are left out: they are noise.
    """
    short = np.clip(EXPECTED - pool.scores.astype(float), 0.0, None)
    values = short * np.sqrt(_sides(pool)) * (pool.scores > _LEAST) * whole(pool)
    largest = np.zeros(len(pool.frames))
    np.maximum.at(largest, pool.owner, values)
    return largest


def whole(pool: Embeddings) -> NDArray[np.bool_]:
    """Bool ``[m]``: objects that the frame's left, right or lower edge does not cut off."""
    if len(pool.tiles.sizes) != len(pool.frames):
        return np.ones(len(pool.scores), bool)
    width, height = np.asarray(pool.tiles.sizes, np.float32)[pool.owner].T
    x1, _, x2, y2 = pool.boxes.T
    inside: NDArray[np.bool_] = (
        (x1 >= _EDGE_PX) & (x2 <= width - _EDGE_PX) & (y2 <= height - _EDGE_PX)
    )
    return inside


def _others(
    pool: Embeddings,
    mine: NDArray[np.int64],
    vectors: NDArray[np.float32],
    drives: NDArray[np.str_],
    whitened: tuple[NDArray[np.float32], NDArray[np.float32]],
    neighbours: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Distance of each object to the nearest of a sample of other drives' objects."""
    rows = _sample(rng, mine)
    reference = _unit(pool.object_vectors[rows], *whitened)
    of_reference, of_mine = drives[pool.owner[rows]], drives[pool.owner[mine]]
    distance = np.full(len(mine), 2.0, np.float32)
    for drive in np.unique(of_mine):
        own = np.flatnonzero(of_mine == drive)
        distance[own] = nearest_distance(vectors[own], reference[of_reference != drive], neighbours)
    return distance


def _sides(pool: Embeddings) -> NDArray[np.float64]:
    sides: NDArray[np.float64] = np.sqrt(area(pool.boxes)).astype(np.float64)
    return sides


def _sample(rng: np.random.Generator, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(rows) <= _REFERENCE:
        return rows
    return np.sort(rng.choice(rows, _REFERENCE, replace=False))


def _unit(
    vectors: NDArray[np.floating], mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    values = (np.asarray(vectors, np.float32) - mean) @ scale
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > 1e-6
    )
    return unit
