"""Duplicates: exact and near copies, by a threshold measured on consecutive frames."""

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

MIN_PAIRS = 20
"""Consecutive pairs below which nothing is measured."""

MAX_CONSECUTIVE_S = 1.5
"""Frames further apart are no longer the same moment; a drive without a clock counts as closer."""

MAX_NEAR_BITS = 40
"""However unlike consecutive frames are: above this, hashes speak of two pictures.

Of 300,000 pairs from different drives none is as near, neither of CamVid's drives (the nearest: 86
bits) nor of the built-in ones (52). See docs/how-to/hygiene.md.
"""

MAX_COPY_BITS = 12
"""However alike consecutive frames are: up to this, two frames are copies of one picture.

Scaled to 0.7, lit 10 % more and saved as JPEG of quality 60, none of 120 frames of either differs
in more. So few bits speak for themselves, whatever the vectors say.
"""


@dataclass(frozen=True)
class SimilarityThreshold:
    """How far consecutive frames lie apart.

    Attributes:
        distance: Cosine distance of centred vectors, None without vectors.
        bits: Differing bits of their hashes.
        pairs: How many consecutive pairs it was measured on.
        share: Which share of them is at least as alike; 0.5 is the median.
    """

    distance: float | None
    bits: int
    pairs: int
    share: float

    @property
    def measured(self) -> bool:
        return self.pairs >= MIN_PAIRS

    @property
    def told(self) -> str:
        """The threshold and its source, in words."""
        if not self.measured:
            return (
                f"{self.pairs} consecutive pairs are too few to measure on ({MIN_PAIRS}),"
                f" so copies alone (<= {MAX_COPY_BITS} of 256 hash bits)"
            )
        near = "" if self.distance is None else f"cosine distance <= {self.distance:.4f} and "
        return (
            f"{near}<= {self.bits} of 256 hash bits: the closest {self.share:.0%} of {self.pairs}"
            f" consecutive pairs, within {MAX_COPY_BITS} to {MAX_NEAR_BITS} bits"
        )


@dataclass(frozen=True)
class FrameFeatures:
    """What frames are compared by; rows of all three belong together.

    Attributes:
        frames: ``n`` frames.
        hashes: Uint64 ``[n, 4]``.
        directions: Float32 ``[n, d]`` unit vectors, see `neighbours.directions`; None without a
            model.
    """

    frames: tuple[Frame, ...]
    hashes: NDArray[np.uint64]
    directions: NDArray[np.float32] | None = None

    def rows(self, keep: Iterable[int]) -> FrameFeatures:
        wanted = np.fromiter(keep, np.int64)
        return FrameFeatures(
            tuple(self.frames[row] for row in wanted.tolist()),
            self.hashes[wanted],
            None if self.directions is None else self.directions[wanted],
        )


