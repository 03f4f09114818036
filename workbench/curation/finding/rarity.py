"""Rarity: which frames of a pool are unlike what is labelled, compared only with their like.

Density over a whole pool finds nothing: it ranks night above day and rain above sun, because the
condition moves a vector more than any object does. What helps is ranking within condition, and
objects within class and size. Each signal becomes a rank in (0, 1) within its condition, the ranks
are fused, and the result is ranked within condition again:

    novelty       how unlike any labelled object, and any of other drives, its objects are
    doubt         how low a large and whole box's score is
    entropy       how unsure the detector is, summed over its boxes
    objects       how far its oddest object lies from the labelled ones of its class and size
    frame         how far the whole frame lies from the labelled frames
    tiles         how far its oddest tile lies from labelled tiles at the same place, box or no box
    disagreement  how much other models' boxes differ, where there are other models
    typicality    how much it is the middle of its cluster, for when almost nothing is labelled
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.finding import signals as looks
from workbench.curation.finding.disagreement import disagreement
from workbench.curation.finding.novelty import doubt, novelty
from workbench.curation.finding.ranks import Fusion, fuse, merged, rank_within
from workbench.curation.finding.signals import SIZES, size_of, unsure
from workbench.curation.finding.typicality import typicality
from workbench.errors import DataError, ParameterError

__all__ = ["SIGNALS", "SIZES", "WEIGHTS", "Scores", "merged", "rank_within", "score", "size_of"]

SIGNALS = ("novelty", "doubt")
"""Asked by default; ``disagreement`` joins them when other models are given."""

WEIGHTS: Mapping[str, float] = {
    "novelty": 3.0,
    "doubt": 1.0,
    "entropy": 1.0,
    "objects": 1.0,
    "frame": 1.0,
    "tiles": 1.0,
    "disagreement": 1.0,
    "typicality": 1.0,
}


@dataclass(frozen=True)
class Scores:
    """Scores of ``n`` frames, in the order of the embeddings; ranks in [0, 1], 1 is rarest.

    Attributes:
        fused: Float64 ``[n]``: the signals' ranks as one, ranked again in its condition.
        ranks: Float64 ``[n, s]``, columns as in ``names``.
        condition: The group that a frame was compared with.
        oddest: Index into the embeddings' objects, -1 where a frame has none.
        unsure: Int64 ``[n]``: boxes with a score that is neither here nor there.
        names: The signals.
        weights: What each of them counts, summing to one.
        oddest_tile: Index into the embeddings' tiles, -1 where they were not asked.
        alone: Int64 ``[n]``: boxes that one model believes in and another does not have.
    """

    fused: NDArray[np.float64]
    ranks: NDArray[np.float64]
    condition: tuple[str, ...]
    oddest: NDArray[np.int64]
    unsure: NDArray[np.int64]
    names: tuple[str, ...] = SIGNALS
    weights: tuple[float, ...] = ()
    oddest_tile: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    alone: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def score(  # noqa: PLR0913 - what is compared with what, and how
    pool: Embeddings,
    labelled: Embeddings | None,
    conditions: Sequence[str],
    *,
    known_conditions: Sequence[str] | None = None,
    signals: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    fusion: Fusion = "tail",
    other_models: Sequence[Embeddings] = (),
    drives: Sequence[str] | None = None,
    neighbours: int = 3,
) -> Scores:
    """Rank a pool's frames by how much labeling them should teach.

    Args:
        pool: The candidates.
        labelled: What is labelled already; None or empty makes everything equally far from it.
        conditions: Light, weather and so on of each frame, such as ``night, rain``. Groups of
            fewer than 20 frames are compared together.
        known_conditions: The same of each labelled frame; things are then compared with labelled
            ones of their own condition, where there are enough.
        signals: Some of the module's list; by default `SIGNALS`, and ``disagreement`` when there
            are ``other_models``.
        weights: Of some signals, the others keep theirs of `WEIGHTS`.
        fusion: See `workbench.curation.finding.ranks.fuse`.
        other_models: The pool through other models, see `disagreement`.
        drives: The drive of each frame of the pool; what is common in other drives is then no
            longer new, labelled or not.
        neighbours: Labelled things that a distance is the mean to.

    Raises:
        DataError: Not one condition a frame; a vector that is not finite; vectors of another model.
        ParameterError: An unknown signal, or weights that are none.
    """
    asked = _asked(signals, other_models)
    _check(pool, labelled, conditions, known_conditions)
    if drives is not None and len(drives) != len(pool.frames):
        raise DataError(f"{len(drives)} drives for {len(pool.frames)} frames", where="drives")
    if labelled is not None and not len(labelled.frames):
        labelled = None
    groups = merged(conditions)
    known = _known_groups(labelled, groups, known_conditions)
    look = _Look(pool, labelled, groups, known, tuple(other_models), neighbours)
    look.drives = drives
    ranks = np.stack([rank_within(*look.at(name)) for name in asked], axis=1)
    shares = [{**WEIGHTS, **(weights or {})}[name] for name in asked]
    return Scores(
        fused=rank_within(fuse(ranks, shares, fusion), groups),
        ranks=ranks,
        condition=tuple(groups),
        oddest=look.oddest,
        unsure=unsure(pool),
        names=asked,
        weights=tuple(share / sum(shares) for share in shares),
        oddest_tile=look.oddest_tile,
        alone=look.alone,
    )


class _Look:
    """One pool looked at by several signals, and which object and tile stood out."""

    def __init__(
        self,
        pool: Embeddings,
        labelled: Embeddings | None,
        groups: list[str],
        known: list[str],
        others: tuple[Embeddings, ...],
        neighbours: int,
    ) -> None:
        self.pool, self.labelled, self.others = pool, labelled, others
        self.groups, self.known, self.neighbours = groups, known, neighbours
        self.drives: Sequence[str] | None = None
        self.oddest = np.full(len(pool.frames), -1, np.int64)
        self.oddest_tile = self.oddest.copy()
        self.alone = np.zeros(len(pool.frames), np.int64)

    def at(self, name: str) -> tuple[NDArray[np.floating], list[str]]:
        """A signal's value of each frame, and the groups to rank it in."""
        compared = (self.pool, self.labelled, self.groups, self.known, self.neighbours)
        values: NDArray[np.floating]
        if name == "entropy":
            return self.pool.entropy, self.groups
        if name == "frame":
            return looks.frame_distance(*compared), self.groups
        if name == "doubt":
            return doubt(self.pool), self.groups
        if name == "novelty":
            values, self.oddest = novelty(self.pool, self.labelled, self.drives, self.neighbours)
        elif name == "objects":
            values, self.oddest = looks.odd_objects(*compared)
        elif name == "tiles":
            values, self.oddest_tile = looks.odd_tiles(*compared)
        elif name == "disagreement":
            found = disagreement(self.pool, self.others)
            values, self.alone = found.value, found.alone
        else:
            values = typicality(self.pool, self.groups)
        return values, self.groups


