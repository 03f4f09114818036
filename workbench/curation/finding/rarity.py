"""Rarity: which frames of a pool are unlike what is labelled, compared only with their like.

Density over a whole pool finds nothing: it ranks night above day and rain above sun, because the
condition moves a vector more than any object does. What helps is ranking within condition, and
objects within class and size. Three signals, each turned into a rank in [0, 1] and then averaged:

    entropy   how unsure the detector is, summed over its boxes
    objects   how far the frame's oddest object lies from the labelled ones of its class and size
    frame     how far the whole frame lies from the labelled frames
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.neighbours.exact import directions, nearest_distance

SIGNALS = ("entropy", "objects", "frame")

SIZES = (("small", 24.0), ("medium", 72.0), ("large", float("inf")))
"""Object sizes by the square root of the box's area in pixels: up to and without the limit."""

_SMALLEST_GROUP = 20
_UNSURE = (0.2, 0.6)


@dataclass(frozen=True)
class Scores:
    """Scores of ``n`` frames, in the order of the embeddings; ranks in [0, 1], 1 is rarest.

    Attributes:
        fused: Float64 ``[n]``: the mean of the signals' ranks, ranked again in its condition.
        ranks: Float64 ``[n, 3]``, columns as in `SIGNALS`.
        condition: The group that a frame was compared with.
        oddest: Index into the embeddings' objects, -1 where a frame has none.
        unsure: Int64 ``[n]``: boxes with a score that is neither here nor there.
    """

    fused: NDArray[np.float64]
    ranks: NDArray[np.float64]
    condition: tuple[str, ...]
    oddest: NDArray[np.int64]
    unsure: NDArray[np.int64]


def score(
    pool: Embeddings, labelled: Embeddings | None, conditions: Sequence[str], *, neighbours: int = 3
) -> Scores:
    """Rank a pool's frames by how much labeling them should teach.

    Args:
        pool: The candidates.
        labelled: What is labelled already; None or empty makes everything equally far from it.
        conditions: Light, weather and so on of each frame, such as ``night, rain``. Groups of
            fewer than 20 frames are compared together.
    """
    groups = merged(conditions)
    oddness, oddest = _oddest_objects(pool, labelled, neighbours)
    signals = (pool.entropy, oddness, _frame_distance(pool, labelled, neighbours))
    ranks = np.stack([rank_within(signal, groups) for signal in signals], axis=1)
    low, high = _UNSURE
    unsure = pool.owner[(pool.scores >= low) & (pool.scores <= high)]
    return Scores(
        fused=rank_within(ranks.mean(axis=1), groups),
        ranks=ranks,
        condition=tuple(groups),
        oddest=oddest,
        unsure=np.bincount(unsure, minlength=len(pool.frames)),
    )


def rank_within(values: NDArray[np.floating], groups: Sequence[str]) -> NDArray[np.float64]:
    """Mid-rank of each value in its group, scaled into (0, 1); ties share one rank."""
    names = np.asarray(groups)
    ranks = np.empty(len(values))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        _, inverse, counts = np.unique(values[rows], return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks[rows] = (ends - counts / 2)[inverse] / len(rows)
    return ranks


def merged(conditions: Sequence[str]) -> list[str]:
    """Conditions as groups: those too small to rank within are compared with each other."""
    counts: dict[str, int] = {}
    for condition in conditions:
        counts[condition] = counts.get(condition, 0) + 1
    rest = "other" if max(counts.values(), default=0) >= _SMALLEST_GROUP else "all"
    return [c if counts[c] >= _SMALLEST_GROUP else rest for c in conditions]


def size_of(boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number into `SIZES` of each box ``[m, 4]`` xyxy pixels."""
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))
    limits = np.array([limit for _, limit in SIZES[:-1]])
    number: NDArray[np.int64] = np.searchsorted(limits, sides, side="right").astype(np.int64)
    return number


def _frame_distance(
    pool: Embeddings, labelled: Embeddings | None, neighbours: int
) -> NDArray[np.float32]:
    if labelled is None:
        return np.zeros(len(pool.frames), np.float32)
    centre = np.asarray(pool.vectors, np.float32).mean(0)
    return nearest_distance(
        directions(pool.vectors, centre), directions(labelled.vectors, centre), neighbours
    )


def _oddest_objects(
    pool: Embeddings, labelled: Embeddings | None, neighbours: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The rank of each frame's oddest object, 0 without any, and which object it is."""
    oddness = np.zeros(len(pool.frames))
    oddest = np.full(len(pool.frames), -1, np.int64)
    if labelled is None or not len(pool.scores):
        return oddness, oddest
    distance = np.zeros(len(pool.scores), np.float32)
    kinds = pool.classes * len(SIZES) + size_of(pool.boxes)
    known_kinds = labelled.classes * len(SIZES) + size_of(labelled.boxes)
    for kind in np.unique(kinds):
        mine, known = kinds == kind, known_kinds == kind
        centre = np.asarray(pool.object_vectors[mine], np.float32).mean(0)
        distance[mine] = nearest_distance(
            directions(pool.object_vectors[mine], centre),
            directions(labelled.object_vectors[known], centre),
            neighbours,
        )
    # A box that is hardly believed may be nothing at all, so its oddness counts by its score.
    ranks = rank_within(distance, [str(kind) for kind in kinds]) * np.sqrt(pool.scores)
    for row, (frame, rank) in enumerate(zip(pool.owner.tolist(), ranks.tolist(), strict=True)):
        if rank > oddness[frame]:
            oddness[frame], oddest[frame] = rank, row
    return oddness, oddest