def consecutive_pairs(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    """Rows of frames that follow each other in one drive, and soon."""
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


def measure_threshold(like: FrameFeatures, share: float) -> SimilarityThreshold:
    """The likeness that ``share`` of all consecutive pairs reach, in either sense.

    A drive counts with at most as many pairs as the middle one has, so that one long wait at a
    red light does not become the yardstick.
    """
    pairs = _balance_by_drive(like, consecutive_pairs(like.frames))
    if not pairs:
        return SimilarityThreshold(None, MAX_COPY_BITS, 0, share)
    first, second = np.array(pairs).T
    bits = hamming_distance(like.hashes[first], like.hashes[second])
    limit = int(np.clip(np.quantile(bits, share, method="lower"), MAX_COPY_BITS, MAX_NEAR_BITS))
    if len(pairs) < MIN_PAIRS:
        return SimilarityThreshold(None, MAX_COPY_BITS, len(pairs), share)
    distance = None
    if like.directions is not None:
        apart = 1 - (like.directions[first] * like.directions[second]).sum(axis=1)
        distance = float(np.quantile(apart, share, method="lower"))
    return SimilarityThreshold(distance, limit, len(pairs), share)


def _balance_by_drive(like: FrameFeatures, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    by_drive: dict[str, list[tuple[int, int]]] = {}
    for pair in pairs:
        by_drive.setdefault(like.frames[pair[0]].drive, []).append(pair)
    if not by_drive:
        return []
    most = max(1, int(np.median([len(theirs) for theirs in by_drive.values()])))
    kept = []
    for theirs in by_drive.values():
        steps = np.linspace(0, len(theirs) - 1, min(most, len(theirs))).astype(int)
        kept += [theirs[step] for step in steps.tolist()]
    return kept


def _is_consecutive(first: Frame, second: Frame) -> bool:
    if first.timestamp_us is None or second.timestamp_us is None:
        return True
    return abs(second.timestamp_us - first.timestamp_us) <= MAX_CONSECUTIVE_S * 1e6


# ---- Pairs of frames that are alike, and the groups that such pairs link.


_VECTOR_ROWS = 1024
_BALL_PAIRS_BEFORE_MERGE = (
    1024  # pairs of balls that are opened without asking what the last ones have joined
)


@dataclass(frozen=True)
class FramePairs:
    """Pairs of rows: int64 ``[k]`` both, cosine distances float32 ``[k]`` or None, bits ``[k]``."""

    first: RowNumbers
    second: RowNumbers
    distance: NDArray[np.float32] | None
    bits: NDArray[np.uint16]


def similar_pairs(
    like: FrameFeatures,
    yardstick: SimilarityThreshold,
    other: FrameFeatures | None = None,
    settled: NDArray[np.bool_] | None = None,
) -> Iterator[FramePairs]:
    """Every pair of frames that is as alike as the yardstick asks, some at a time.

    Hashes are compared first (`nearby`); vectors are only asked about the pairs that pass. Memory
    is that of one slice of pairs, however many there are.

    Args:
        other: Compared with these instead of with each other; ``second`` is then a row of theirs.
        settled: Bool ``[n]``: rows of ``like`` that need no further partner. Whoever takes the
            pairs may set more as they come.
    """
    mine = fingerprints.make_balls(like.hashes, MAX_COPY_BITS)
    theirs = fingerprints.make_balls(other.hashes, MAX_COPY_BITS) if other else None

    def all_settled(rows: slice, _: slice) -> bool:
        return settled is not None and not len(_unsettled_balls(mine, settled, rows))

    for block in fingerprints.near_ball_pairs(mine, theirs, yardstick.bits, all_settled):
        left = _unsettled(mine, settled, block)
        if settled is not None:  # every row meets a few before any row meets all
            left = left.keep(np.argsort(left.second, kind="stable"))
        while len(left):
            first, second, bits, opened = fingerprints.near_row_pairs(
                mine, theirs, left, yardstick.bits
            )
            if len(first):
                yield _near_by_vector(
                    like, other or like, yardstick, FramePairs(first, second, None, bits)
                )
            left = _unsettled(mine, settled, left.keep(slice(opened, None)))


def connected_groups(like: FrameFeatures, yardstick: SimilarityThreshold) -> list[list[int]]:
    """Rows connected by pairs as alike as the yardstick asks: each group ascending, all by first.

    Not every such pair is looked at. The frames of a ball are copies of its centre, so one group
    from the start, and two balls are opened only while they are not of one group. A million near
    copies are one group soon.
    """
    groups = _ConnectedRows(len(like.hashes))
    mine = fingerprints.make_balls(like.hashes, min(MAX_COPY_BITS, yardstick.bits))
    groups.link(np.repeat(mine.centres, mine.sizes), mine.order)
    groups.merge()

    def one_group(rows: slice, columns: slice) -> bool:
        labels = groups.labels[np.concatenate([mine.centres[rows], mine.centres[columns]])]
        return bool((labels == labels[0]).all())

    for block in fingerprints.near_ball_pairs(mine, None, yardstick.bits, one_group):
        left = _in_different_groups(mine, groups, block)
        groups.link(
            *_similar_among(like, yardstick, mine.centres[left.first], mine.centres[left.second])
        )
        while len(left):
            if len(left) > _BALL_PAIRS_BEFORE_MERGE:
                groups.merge()
            left = _in_different_groups(mine, groups, left)
            first, second, _, opened = fingerprints.near_row_pairs(mine, None, left, yardstick.bits)
            groups.link(*_similar_among(like, yardstick, first, second))
            left = left.keep(slice(opened, None))
    return groups.rows()


class _ConnectedRows:
    """Connected rows. Links are merged by the million, for a merge looks at every row."""

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


def _unsettled(mine: Balls, settled: NDArray[np.bool_] | None, pairs: BallPairs) -> BallPairs:
    """Pairs whose first ball has a row that still wants a partner."""
    if settled is None or not len(pairs):
        return pairs
    block = slice(int(pairs.first.min()), int(pairs.first.max()) + 1)  # of few balls
    return pairs.keep(np.isin(pairs.first, _unsettled_balls(mine, settled, block)))


def _unsettled_balls(mine: Balls, settled: NDArray[np.bool_], block: slice) -> RowNumbers:
    starts = mine.starts[block.start : block.stop + 1]
    rows = mine.order[starts[0] : starts[-1]]
    done = np.logical_and.reduceat(settled[rows], starts[:-1] - starts[0])
    left: RowNumbers = np.flatnonzero(~done) + block.start
    return left


def _in_different_groups(mine: Balls, groups: _ConnectedRows, pairs: BallPairs) -> BallPairs:
    """Pairs of balls that are not known to be of one group."""
    first, second = mine.centres[pairs.first], mine.centres[pairs.second]
    return pairs.keep(groups.labels[first] != groups.labels[second])


def _similar_among(
    like: FrameFeatures, yardstick: SimilarityThreshold, first: RowNumbers, second: RowNumbers
) -> tuple[RowNumbers, RowNumbers]:
    """Those of these pairs that are as alike as the yardstick asks."""
    bits = hamming_distance(like.hashes[first], like.hashes[second])
    near = bits <= yardstick.bits
    close = _near_by_vector(
        like, like, yardstick, FramePairs(first[near], second[near], None, bits[near])
    )
    return close.first, close.second


def _near_by_vector(
    like: FrameFeatures, theirs: FrameFeatures, yardstick: SimilarityThreshold, found: FramePairs
) -> FramePairs:
    """Copies, and those of the other pairs whose vectors are near too, with the distances."""
    if like.directions is None or theirs.directions is None:
        return found
    apart = np.empty(len(found.first), np.float32)
    for start in range(0, len(apart), _VECTOR_ROWS):
        part = slice(start, start + _VECTOR_ROWS)
        mine, others = like.directions[found.first[part]], theirs.directions[found.second[part]]
        apart[part] = 1 - (mine * others).sum(axis=1)
    limit = np.inf if yardstick.distance is None else yardstick.distance
    near = (apart <= limit) | (found.bits <= MAX_COPY_BITS)
    return FramePairs(found.first[near], found.second[near], apart[near], found.bits[near])


# ---- Duplicates: frames that show the same picture, and frames that show nearly the same.
#
# A copy takes a place in the budget and teaches nothing; a copy on both sides of a split flatters
# every figure.


NEAR_DUPLICATE_SHARE = 0.1
"""Near duplicates are as alike as the closest tenth of consecutive frames: a car that stands."""


class DuplicateCluster(FrozenModel):
    """Frames linked by likeness, the one to keep first: the first of its drive.

    ``exact`` where all show the same pixels; ``drives`` counts the drives they are from.
    """

    frames: tuple[Digest, ...]
    exact: bool
    drives: int


@dataclass(frozen=True)
class Duplicates:
    """Clusters, largest first, and what counted as near."""

    exact: tuple[DuplicateCluster, ...]
    near: tuple[DuplicateCluster, ...]
    yardstick: SimilarityThreshold

    @property
    def clusters(self) -> tuple[DuplicateCluster, ...]:
        """All of them, the exact ones first."""
        return (*self.exact, *self.near)

    @property
    def surplus(self) -> int:
        """Frames that could go without losing a picture."""
        return sum(len(cluster.frames) - 1 for cluster in self.clusters)


def find_duplicates(
    like: FrameFeatures, pixels: Sequence[str], yardstick: SimilarityThreshold | None = None
) -> Duplicates:
    """Exact and near duplicates among ``n`` frames.

    Of each group of equal pictures one takes part in the search for near ones, so a pool of one
    picture costs one comparison.

    Args:
        pixels: Digests of decoded pixels, ``n``.
        yardstick: How alike is near; measured on the frames themselves by default. One that
            could not be measured finds copies only.
    """
    yardstick = yardstick or measure_threshold(like, NEAR_DUPLICATE_SHARE)
    groups: dict[str, list[int]] = {}
    for row in sorted(range(len(like.frames)), key=lambda row: _frame_order(like, row)):
        groups.setdefault(pixels[row], []).append(row)
    exact = [_make_cluster(like, rows, exact=True) for rows in groups.values() if len(rows) > 1]
    different = like.rows(rows[0] for rows in groups.values())
    near = [
        _make_cluster(different, rows, exact=False)
        for rows in connected_groups(different, yardstick)
        if len(rows) > 1
    ]
    return Duplicates(_largest_first(exact), _largest_first(near), yardstick)


def _frame_order(like: FrameFeatures, row: int) -> tuple[str, int, str]:
    frame = like.frames[row]
    return (frame.drive, frame.index, frame.id)


def _make_cluster(like: FrameFeatures, rows: Sequence[int], *, exact: bool) -> DuplicateCluster:
    ordered = sorted(rows, key=lambda row: _frame_order(like, row))
    return DuplicateCluster(
        frames=tuple(like.frames[row].id for row in ordered),
        exact=exact,
        drives=len({like.frames[row].drive for row in ordered}),
    )


def _largest_first(clusters: Iterable[DuplicateCluster]) -> tuple[DuplicateCluster, ...]:
    return tuple(sorted(clusters, key=lambda one: (-len(one.frames), one.frames)))
