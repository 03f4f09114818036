"""Signals of one model's embeddings: one number per frame, larger for what is rarer.

Nothing is compared across a whole pool: light and weather move a vector more than any object does,
so the outliers of a pool would be its night frames. `workbench.curation.signals.rarity` combines
signals into one score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.neighbours import distance_to_others, nearest_distance
from workbench.curation.signals.similarity import whitening
from workbench.curation.vectors import unit_vectors
from workbench.detection.boxes import box_area

__all__ = ()

_MIN_GROUP_SIZE = 20
"""Smaller groups are ranked together: first of five says little."""

_QUERY_BLOCK = 2048
_KNOWN_BLOCK = 32_768
OBJECT_SIZES = (("small", 24.0), ("medium", 72.0), ("large", float("inf")))
"""Object sizes by the square root of the box's area, pixels, up to the limit (exclusive)."""

_UNCERTAIN_SCORES = (0.2, 0.6)
"""Range of scores in which the detector is uncertain."""

_MIN_LABELLED = 30
"""With fewer labelled ones of its condition, a frame or object is compared with all."""

_FramePeaks = tuple[NDArray[np.float64], NDArray[np.int64]]
"""A value per frame, and the row of the object or tile it comes from, -1 for none."""

_MIN_OBJECT_PX = 20.0
"""Square root of the area from which an object has enough pixels to be told apart."""

_EXPECTED_SCORE = 0.7
"""Typical score of a large, uncropped object of a learned class."""

_MIN_SCORE = 0.1
_EDGE_PX = 3.0
_MAX_REFERENCE_OBJECTS = 20_000
_NOVELTY_POWER = 4
_WHITENING_SHRINK = 0.5
_DENSITY_NEIGHBOURS = 20
_DENSITY_SAMPLE = 20_000


