"""Duplicates: frames that show the same picture, and frames that show nearly the same.

A copy takes a place in the budget and teaches nothing; a copy on both sides of a split flatters
every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.curation.hygiene.alike import Likeness, Yardstick, measure
from workbench.curation.hygiene.pairs import linked
from workbench.records.base import Digest, Row

SHARE = 0.1
"""Near duplicates are as alike as the closest tenth of consecutive frames: a car that stands."""


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
    near = [
        _cluster(different, rows, exact=False)
        for rows in linked(different, yardstick)
        if len(rows) > 1
    ]
    return Duplicates(_largest_first(exact), _largest_first(near), yardstick)


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
