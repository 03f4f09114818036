"""Duplicates: exact and near copies, by a threshold measured on consecutive frames.

Consecutive frames of a drive show one scene a moment later. The distance of their vectors and
hashes is the threshold for all other pairs, so it follows the model, the camera and the frame rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workbench.curation.hygiene import fingerprints
from workbench.curation.hygiene.fingerprints import BallPairs, Balls, RowNumbers, hamming_distance
from workbench.records.base import Digest, FrozenModel
from workbench.records.frames import Frame

__all__ = ["DuplicateCluster", "measure_threshold"]

MIN_PAIRS = 20
"""With fewer consecutive pairs, no threshold is measured."""

_MAX_CONSECUTIVE_S = 1.5
"""Frames further apart are not consecutive; without timestamps all neighbours are."""

MAX_NEAR_BITS = 40
"""Upper limit of the threshold: hashes further apart show two scenes.

Of 300,000 pairs from different drives none is as near, neither in CamVid (nearest: 86 bits) nor in
the built-in drives (52). See docs/how-to/hygiene.md.
"""

MAX_COPY_BITS = 12
"""Up to this distance, two frames are copies of one image, whatever their vectors.

Scaled to 0.7, lit 10 % more and saved as JPEG of quality 60, none of 120 frames of either set
differs in more bits.
"""

_VECTOR_ROWS = 1024
_BALL_PAIRS_BEFORE_MERGE = 1024  # pairs of balls opened between two merges
NEAR_DUPLICATE_SHARE = 0.1
"""Near duplicates are as similar as the closest tenth of consecutive frames (a parked car)."""


class DuplicateCluster(FrozenModel):
    """Frames that duplicate each other, the one to keep first: the first of its drive.

    Attributes:
        frames: Digests.
        exact: Whether all have equal pixels.
        drives: Number of drives they are from.
    """

    frames: tuple[Digest, ...]
    exact: bool
    drives: int


@dataclass(frozen=True)
class Duplicates:
    """Clusters of duplicates, largest first, and the threshold.

    Attributes:
        exact: Clusters of equal pixels.
        near: Clusters of similar frames.
        threshold: What counted as near.
    """

    exact: tuple[DuplicateCluster, ...]
    near: tuple[DuplicateCluster, ...]
    threshold: SimilarityThreshold

    @property
    def clusters(self) -> tuple[DuplicateCluster, ...]:
        """All clusters, exact ones first."""
        return (*self.exact, *self.near)


def find_duplicates(
    features: FrameFeatures, pixels: Sequence[str], threshold: SimilarityThreshold | None = None
) -> Duplicates:
    """Find exact and near duplicates among ``n`` frames.

    One frame of each group of equal pixels takes part in the search for near duplicates.

    Args:
        features: The frames.
        pixels: Digests of decoded pixels, ``n``.
        threshold: What counts as near; by default measured on the frames. One that could not be
            measured finds copies only.
    """
    threshold = threshold or measure_threshold(features, NEAR_DUPLICATE_SHARE)
    groups: dict[str, list[int]] = {}
    for row in sorted(range(len(features.frames)), key=lambda row: _frame_order(features, row)):
        groups.setdefault(pixels[row], []).append(row)
    exact = [_make_cluster(features, rows, exact=True) for rows in groups.values() if len(rows) > 1]
    representatives = features.rows(rows[0] for rows in groups.values())
    near = [
        _make_cluster(representatives, rows, exact=False)
        for rows in connected_groups(representatives, threshold)
        if len(rows) > 1
    ]
    return Duplicates(_largest_first(exact), _largest_first(near), threshold)


def _frame_order(features: FrameFeatures, row: int) -> tuple[str, int, str]:
    frame = features.frames[row]
    return (frame.drive, frame.index, frame.id)


def _make_cluster(features: FrameFeatures, rows: Sequence[int], *, exact: bool) -> DuplicateCluster:
    ordered = sorted(rows, key=lambda row: _frame_order(features, row))
    return DuplicateCluster(
        frames=tuple(features.frames[row].id for row in ordered),
        exact=exact,
        drives=len({features.frames[row].drive for row in ordered}),
    )


def _largest_first(clusters: Iterable[DuplicateCluster]) -> tuple[DuplicateCluster, ...]:
    return tuple(sorted(clusters, key=lambda one: (-len(one.frames), one.frames)))


@dataclass(frozen=True)
class SimilarityThreshold:
    """Distance within which two frames count as similar.

    Attributes:
        distance: Cosine distance of centred vectors; None without vectors.
        bits: Hamming distance of hashes.
        pairs: Number of consecutive pairs it was measured on.
        share: Share of those pairs that are at least as similar; 0.5 is the median.
    """

    distance: float | None
    bits: int
    pairs: int
    share: float

    @property
    def measured(self) -> bool:
        """Whether there were enough consecutive pairs."""
        return self.pairs >= MIN_PAIRS

    @property
    def description(self) -> str:
        """The threshold and its source, in words."""
        if not self.measured:
            return (
                f"{self.pairs} consecutive pairs are too few to measure (minimum {MIN_PAIRS}),"
                f" so copies only (<= {MAX_COPY_BITS} of 256 hash bits)"
            )
        vectors = "" if self.distance is None else f"cosine distance <= {self.distance:.4f} and "
        return (
            f"{vectors}<= {self.bits} of 256 hash bits: the closest {self.share:.0%} of"
            f" {self.pairs} consecutive pairs, within {MAX_COPY_BITS} to {MAX_NEAR_BITS} bits"
        )


@dataclass(frozen=True)
class FrameFeatures:
    """Features to compare ``n`` frames by, row by row.

    Attributes:
        frames: The frames.
        hashes: Uint64 ``[n, 4]``.
        directions: Float32 ``[n, d]`` unit vectors, see `unit_vectors`; None without a model.
    """

    frames: tuple[Frame, ...]
    hashes: NDArray[np.uint64]
    directions: NDArray[np.float32] | None = None

    def rows(self, keep: Iterable[int]) -> FrameFeatures:
        """The features of some rows."""
        selected = np.fromiter(keep, np.int64)
        return FrameFeatures(
            tuple(self.frames[row] for row in selected.tolist()),
            self.hashes[selected],
            None if self.directions is None else self.directions[selected],
        )


def measure_threshold(features: FrameFeatures, share: float) -> SimilarityThreshold:
    """The similarity that ``share`` of all consecutive pairs reach, in vectors and in hashes.

    A drive contributes at most the median number of pairs, so that one long stop does not dominate.

    Args:
        features: The frames to measure on.
        share: Share of consecutive pairs.
    """
    pairs = _balance_by_drive(features, consecutive_pairs(features.frames))
    if not pairs:
        return SimilarityThreshold(None, MAX_COPY_BITS, 0, share)
    first, second = np.array(pairs).T
    bits = hamming_distance(features.hashes[first], features.hashes[second])
    limit = int(np.clip(np.quantile(bits, share, method="lower"), MAX_COPY_BITS, MAX_NEAR_BITS))
    if len(pairs) < MIN_PAIRS:
        return SimilarityThreshold(None, MAX_COPY_BITS, len(pairs), share)
    distance = None
    if features.directions is not None:
        apart = 1 - (features.directions[first] * features.directions[second]).sum(axis=1)
        distance = float(np.quantile(apart, share, method="lower"))
    return SimilarityThreshold(distance, limit, len(pairs), share)


def consecutive_pairs(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    """Rows of frames that follow each other closely in one drive."""
    by_drive: dict[str, list[int]] = {}
    for row, frame in enumerate(frames):
        by_drive.setdefault(frame.drive, []).append(row)
    pairs = []
    for rows in by_drive.values():
        ordered = sorted(rows, key=lambda row: (frames[row].index, frames[row].id))
        pairs += [
            (first, second)
            for first, second in pairwise(ordered)
            if _is_consecutive(frames[first], frames[second])
        ]
    return pairs


def _is_consecutive(first: Frame, second: Frame) -> bool:
    if first.timestamp_us is None or second.timestamp_us is None:
        return True
    return abs(second.timestamp_us - first.timestamp_us) <= _MAX_CONSECUTIVE_S * 1e6


def _balance_by_drive(
    features: FrameFeatures, pairs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    by_drive: dict[str, list[tuple[int, int]]] = {}
    for pair in pairs:
        by_drive.setdefault(features.frames[pair[0]].drive, []).append(pair)
    if not by_drive:
        return []
    limit = max(1, int(np.median([len(drive_pairs) for drive_pairs in by_drive.values()])))
    balanced = []
    for drive_pairs in by_drive.values():
        steps = np.linspace(0, len(drive_pairs) - 1, min(limit, len(drive_pairs))).astype(int)
        balanced += [drive_pairs[step] for step in steps.tolist()]
    return balanced


@dataclass(frozen=True)
class _FramePairs:
    """Pairs of rows: int64 ``[k]`` both, cosine distance float32 ``[k]`` or None, bits ``[k]``."""

    first: RowNumbers
    second: RowNumbers
    distance: NDArray[np.float32] | None
    bits: NDArray[np.uint16]


def similar_pairs(
    features: FrameFeatures,
    threshold: SimilarityThreshold,
    other: FrameFeatures | None = None,
    settled: NDArray[np.bool_] | None = None,
) -> Iterator[_FramePairs]:
    """All pairs of frames within the threshold, a slice at a time.

    Hashes are compared first, vectors only for pairs that pass. Memory is bounded by one slice.

    Args:
        features: The frames.
        threshold: Limits of hash and vector distance.
        other: Frames to compare with instead of each other; ``second`` is then a row of these.
        settled: Bool ``[n]``: rows of ``features`` that need no further partner; the caller may set
            more while iterating.
    """
    balls = fingerprints.make_balls(features.hashes, MAX_COPY_BITS)
    other_balls = fingerprints.make_balls(other.hashes, MAX_COPY_BITS) if other else None

    def all_settled(rows: slice, _: slice) -> bool:
        return settled is not None and not len(_unsettled_balls(balls, settled, rows))

    for block in fingerprints.near_ball_pairs(balls, other_balls, threshold.bits, all_settled):
        open_pairs = _unsettled(balls, settled, block)
        if settled is not None:  # every row meets a few before any row meets all
            open_pairs = open_pairs.keep(np.argsort(open_pairs.second, kind="stable"))
        while len(open_pairs):
            first, second, bits, opened = fingerprints.near_row_pairs(
                balls, other_balls, open_pairs, threshold.bits
            )
            if len(first):
                yield _near_by_vector(
                    features, other or features, threshold, _FramePairs(first, second, None, bits)
                )
            open_pairs = _unsettled(balls, settled, open_pairs.keep(slice(opened, None)))


def connected_groups(features: FrameFeatures, threshold: SimilarityThreshold) -> list[list[int]]:
    """Rows connected by pairs within the threshold: each group ascending, groups by first row.

    Not all such pairs are compared. Frames of a ball are copies of its centre, so one group from
    the start, and two balls are opened only while they are in different groups.
    """
    groups = _ConnectedRows(len(features.hashes))
    balls = fingerprints.make_balls(features.hashes, min(MAX_COPY_BITS, threshold.bits))
    groups.link(np.repeat(balls.centres, balls.sizes), balls.order)
    groups.merge()

    def one_group(rows: slice, columns: slice) -> bool:
        labels = groups.labels[np.concatenate([balls.centres[rows], balls.centres[columns]])]
        return bool((labels == labels[0]).all())

    for block in fingerprints.near_ball_pairs(balls, None, threshold.bits, one_group):
        open_pairs = _in_different_groups(balls, groups, block)
        groups.link(
            *_similar_among(
                features,
                threshold,
                balls.centres[open_pairs.first],
                balls.centres[open_pairs.second],
            )
        )
        while len(open_pairs):
            if len(open_pairs) > _BALL_PAIRS_BEFORE_MERGE:
                groups.merge()
            open_pairs = _in_different_groups(balls, groups, open_pairs)
            first, second, _, opened = fingerprints.near_row_pairs(
                balls, None, open_pairs, threshold.bits
            )
            groups.link(*_similar_among(features, threshold, first, second))
            open_pairs = open_pairs.keep(slice(opened, None))
    return groups.rows()


class _ConnectedRows:
    """Union of connected rows; links are merged by the million, as a merge visits every row."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        self._waiting: list[tuple[RowNumbers, RowNumbers]] = []
        self._count = 0

    def link(self, first: RowNumbers, second: RowNumbers) -> None:
        self._waiting.append((first, second))
        self._count += len(first)
        if self._count > fingerprints.PAIRS_PER_SLICE:
            self.merge()

    def merge(self) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if self._count:
            first = self.labels[np.concatenate([one for one, _ in self._waiting])]
            second = self.labels[np.concatenate([other for _, other in self._waiting])]
            ones, shape = np.ones(len(first), bool), (len(self.labels), len(self.labels))
            graph = coo_array((ones, (first, second)), shape)
            self.labels = connected_components(graph, directed=False)[1][self.labels]
        self._waiting, self._count = [], 0

    def rows(self) -> list[list[int]]:
        self.merge()
        order = np.argsort(self.labels, kind="stable")
        cuts = np.flatnonzero(np.diff(self.labels[order])) + 1
        groups = [part.tolist() for part in np.split(order, cuts)] if len(order) else []
        return sorted(groups)