def rank_within(values: NDArray[np.floating], groups: Sequence[str]) -> NDArray[np.float64]:
    """Mid-rank of each value within its group, scaled to (0, 1); ties share a rank.

    Args:
        values: ``[n]``.
        groups: Group of each value.

    Returns:
        Float64 ``[n]``.
    """
    ranks = np.empty(len(values))
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    for number in range(int(numbers.max(initial=-1)) + 1):
        rows = np.flatnonzero(numbers == number)
        _, inverse, counts = np.unique(values[rows], return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks[rows] = (ends - counts / 2)[inverse] / len(rows)
    return ranks


def merge_small_groups(conditions: Sequence[str]) -> list[str]:
    """Replace conditions of fewer than `_MIN_GROUP_SIZE` frames by one common group."""
    counts: dict[str, int] = {}
    for condition in conditions:
        counts[condition] = counts.get(condition, 0) + 1
    merged = "other" if max(counts.values(), default=0) >= _MIN_GROUP_SIZE else "all"
    return [c if counts[c] >= _MIN_GROUP_SIZE else merged for c in conditions]


def fuse_ranks(ranks: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Combine ranks of several signals into one value per row; larger is rarer.

    The weighted sum of ``-log(1 - rank)``, Fisher's combination of p-values: the top thousandth in
    one signal counts more than above average in all.

    Args:
        ranks: Float64 ``[n, s]`` in (0, 1).
        weights: One per signal, not negative, at least one positive.

    Returns:
        Float64 ``[n]``.

    Raises:
        ParameterError: The weights do not fit.
    """
    shares = np.asarray(weights, np.float64)
    if shares.shape != ranks.shape[1:] or not (shares >= 0).all() or not shares.sum() > 0:
        raise ParameterError(
            f"invalid weights {list(weights)} for {ranks.shape[1]} signals",
            where="weights",
            hint="Give one number per signal, none negative, at least one positive",
        )
    fused: NDArray[np.float64] = -np.log1p(-np.clip(ranks, 0.0, 1.0 - 1e-9)) @ (
        shares / shares.sum()
    )
    return fused


def nearest_euclidean(
    queries: NDArray[np.floating], known: NDArray[np.floating], neighbours: int = 3
) -> NDArray[np.float32]:
    """Mean Euclidean distance of each query to its nearest ``neighbours`` of ``known``.

    Unlike an angle about the mean, a length also tells outliers apart where most vectors are close
    to the mean.

    Args:
        queries: Float ``[n, d]``.
        known: Float ``[m, d]``, at least one row.
        neighbours: Number of neighbours to average.

    Returns:
        Float32 ``[n]``.

    Raises:
        DataError: Vectors contain NaN or infinity, or differ in width.
    """
    centred, references = np.asarray(queries, np.float32), np.asarray(known, np.float32)
    if centred.shape[1:] != references.shape[1:]:
        raise DataError(
            f"cannot compare vectors of width {centred.shape[1]} and {references.shape[1]}",
            hint="Embed both with the same model",
        )
    for name, values in (("", centred), ("labelled ", references)):
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(values)} {name}vectors contain NaN or infinity",
                hint="Embed them again",
            )
    centre = references.mean(0)
    # Squares of short vectors lose fewer digits.
    centred, references = centred - centre, references - centre
    count = min(neighbours, len(references))
    squares = (references**2).sum(1)
    result = np.empty(len(centred), np.float32)
    for start in range(0, len(centred), _QUERY_BLOCK):
        block = centred[start : start + _QUERY_BLOCK]
        best = np.full((len(block), count), np.inf, np.float32)
        for first in range(0, len(references), _KNOWN_BLOCK):
            part = slice(first, first + _KNOWN_BLOCK)
            both = np.concatenate([best, squares[part] - 2 * block @ references[part].T], axis=1)
            best = np.partition(both, count - 1, axis=1)[:, :count]
        lengths = np.sqrt(np.clip(best + (block**2).sum(1, keepdims=True), 0, None))
        result[start : start + _QUERY_BLOCK] = lengths.mean(axis=1)
    return result


def object_size(boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index into `OBJECT_SIZES` of each box ``[m, 4]`` xyxy, pixels."""
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))
    limits = np.array([limit for _, limit in OBJECT_SIZES[:-1]])
    number: NDArray[np.int64] = np.searchsorted(limits, sides, side="right").astype(np.int64)
    return number


def count_uncertain(pool: Embeddings) -> NDArray[np.int64]:
    """Int64 ``[n]``: boxes per frame with a score in `_UNCERTAIN_SCORES`."""
    low, high = _UNCERTAIN_SCORES
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
    units, known_units = unit_vectors(pool.vectors, centre), unit_vectors(labelled.vectors, centre)
    for rows, known_rows in _rows_by_condition(np.asarray(groups), np.asarray(known_groups)):
        distance[rows] = nearest_distance(units[rows], known_units[known_rows], neighbours)
    return distance


def object_outliers(
    pool: Embeddings,
    labelled: Embeddings | None,
    groups: Sequence[str],
    known_groups: Sequence[str],
    neighbours: int = 3,
) -> _FramePeaks:
    """Rank of each frame's oddest object among those of its condition, class and size.

    An object's distance is the mean to the nearest labelled objects of the same kind. A box with a
    low score may be nothing, so its rank is weighted by the root of its score.
    """
    if labelled is None or not len(pool.scores) or not len(labelled.scores):
        return _no_peaks(len(pool.frames))
    kinds = pool.classes * len(OBJECT_SIZES) + object_size(pool.boxes)
    known_kinds = labelled.classes * len(OBJECT_SIZES) + object_size(labelled.boxes)
    condition, known_condition = (
        np.asarray(groups)[pool.owner],
        np.asarray(known_groups)[labelled.owner],
    )
    distance = np.zeros(len(pool.scores), np.float32)
    for kind in np.unique(kinds):
        own, reference = np.flatnonzero(kinds == kind), np.flatnonzero(known_kinds == kind)
        if not len(reference):  # none of its kind is labelled: compare with all
            reference = np.arange(len(known_kinds))
        for rows, others in _rows_by_condition(condition[own], known_condition[reference]):
            distance[own[rows]] = nearest_euclidean(
                pool.object_vectors[own[rows]],
                labelled.object_vectors[reference[others]],
                neighbours,
            )
    rank_groups = [
        f"{kind} {name}" for kind, name in zip(kinds.tolist(), condition.tolist(), strict=True)
    ]
    ranks = rank_within(distance, rank_groups) * np.sqrt(pool.scores)
    return _peaks(ranks, pool.owner, len(pool.frames))