def _asked(signals: Sequence[str] | None, others: Sequence[Embeddings]) -> tuple[str, ...]:
    if signals is None:
        return (*SIGNALS, "disagreement") if others else SIGNALS
    asked = tuple(dict.fromkeys(signals))
    strange = [name for name in asked if name not in WEIGHTS]
    if strange or not asked:
        raise ParameterError(
            f"unknown signal {strange[0]}" if strange else "no signal was asked for",
            where="signals",
            hint=f"Known are {', '.join(WEIGHTS)}",
        )
    if "disagreement" in asked and not others:
        raise ParameterError(
            "disagreement needs another model",
            where="signals",
            hint="Embed the same frames with a second checkpoint and give it as other_models",
        )
    return asked


def _check(
    pool: Embeddings,
    labelled: Embeddings | None,
    conditions: Sequence[str],
    known_conditions: Sequence[str] | None,
) -> None:
    if len(conditions) != len(pool.frames):
        raise DataError(
            f"{len(conditions)} conditions for {len(pool.frames)} frames", where="conditions"
        )
    if labelled is None:
        return
    if known_conditions is not None and len(known_conditions) != len(labelled.frames):
        raise DataError(
            f"{len(known_conditions)} conditions for {len(labelled.frames)} labelled frames",
            where="known_conditions",
        )
    if (pool.model, pool.preprocessing) != (labelled.model, labelled.preprocessing):
        raise DataError(
            "pool and labelled frames were embedded by different models",
            where=f"{pool.model[:12]} against {labelled.model[:12]}",
            hint="Embed both with the same one",
        )


def _known_groups(
    labelled: Embeddings | None, groups: list[str], conditions: Sequence[str] | None
) -> list[str]:
    """Groups of the labelled frames, by the pool's names; unknown ones are alike to nobody."""
    if labelled is None:
        return []
    if conditions is None:
        return [""] * len(labelled.frames)
    return [name if name in set(groups) else "" for name in conditions]
