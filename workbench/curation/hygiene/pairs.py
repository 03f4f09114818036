"""Pairs of frames that are alike, and the groups that such pairs link."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.curation.hygiene import nearby
from workbench.curation.hygiene.alike import COPY_BITS, Likeness, Yardstick
from workbench.curation.hygiene.fingerprints import differing_bits
from workbench.curation.hygiene.nearby import BallPairs, Balls, Rows

_ROWS = 1024
_FEW = 1024  # pairs of balls that are opened without asking what the last ones have joined


@dataclass(frozen=True)
class Found:
    """Pairs of rows: int64 ``[k]`` both, cosine distances float32 ``[k]`` or None, bits ``[k]``."""

    first: Rows
    second: Rows
    distance: NDArray[np.float32] | None
    bits: NDArray[np.uint16]


def pairs_within(
    like: Likeness,
    yardstick: Yardstick,
    other: Likeness | None = None,
    settled: NDArray[np.bool_] | None = None,
) -> Iterator[Found]:
    """Every pair of frames that is as alike as the yardstick asks, some at a time.

    Hashes are compared first (`nearby`); vectors are only asked about the pairs that pass. Memory
    is that of one slice of pairs, however many there are.

    Args:
        other: Compared with these instead of with each other; ``second`` is then a row of theirs.
        settled: Bool ``[n]``: rows of ``like`` that need no further partner. Whoever takes the
            pairs may set more as they come.
    """
    mine = nearby.balls(like.hashes, COPY_BITS)
    theirs = nearby.balls(other.hashes, COPY_BITS) if other else None

    def all_settled(rows: slice, _: slice) -> bool:
        return settled is not None and not len(_unsettled_balls(mine, settled, rows))

    for block in nearby.ball_pairs(mine, theirs, yardstick.bits, all_settled):
        left = _unsettled(mine, settled, block)
        if settled is not None:  # every row meets a few before any row meets all
            left = left.keep(np.argsort(left.second, kind="stable"))
        while len(left):
            first, second, bits, opened = nearby.row_pairs(mine, theirs, left, yardstick.bits)
            if len(first):
                yield _close(like, other or like, yardstick, Found(first, second, None, bits))
            left = _unsettled(mine, settled, left.keep(slice(opened, None)))


def linked(like: Likeness, yardstick: Yardstick) -> list[list[int]]:
    """Rows connected by pairs as alike as the yardstick asks: each group ascending, all by first.

    Not every such pair is looked at. The frames of a ball are copies of its centre, so one group
    from the start, and two balls are opened only while they are not of one group. A million near
    copies are one group soon.
    """
    groups = _Groups(len(like.hashes))
    mine = nearby.balls(like.hashes, min(COPY_BITS, yardstick.bits))
    groups.link(np.repeat(mine.centres, mine.sizes), mine.order)
    groups.merge()

    def one_group(rows: slice, columns: slice) -> bool:
        labels = groups.labels[np.concatenate([mine.centres[rows], mine.centres[columns]])]
        return bool((labels == labels[0]).all())

    for block in nearby.ball_pairs(mine, None, yardstick.bits, one_group):
        left = _apart(mine, groups, block)
        groups.link(
            *_pairs_among(like, yardstick, mine.centres[left.first], mine.centres[left.second])
        )
        while len(left):
            if len(left) > _FEW:
                groups.merge()
            left = _apart(mine, groups, left)
            first, second, _, opened = nearby.row_pairs(mine, None, left, yardstick.bits)
            groups.link(*_pairs_among(like, yardstick, first, second))
            left = left.keep(slice(opened, None))
    return groups.rows()


class _Groups:
    """Connected rows. Links are merged by the million, for a merge looks at every row."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        self._waiting: list[tuple[Rows, Rows]] = []
        self._count = 0

    def link(self, first: Rows, second: Rows) -> None:
        self._waiting.append((first, second))
        self._count += len(first)
        if self._count > nearby.SLICE:
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


def _unsettled_balls(mine: Balls, settled: NDArray[np.bool_], block: slice) -> Rows:
    starts = mine.starts[block.start : block.stop + 1]
    rows = mine.order[starts[0] : starts[-1]]
    done = np.logical_and.reduceat(settled[rows], starts[:-1] - starts[0])
    left: Rows = np.flatnonzero(~done) + block.start
    return left


def _apart(mine: Balls, groups: _Groups, pairs: BallPairs) -> BallPairs:
    """Pairs of balls that are not known to be of one group."""
    first, second = mine.centres[pairs.first], mine.centres[pairs.second]
    return pairs.keep(groups.labels[first] != groups.labels[second])


def _pairs_among(
    like: Likeness, yardstick: Yardstick, first: Rows, second: Rows
) -> tuple[Rows, Rows]:
    """Those of these pairs that are as alike as the yardstick asks."""
    bits = differing_bits(like.hashes[first], like.hashes[second])
    near = bits <= yardstick.bits
    close = _close(like, like, yardstick, Found(first[near], second[near], None, bits[near]))
    return close.first, close.second


def _close(like: Likeness, theirs: Likeness, yardstick: Yardstick, found: Found) -> Found:
    """Copies, and those of the other pairs whose vectors are near too, with the distances."""
    if like.directions is None or theirs.directions is None:
        return found
    apart = np.empty(len(found.first), np.float32)
    for start in range(0, len(apart), _ROWS):
        part = slice(start, start + _ROWS)
        mine, others = like.directions[found.first[part]], theirs.directions[found.second[part]]
        apart[part] = 1 - (mine * others).sum(axis=1)
    limit = np.inf if yardstick.distance is None else yardstick.distance
    near = (apart <= limit) | (found.bits <= COPY_BITS)
    return Found(found.first[near], found.second[near], apart[near], found.bits[near])
