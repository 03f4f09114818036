"""Signals: each looks at a pool in one way and gives a number a frame, larger for what is rarer.

Nothing is compared across a whole pool: light and weather move a vector more than any object does,
so a pool's outliers are its nights. How signals become one score:
`workbench.curation.finding.rarity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.finding.distance import nearest_length
from workbench.curation.finding.ranks import rank_within
from workbench.curation.neighbours import directions, nearest_distance

SIZES = (("small", 24.0), ("medium", 72.0), ("large", float("inf")))
"""Object sizes by the square root of the box's area in pixels: up to and without the limit."""

UNSURE = (0.2, 0.6)
"""Scores that are neither here nor there."""

_FEWEST_KNOWN = 30
"""With fewer labelled ones of its condition, a thing is compared with those of any condition."""

Peaks = tuple[NDArray[np.float64], NDArray[np.int64]]
"""A value of each frame, and the row of the object or tile that it comes from, -1 for none."""


def size_of(boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number into `SIZES` of each box ``[m, 4]`` xyxy pixels."""
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))
    limits = np.array([limit for _, limit in SIZES[:-1]])
    number: NDArray[np.int64] = np.searchsorted(limits, sides, side="right").astype(np.int64)
    return number


def unsure(pool: Embeddings) -> NDArray[np.int64]:
    """Int64 ``[n]``: boxes of a frame with a score that is neither here nor there."""
    low, high = UNSURE
    rows = pool.owner[(pool.scores >= low) & (pool.scores <= high)]
    return np.bincount(rows, minlength=len(pool.frames))


def frame_distance(
    pool: Embeddings,
    labelled: Embeddings | None,
    groups: Sequence[str],
    known_groups: Sequence[str],
    neighbours: int = 3,
) -> NDArray[np.float32]:
    """Float32 ``[n]``: mean distance of a frame to the nearest labelled ones of its condition."""
    distance = np.zeros(len(pool.frames), np.float32)
    if labelled is None:
        return distance
    centre = np.asarray(pool.vectors, np.float32).mean(0)
    mine, others = directions(pool.vectors, centre), directions(labelled.vectors, centre)
    for rows, known in _alike(np.asarray(groups), np.asarray(known_groups)):
        distance[rows] = nearest_distance(mine[rows], others[known], neighbours)
    return distance


def odd_objects(
    pool: Embeddings,
    labelled: Embeddings | None,
    groups: Sequence[str],
    known_groups: Sequence[str],
    neighbours: int = 3,
) -> Peaks:
    """The rank of each frame's oddest object among those of its condition, class and size.

    An object's oddness is its mean distance to the nearest labelled objects of the same kind. A box
    that is hardly believed may be nothing at all, so its rank counts by the root of its score.
    """
    if labelled is None or not len(pool.scores) or not len(labelled.scores):
        return _nothing(len(pool.frames))
    kinds = pool.classes * len(SIZES) + size_of(pool.boxes)
    known_kinds = labelled.classes * len(SIZES) + size_of(labelled.boxes)
    light, known_light = np.asarray(groups)[pool.owner], np.asarray(known_groups)[labelled.owner]
    distance = np.zeros(len(pool.scores), np.float32)
    for kind in np.unique(kinds):
        mine, known = np.flatnonzero(kinds == kind), np.flatnonzero(known_kinds == kind)
        if not len(known):  # none of its kind is labelled: how far is it from anything?
            known = np.arange(len(known_kinds))
        for rows, others in _alike(light[mine], known_light[known]):
            distance[mine[rows]] = nearest_length(
                pool.object_vectors[mine[rows]], labelled.object_vectors[known[others]], neighbours
            )
    within = [f"{kind} {name}" for kind, name in zip(kinds.tolist(), light.tolist(), strict=True)]
    ranks = rank_within(distance, within) * np.sqrt(pool.scores)
    return _peaks(ranks, pool.owner, len(pool.frames))


def odd_tiles(
    pool: Embeddings,
    labelled: Embeddings | None,
    groups: Sequence[str],
    known_groups: Sequence[str],
    neighbours: int = 3,
) -> Peaks:
    """How far each frame's oddest tile lies from labelled tiles at the same place of the picture.

    A tile needs no box, so this sees what the detector does not. Its distance is divided by the
    median of its place and condition: the side of the road is always more varied than its middle.
    The frame's value is its largest ratio.
    """
    count = pool.tiles.per_frame
    if labelled is None or not count or labelled.tiles.grid != pool.tiles.grid:
        return _nothing(len(pool.frames))
    width = pool.tiles.vectors.shape[1]
    mine = pool.tiles.vectors.reshape(len(pool.frames), count, width)
    known = labelled.tiles.vectors.reshape(len(labelled.frames), count, width)
    ratio = np.zeros((len(pool.frames), count))
    for rows, others in _alike(np.asarray(groups), np.asarray(known_groups)):
        for place in range(count):
            distance = nearest_length(mine[rows, place], known[others, place], neighbours)
            ratio[rows, place] = distance / max(float(np.median(distance)), 1e-6)
    place = ratio.argmax(axis=1)
    rows = np.arange(len(pool.frames))
    return ratio[rows, place], rows * count + place


def _alike(
    groups: NDArray[np.str_], known: NDArray[np.str_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of each condition with the labelled rows to compare them with."""
    for name in np.unique(groups):
        same = np.flatnonzero(known == name)
        yield (
            np.flatnonzero(groups == name),
            (same if len(same) >= _FEWEST_KNOWN else np.arange(len(known))),
        )


def _nothing(frames: int) -> Peaks:
    return np.zeros(frames), np.full(frames, -1, np.int64)


def _peaks(values: NDArray[np.float64], owner: NDArray[np.int64], frames: int) -> Peaks:
    """The largest value of each frame's rows, the first of them among equals."""
    peak, row = _nothing(frames)
    order = np.lexsort((-np.arange(len(values)), values))  # ascending; ties: the first row last
    row[owner[order]] = order
    found = row >= 0
    peak[found] = values[row[found]]
    row[found & (peak <= 0)] = -1
    return peak, row
