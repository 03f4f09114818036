"""Signals of one model's embeddings: one number a frame, larger for what is rarer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.neighbours import nearest_distance
from workbench.curation.signals.similarity import whitening
from workbench.curation.vectors import unit_vectors
from workbench.detection.boxes import box_area

Fusion = Literal["mean", "tail", "reciprocal"]

MIN_GROUP_SIZE = 20
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


def merge_small_groups(conditions: Sequence[str]) -> list[str]:
    """Conditions as groups: those too small to rank within are compared with each other."""
    counts: dict[str, int] = {}
    for condition in conditions:
        counts[condition] = counts.get(condition, 0) + 1
    rest = "other" if max(counts.values(), default=0) >= MIN_GROUP_SIZE else "all"
    return [c if counts[c] >= MIN_GROUP_SIZE else rest for c in conditions]


def fuse_ranks(
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


# ---- How far things lie from labelled ones, in lengths rather than in angles.
#
# An angle about the mean says nothing where all are close to the mean: there every direction is as
# far as any other. A thing that is odd lies far out, and only a length tells.


_QUERY_BLOCK = 2048
_KNOWN_BLOCK = 32_768


def nearest_euclidean(
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
    for start in range(0, len(mine), _QUERY_BLOCK):
        block = mine[start : start + _QUERY_BLOCK]
        best = np.full((len(block), count), np.inf, np.float32)
        for first in range(0, len(others), _KNOWN_BLOCK):
            part = slice(first, first + _KNOWN_BLOCK)
            both = np.concatenate([best, squares[part] - 2 * block @ others[part].T], axis=1)
            best = np.partition(both, count - 1, axis=1)[:, :count]
        lengths = np.sqrt(np.clip(best + (block**2).sum(1, keepdims=True), 0, None))
        result[start : start + _QUERY_BLOCK] = lengths.mean(axis=1)
    return result


# ---- Signals: each looks at a pool in one way and gives a number a frame, larger for what is rarer.
#
# Nothing is compared across a whole pool: light and weather move a vector more than any object does,
# so a pool's outliers are its nights. How signals become one score:
# `workbench.curation.signals.rarity`.


OBJECT_SIZES = (("small", 24.0), ("medium", 72.0), ("large", float("inf")))
"""Object sizes by the square root of the box's area in pixels: up to and without the limit."""

UNCERTAIN_SCORES = (0.2, 0.6)
"""Scores that are neither here nor there."""

_MIN_LABELLED = 30
"""With fewer labelled ones of its condition, a thing is compared with those of any condition."""

Peaks = tuple[NDArray[np.float64], NDArray[np.int64]]
"""A value of each frame, and the row of the object or tile that it comes from, -1 for none."""