def tile_outliers(
    pool: Embeddings,
    labelled: Embeddings | None,
    groups: Sequence[str],
    known_groups: Sequence[str],
    neighbours: int = 3,
) -> _FramePeaks:
    """Distance of each frame's oddest tile to labelled tiles at the same position.

    A tile needs no box, so this covers what the detector misses. The distance is divided by the
    median of its position and condition, because the roadside always varies more than the middle of
    the image. A frame's value is its largest ratio.
    """
    count = pool.tiles.per_frame
    if labelled is None or not count or labelled.tiles.grid != pool.tiles.grid:
        return _no_peaks(len(pool.frames))
    width = pool.tiles.vectors.shape[1]
    tiles = pool.tiles.vectors.reshape(len(pool.frames), count, width)
    known_tiles = labelled.tiles.vectors.reshape(len(labelled.frames), count, width)
    ratio = np.zeros((len(pool.frames), count))
    for rows, known_rows in _rows_by_condition(np.asarray(groups), np.asarray(known_groups)):
        for position in range(count):
            distance = nearest_euclidean(
                tiles[rows, position], known_tiles[known_rows, position], neighbours
            )
            ratio[rows, position] = distance / max(float(np.median(distance)), 1e-6)
    position = ratio.argmax(axis=1)
    rows = np.arange(len(pool.frames))
    return ratio[rows, position], rows * count + position


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


def _no_peaks(frames: int) -> _FramePeaks:
    return np.zeros(frames), np.full(frames, -1, np.int64)


def _peaks(values: NDArray[np.float64], owner: NDArray[np.int64], frames: int) -> _FramePeaks:
    """The largest value of each frame's rows, the first of them on ties."""
    peak, row = _no_peaks(frames)
    # Ascending; on ties the first row is written last.
    order = np.lexsort((-np.arange(len(values)), values))
    row[owner[order]] = order
    present = row >= 0
    peak[present] = values[row[present]]
    row[present & (peak <= 0)] = -1
    return peak, row


def novelty(
    pool: Embeddings,
    labelled: Embeddings | None,
    drives: Sequence[str] | None = None,
    neighbours: int = 3,
    seed: int = 0,
) -> _FramePeaks:
    """Novelty of each frame's objects, summed, and the row of the most novel one (-1 for none).

    Vectors are whitened by the spread of labelled objects, so that directions in which ordinary
    objects differ (brightness, distance) count little, and compared with objects of any class: an
    object that the detector never learned gets some class it knows. An object's distance is one
    minus the mean cosine to its nearest labelled objects, or to the nearest objects of other drives
    where those are nearer: what is common in the pool is not rare. Frames of one drive are
    near-duplicates, so other drives only. The fourth power of the distance is summed over the
    frame's uncropped boxes of 20 px and more: one very novel object counts more than many that are
    slightly so.

    Args:
        pool: The candidates.
        labelled: What is labelled already, or None.
        drives: Drive of each frame of the pool; None compares with labelled objects only.
        neighbours: Number of neighbours to average.
        seed: Of the samples of at most 20,000 objects to compare with.
    """
    value, most_novel = np.zeros(len(pool.frames)), np.full(len(pool.frames), -1, np.int64)
    own = np.flatnonzero(_uncropped(pool) & (_box_sides(pool) > _MIN_OBJECT_PX))
    reference = labelled if labelled is not None and len(labelled.scores) else None
    if not len(own) or (reference is None and drives is None):
        return value, most_novel
    rng = np.random.default_rng(seed)
    basis = reference or pool
    mean, scale = whitening(basis.object_vectors, _WHITENING_SHRINK)
    distance = np.full(len(own), 2.0, np.float32)
    vectors = _whitened_units(pool.object_vectors[own], mean, scale)
    if reference is not None:
        rows = _sample_rows(rng, np.arange(len(reference.scores)))
        reference_units = _whitened_units(reference.object_vectors[rows], mean, scale)
        distance = nearest_distance(vectors, reference_units, neighbours)
    if drives is not None:
        others = _distance_to_other_drives(
            pool, own, vectors, np.asarray(drives), (mean, scale), neighbours, rng
        )
        distance = np.minimum(distance, others)
    owner = pool.owner[own]
    np.add.at(value, owner, distance.astype(float) ** _NOVELTY_POWER)
    order = np.lexsort((-np.arange(len(distance)), distance))
    most_novel[owner[order]] = own[order]  # the last write per frame is its most novel object
    return value, most_novel


