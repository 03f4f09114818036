"""Which hashes are near which: exact, in bounded memory, for a million frames.

A hash has 256 bits, and near is up to 40 of them (see `alike`). Tables of parts of a hash, the
usual way around comparing all with all (multi-index hashing, Norouzi 2012), pay while few bits may
differ: for 40 they are to be asked with every two of 16 bits flipped, and roads are so alike that
a part of 16 bits is shared by hundreds of times as many frames as chance would have it.

So all are compared, but not all frames. Frames that follow each other within a few bits of the
first of them are one *ball*; only first frames are compared, and by the triangle inequality two
balls hold a near pair only if their first frames are no further apart than the limit and both
radii. What is left costs an exclusive-or and a count a pair of balls, about a nanosecond in
faiss's vectorised kernel. It grows with the square of the balls, not of the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from workbench.curation.hygiene.fingerprints import BITS, differing_bits

SLICE = 1 << 20
"""Pairs of frames that are looked at together."""

_MOST = 64  # frames of a ball, so that two of them are a few thousand pairs
_ROWS, _COLUMNS = 512, 4096
_HEAD = 1 << 18  # pairs of balls that are counted to fill a slice

Rows = NDArray[np.int64]
Bits = NDArray[np.uint16]
Known = Callable[[slice, slice], bool]


@dataclass(frozen=True)
class Balls:
    """``n`` hashes in ``m`` balls.

    Attributes:
        hashes: Uint64 ``[n, 4]``.
        order: Int64 ``[n]``: rows, ball after ball.
        starts: Int64 ``[m + 1]``: where each ball starts in ``order``; the first row is its centre.
        radius: Int64 ``[m]``: bits from the centre to the furthest row.
    """

    hashes: NDArray[np.uint64]
    order: Rows
    starts: Rows
    radius: Rows

    @cached_property
    def centres(self) -> Rows:
        """Rows ``[m]``."""
        return self.order[self.starts[:-1]]

    @cached_property
    def sizes(self) -> Rows:
        """Rows in each ball ``[m]``."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class BallPairs:
    """Balls ``[k]`` both, that may hold a near pair; those of one and the same ball too."""

    first: Rows
    second: Rows

    def __len__(self) -> int:
        return len(self.first)

    def keep(self, wanted: NDArray[np.bool_] | Rows | slice) -> BallPairs:
        return BallPairs(self.first[wanted], self.second[wanted])


def balls(hashes: NDArray[np.uint64], reach: int) -> Balls:
    """Balls of hashes ``[n, 4]`` that follow each other; equal hashes count as following.

    Args:
        reach: Bits that a hash may lie from the centre of its ball.
    """
    order = _equal_together(hashes)
    raw = np.ascontiguousarray(hashes[order]).tobytes()
    width = BITS // 8
    numbers = (int.from_bytes(raw[at : at + width]) for at in range(0, len(raw), width))
    starts: list[int] = []
    radius: list[int] = []
    centre = 0
    for place, number in enumerate(numbers):
        apart = (number ^ centre).bit_count()
        if not starts or apart > reach or place - starts[-1] == _MOST:
            starts.append(place)
            radius.append(0)
            centre = number
        else:
            radius[-1] = max(radius[-1], apart)
    return Balls(
        hashes, order, np.array([*starts, len(order)], np.int64), np.array(radius, np.int64)
    )


def ball_pairs(
    mine: Balls, theirs: Balls | None, limit: int, known_already: Known | None = None
) -> Iterator[BallPairs]:
    """Pairs of balls that may hold rows at most ``limit`` bits apart; none that does is missed.

    Args:
        theirs: Compared with these; None compares ``mine`` with each other, each pair once.
        known_already: Asked about a block of balls of each before they are compared: nothing that
            is said of them would be news.
    """
    import faiss

    other = theirs or mine
    queries, known = _codes(mine), _codes(other)
    far = limit + int(mine.radius.max(initial=0)) + int(other.radius.max(initial=0))
    for start in range(0, len(queries), _ROWS):
        block = queries[start : start + _ROWS]
        for reach in range(0 if theirs else start, len(known), _COLUMNS):
            blocks = slice(start, start + _ROWS), slice(reach, reach + _COLUMNS)
            if known_already and known_already(*blocks):
                continue
            index = faiss.IndexBinaryFlat(BITS)
            index.add(known[reach : reach + _COLUMNS])
            cuts, apart, second = index.range_search(block, far + 1)  # below, not up to
            counts = cuts[1:].astype(np.int64) - cuts[:-1].astype(np.int64)
            first = np.repeat(np.arange(start, start + len(block)), counts)
            second = second + reach
            near = apart <= limit + mine.radius[first] + other.radius[second]
            if theirs is None:
                near &= second >= first
            if near.any():
                yield BallPairs(first[near], second[near])


def row_pairs(
    mine: Balls, theirs: Balls | None, pairs: BallPairs, limit: int
) -> tuple[Rows, Rows, Bits, int]:
    """Rows at most ``limit`` bits apart in the first of these pairs of balls.

    Returns:
        Rows of ``mine``, of ``theirs``, the bits, and how many pairs of balls were opened: as many
        as hold `SLICE` pairs of rows. Within one set of balls the first row is the lower.
    """
    other = theirs or mine
    wide = mine.sizes[pairs.first[:_HEAD]]
    high = other.sizes[pairs.second[:_HEAD]]
    opened = max(1, int(np.searchsorted(np.cumsum(wide * high), SLICE, side="right")))
    wide, high = wide[:opened], high[:opened]
    count = wide * high
    place = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(place, np.repeat(high, count))
    first = mine.order[np.repeat(mine.starts[pairs.first[:opened]], count) + row]
    second = other.order[np.repeat(other.starts[pairs.second[:opened]], count) + column]
    if theirs is None:
        same = np.repeat(pairs.first[:opened] == pairs.second[:opened], count)
        once = ~same | (column > row)
        first, second = first[once], second[once]
        first, second = np.minimum(first, second), np.maximum(first, second)
    bits = differing_bits(mine.hashes[first], other.hashes[second])
    near = bits <= limit
    return first[near], second[near], bits[near], opened


def _equal_together(hashes: NDArray[np.uint64]) -> Rows:
    """All rows, each hash's where its first one stands."""
    words = np.ascontiguousarray(hashes).view(np.dtype((np.void, BITS // 8))).ravel()
    _, firsts, which = np.unique(words, return_index=True, return_inverse=True)
    together: Rows = np.argsort(firsts[which], kind="stable")
    return together


def _codes(found: Balls) -> NDArray[np.uint8]:
    centres = np.ascontiguousarray(found.hashes[found.centres])
    return centres.view(np.uint8).reshape(len(centres), BITS // 8)