def _unsettled(balls: Balls, settled: NDArray[np.bool_] | None, pairs: BallPairs) -> BallPairs:
    """Pairs whose first ball has a row that still needs a partner."""
    if settled is None or not len(pairs):
        return pairs
    block = slice(int(pairs.first.min()), int(pairs.first.max()) + 1)  # of few balls
    return pairs.keep(np.isin(pairs.first, _unsettled_balls(balls, settled, block)))


def _unsettled_balls(balls: Balls, settled: NDArray[np.bool_], block: slice) -> RowNumbers:
    starts = balls.starts[block.start : block.stop + 1]
    rows = balls.order[starts[0] : starts[-1]]
    settled_balls = np.logical_and.reduceat(settled[rows], starts[:-1] - starts[0])
    open_balls: RowNumbers = np.flatnonzero(~settled_balls) + block.start
    return open_balls


def _in_different_groups(balls: Balls, groups: _ConnectedRows, pairs: BallPairs) -> BallPairs:
    """Pairs of balls that are not yet in one group."""
    first, second = balls.centres[pairs.first], balls.centres[pairs.second]
    return pairs.keep(groups.labels[first] != groups.labels[second])


def _similar_among(
    features: FrameFeatures, threshold: SimilarityThreshold, first: RowNumbers, second: RowNumbers
) -> tuple[RowNumbers, RowNumbers]:
    """Those of these pairs that are within the threshold."""
    bits = hamming_distance(features.hashes[first], features.hashes[second])
    keep = bits <= threshold.bits
    pairs = _near_by_vector(
        features, features, threshold, _FramePairs(first[keep], second[keep], None, bits[keep])
    )
    return pairs.first, pairs.second


def _near_by_vector(
    features: FrameFeatures,
    other: FrameFeatures,
    threshold: SimilarityThreshold,
    pairs: _FramePairs,
) -> _FramePairs:
    """Copies, and other pairs whose vectors are near, too, with the distances."""
    if features.directions is None or other.directions is None:
        return pairs
    distance = np.empty(len(pairs.first), np.float32)
    for start in range(0, len(distance), _VECTOR_ROWS):
        part = slice(start, start + _VECTOR_ROWS)
        own, other_units = (
            features.directions[pairs.first[part]],
            other.directions[pairs.second[part]],
        )
        distance[part] = 1 - (own * other_units).sum(axis=1)
    limit = np.inf if threshold.distance is None else threshold.distance
    keep = (distance <= limit) | (pairs.bits <= MAX_COPY_BITS)
    return _FramePairs(pairs.first[keep], pairs.second[keep], distance[keep], pairs.bits[keep])