def doubt(pool: Embeddings) -> NDArray[np.float64]:
    """Float64 ``[n]``: largest ``(0.7 - score) * sqrt(side)`` of a frame's uncropped boxes.

    Distant and cropped objects have low scores everywhere; near and uncropped ones only where the
    detector meets something it has not learned. Boxes below 0.1 are ignored as noise.
    """
    gap = np.clip(_EXPECTED_SCORE - pool.scores.astype(float), 0.0, None)
    values = gap * np.sqrt(_box_sides(pool)) * (pool.scores > _MIN_SCORE) * _uncropped(pool)
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
    owners = drives[pool.owner[mine]], drives[pool.owner[rows]]
    return distance_to_others(vectors, reference, owners, neighbours)


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


def typicality(
    pool: Embeddings, groups: Sequence[str], clusters: int = 50, seed: int = 0
) -> NDArray[np.float64]:
    """Float64 ``[n]`` in (0, 1): 1 is the centre of a cluster; what to label first when almost
    nothing is.

    With few labels, models learn more from typical frames than from rare ones (Hacohen, Dekel and
    Weinshall 2022, "Active learning on a budget: opposite strategies suit high and low budgets"). A
    frame's density is one over its mean distance to its 20 nearest frames of the same condition and
    cluster, ranked within the cluster, so that no cluster takes all the first places.

    Args:
        pool: The candidates.
        groups: Condition of each frame; clusters never span conditions.
        clusters: In total; each condition gets its share, by its number of frames.
        seed: Of the clustering.
    """
    numbers = _cluster_within(pool.vectors, groups, clusters, seed)
    density = np.zeros(len(numbers))
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number)
        unit = unit_vectors(pool.vectors[rows])
        known = unit if len(unit) <= _DENSITY_SAMPLE else unit[:: -(-len(unit) // _DENSITY_SAMPLE)]
        density[rows] = -nearest_distance(unit, known, _DENSITY_NEIGHBOURS)
    return rank_within(density, [str(number) for number in numbers.tolist()])


def _cluster_within(
    vectors: NDArray[np.floating], groups: Sequence[str], clusters: int, seed: int = 0
) -> NDArray[np.int64]:
    """Int64 ``[n]``: cluster number of each frame, by k-means within each condition.

    Equal seeds give equal clusters; a condition gets no more clusters than it has distinct frames.
    """
    import faiss

    names = np.asarray(groups)
    numbers = np.zeros(len(names), np.int64)
    first = 0
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        unit = unit_vectors(vectors[rows])
        count = max(1, round(clusters * len(rows) / len(names)))
        count = min(count, len(np.unique(unit.round(4), axis=0)))
        if count > 1:
            kmeans = faiss.Kmeans(
                unit.shape[1], count, niter=15, seed=seed + 1, min_points_per_centroid=1
            )
            kmeans.train(unit)
            numbers[rows] = first + kmeans.index.search(unit, 1)[1][:, 0]
        else:
            numbers[rows] = first
        first += count
    return numbers
