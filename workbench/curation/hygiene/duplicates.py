"""Duplicates: frames that show the same picture, and frames that show nearly the same.

A copy takes a place in the budget and teaches nothing; a copy on both sides of a split flatters
every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.curation.hygiene.alike import COPY_BITS, Likeness, Yardstick, measure
from workbench.curation.hygiene.fingerprints import differing_bits
from workbench.records.base import Digest, Row

SHARE = 0.1
"""Near duplicates are as alike as the closest tenth of consecutive frames: a car that stands."""

_ROWS = _COLUMNS = 1024


class Cluster(Row):
    """Frames linked by likeness, the one to keep first: the first of its drive.

    ``exact`` where all show the same pixels; ``drives`` counts the drives they are from.
    """

    frames: tuple[Digest, ...]
    exact: bool
    drives: int


@dataclass(frozen=True)
class Duplicates:
    """Clusters, largest first, and what counted as near."""

    exact: tuple[Cluster, ...]
    near: tuple[Cluster, ...]
    yardstick: Yardstick

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """All of them, the exact ones first."""
        return (*self.exact, *self.near)

    @property
    def surplus(self) -> int:
        """Frames that could go without losing a picture."""
        return sum(len(cluster.frames) - 1 for cluster in self.clusters)


def find(like: Likeness, pixels: Sequence[str], yardstick: Yardstick | None = None) -> Duplicates:
    """Exact and near duplicates among ``n`` frames.

    Of each group of equal pictures one takes part in the search for near ones, so a pool of one
    picture costs one comparison.

    Args:
        pixels: Digests of decoded pixels, ``n``.
        yardstick: How alike is near; measured on the frames themselves by default. One that
            could not be measured finds copies only.
    """
    yardstick = yardstick or measure(like, SHARE)
    groups: dict[str, list[int]] = {}
    for row in sorted(range(len(like.frames)), key=lambda row: _order(like, row)):
        groups.setdefault(pixels[row], []).append(row)
    exact = [_cluster(like, rows, exact=True) for rows in groups.values() if len(rows) > 1]
    different = like.rows(rows[0] for rows in groups.values())
    links = ((found.first, found.second) for found in pairs_within(different, yardstick))
    near = [
        _cluster(different, rows, exact=False)
        for rows in components(len(groups), links)
        if len(rows) > 1
    ]
    return Duplicates(_largest_first(exact), _largest_first(near), yardstick)


@dataclass(frozen=True)
class Found:
    """Pairs of rows: int64 ``[k]`` both, cosine distances float32 ``[k]`` or None, bits ``[k]``."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.float32] | None
    bits: NDArray[np.uint16]


def pairs_within(
    like: Likeness, yardstick: Yardstick, other: Likeness | None = None
) -> Iterator[Found]:
    """Pairs of frames that are as alike as the yardstick asks, a block of comparisons at a time.

    Hashes are compared first, all with all: an exclusive-or and a count a pair. Vectors are only
    asked about the few pairs that pass. Memory is that of one block, however many pairs there are.

    Args:
        other: Compared with these instead of with each other; ``second`` is then a row of theirs.
    """
    theirs = other or like
    for start in range(0, len(like.hashes), _ROWS):
        block = like.hashes[start : start + _ROWS, None, :]
        for reach in range(0 if other else start, len(theirs.hashes), _COLUMNS):
            bits = differing_bits(block, theirs.hashes[None, reach : reach + _COLUMNS, :])
            rows, columns = np.nonzero(bits <= yardstick.bits)
            counts = bits[rows, columns]
            first, second = rows + start, columns + reach
            if other is None:
                later = second > first
                first, second, counts = first[later], second[later], counts[later]
            if len(first):
                yield _close(like, theirs, yardstick, Found(first, second, None, counts))


def components(
    count: int, links: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> list[list[int]]:
    """Connected groups of ``count`` rows, each ascending, in order of their first row.

    Args:
        links: Blocks of linked rows. They are merged as they come, so memory stays that of a block.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels = np.arange(count)
    for first, second in links:
        ones = np.ones(len(first), bool)
        graph = coo_array((ones, (labels[first], labels[second])), (count, count))
        labels = connected_components(graph, directed=False)[1][labels]
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [part.tolist() for part in np.split(order, cuts)] if count else []
    return sorted(groups)


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


def _order(like: Likeness, row: int) -> tuple[str, int, str]:
    frame = like.frames[row]
    return (frame.drive, frame.index, frame.id)


def _cluster(like: Likeness, rows: Sequence[int], *, exact: bool) -> Cluster:
    ordered = sorted(rows, key=lambda row: _order(like, row))
    return Cluster(
        frames=tuple(like.frames[row].id for row in ordered),
        exact=exact,
        drives=len({like.frames[row].drive for row in ordered}),
    )


def _largest_first(clusters: Iterable[Cluster]) -> tuple[Cluster, ...]:
    return tuple(sorted(clusters, key=lambda one: (-len(one.frames), one.frames)))