def object_size(boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number into `SIZES` of each box ``[m, 4]`` xyxy pixels."""
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))
    limits = np.array([limit for _, limit in OBJECT_SIZES[:-1]])
    number: NDArray[np.int64] = np.searchsorted(limits, sides, side="right").astype(np.int64)
    return number


def count_uncertain(pool: Embeddings) -> NDArray[np.int64]:
    """Int64 ``[n]``: boxes of a frame with a score that is neither here nor there."""
    low, high = UNCERTAIN_SCORES
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
    mine, others = unit_vectors(pool.vectors, centre), unit_vectors(labelled.vectors, centre)
    for rows, known in _rows_by_condition(np.asarray(groups), np.asarray(known_groups)):
        distance[rows] = nearest_distance(mine[rows], others[known], neighbours)
    return distance


def object_outliers(
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
        return _no_peaks(len(pool.frames))
    kinds = pool.classes * len(OBJECT_SIZES) + object_size(pool.boxes)
    known_kinds = labelled.classes * len(OBJECT_SIZES) + object_size(labelled.boxes)
    light, known_light = np.asarray(groups)[pool.owner], np.asarray(known_groups)[labelled.owner]
    distance = np.zeros(len(pool.scores), np.float32)
    for kind in np.unique(kinds):
        mine, known = np.flatnonzero(kinds == kind), np.flatnonzero(known_kinds == kind)
        if not len(known):  # none of its kind is labelled: how far is it from anything?
            known = np.arange(len(known_kinds))
        for rows, others in _rows_by_condition(light[mine], known_light[known]):
            distance[mine[rows]] = nearest_euclidean(
                pool.object_vectors[mine[rows]], labelled.object_vectors[known[others]], neighbours
            )
    within = [f"{kind} {name}" for kind, name in zip(kinds.tolist(), light.tolist(), strict=True)]
    ranks = rank_within(distance, within) * np.sqrt(pool.scores)
    return _peaks(ranks, pool.owner, len(pool.frames))


def tile_outliers(
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
        return _no_peaks(len(pool.frames))
    width = pool.tiles.vectors.shape[1]
    mine = pool.tiles.vectors.reshape(len(pool.frames), count, width)
    known = labelled.tiles.vectors.reshape(len(labelled.frames), count, width)
    ratio = np.zeros((len(pool.frames), count))
    for rows, others in _rows_by_condition(np.asarray(groups), np.asarray(known_groups)):
        for place in range(count):
            distance = nearest_euclidean(mine[rows, place], known[others, place], neighbours)
            ratio[rows, place] = distance / max(float(np.median(distance)), 1e-6)
    place = ratio.argmax(axis=1)
    rows = np.arange(len(pool.frames))
    return ratio[rows, place], rows * count + place


def _rows_by_condition(
    groups: NDArray[np.str_], known: NDArray[np.str_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of each condition with the labelled rows to compare them with."""
    for name in np.unique(groups):
        same = np.flatnonzero(known == name)
        yield (
            np.flatnonzero(groups == name),
            (same if len(same) >= _MIN_LABELLED else np.arange(len(known))),
        )


def _no_peaks(frames: int) -> Peaks:
    return np.zeros(frames), np.full(frames, -1, np.int64)


def _peaks(values: NDArray[np.float64], owner: NDArray[np.int64], frames: int) -> Peaks:
    """The largest value of each frame's rows, the first of them among equals."""
    peak, row = _no_peaks(frames)
    order = np.lexsort((-np.arange(len(values)), values))  # ascending; ties: the first row last
    row[owner[order]] = order
    found = row >= 0
    peak[found] = values[row[found]]
    row[found & (peak <= 0)] = -1
    return peak, row


# ---- Novelty: objects unlike any labelled one, and unlike what other drives of the pool show.
#
# Vectors are whitened by the spread of labelled objects, so that directions in which ordinary objects
# differ (how bright, how far) count little, and compared by angle with objects of any class: what a
# detector never learned gets any class it knows. What is new but common in the pool is not rare, so
# a sample of the pool's own objects is compared with too, those of other drives only: frames of one
# drive are near-duplicates.
#
# Doubt is what one sees in a detector's scores alone: a large, whole box with a low score. Far and
# cut-off things have low scores everywhere; near and whole ones do where the detector meets something
# that it has not learned.


MIN_OBJECT_PX = 20.0
"""Square root of the area from which an object has enough pixels to be told from another."""
EXPECTED_SCORE = 0.7
"""Score that a large and whole object of a learned class has as a rule."""
_MIN_SCORE = 0.1
_EDGE_PX = 3.0
_MAX_REFERENCE_OBJECTS = 20_000
_NOVELTY_POWER = 4
_WHITENING_SHRINK = 0.5


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
    mine = np.flatnonzero(_uncropped(pool) & (_box_sides(pool) > MIN_OBJECT_PX))
    source = labelled if labelled is not None and len(labelled.scores) else None
    if not len(mine) or (source is None and drives is None):
        return value, newest
    rng = np.random.default_rng(seed)
    shape = source or pool
    mean, scale = whitening(shape.object_vectors, _WHITENING_SHRINK)
    distance = np.full(len(mine), 2.0, np.float32)
    vectors = _whitened_units(pool.object_vectors[mine], mean, scale)
    if source is not None:
        rows = _sample_rows(rng, np.arange(len(source.scores)))
        known = _whitened_units(source.object_vectors[rows], mean, scale)
        distance = nearest_distance(vectors, known, neighbours)
    if drives is not None:
        others = _distance_to_other_drives(
            pool, mine, vectors, np.asarray(drives), (mean, scale), neighbours, rng
        )
        distance = np.minimum(distance, others)
    owner = pool.owner[mine]
    np.add.at(value, owner, distance.astype(float) ** _NOVELTY_POWER)
    order = np.lexsort((-np.arange(len(distance)), distance))
    newest[owner[order]] = mine[order]  # the last one written is the newest of its frame
    return value, newest


def doubt(pool: Embeddings) -> NDArray[np.float64]:
    """Float64 ``[n]``: largest ``(0.7 - score) * sqrt(side)`` of a frame's whole boxes.

    Boxes below 0.1 are left out: they are noise.
    """
    short = np.clip(EXPECTED_SCORE - pool.scores.astype(float), 0.0, None)
    values = short * np.sqrt(_box_sides(pool)) * (pool.scores > _MIN_SCORE) * _uncropped(pool)
    largest = np.zeros(len(pool.frames))
    np.maximum.at(largest, pool.owner, values)
    return largest


def _uncropped(pool: Embeddings) -> NDArray[np.bool_]:
    """Bool ``[m]``: objects that the frame's left, right or lower edge does not cut off."""
    if len(pool.tiles.sizes) != len(pool.frames):
        return np.ones(len(pool.scores), bool)
    width, height = np.asarray(pool.tiles.sizes, np.float32)[pool.owner].T
    x1, _, x2, y2 = pool.boxes.T
    inside: NDArray[np.bool_] = (
        (x1 >= _EDGE_PX) & (x2 <= width - _EDGE_PX) & (y2 <= height - _EDGE_PX)
    )
    return inside


def _distance_to_other_drives(
    pool: Embeddings,
    mine: NDArray[np.int64],
    vectors: NDArray[np.float32],
    drives: NDArray[np.str_],
    whitened: tuple[NDArray[np.float32], NDArray[np.float32]],
    neighbours: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Distance of each object to the nearest of a sample of other drives' objects."""
    rows = _sample_rows(rng, mine)
    reference = _whitened_units(pool.object_vectors[rows], *whitened)
    of_reference, of_mine = drives[pool.owner[rows]], drives[pool.owner[mine]]
    distance = np.full(len(mine), 2.0, np.float32)
    for drive in np.unique(of_mine):
        own = np.flatnonzero(of_mine == drive)
        distance[own] = nearest_distance(vectors[own], reference[of_reference != drive], neighbours)
    return distance


def _box_sides(pool: Embeddings) -> NDArray[np.float64]:
    sides: NDArray[np.float64] = np.sqrt(box_area(pool.boxes)).astype(np.float64)
    return sides


def _sample_rows(rng: np.random.Generator, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(rows) <= _MAX_REFERENCE_OBJECTS:
        return rows
    return np.sort(rng.choice(rows, _MAX_REFERENCE_OBJECTS, replace=False))


def _whitened_units(
    vectors: NDArray[np.floating], mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    values = (np.asarray(vectors, np.float32) - mean) @ scale
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > 1e-6
    )
    return unit


# ---- Typicality: what to label first, while almost nothing is labelled.
#
# With no labels, rare is only strange, and a model learns little from strange frames alone (Hacohen,
# Dekel and Weinshall 2022, "Active learning on a budget: opposite strategies suit high and low
# budgets"). So the pool is cut into clusters, those without labels come first, and in each the frame
# in the densest place comes first.


_DENSITY_NEIGHBOURS = 20
_DENSITY_SAMPLE = 20_000


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
        unit = unit_vectors(pool.vectors[rows])
        known = unit if len(unit) <= _DENSITY_SAMPLE else unit[:: -(-len(unit) // _DENSITY_SAMPLE)]
        density[rows] = -nearest_distance(unit, known, _DENSITY_NEIGHBOURS)
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
        unit = unit_vectors(vectors[rows])
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
