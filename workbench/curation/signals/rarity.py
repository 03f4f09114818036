"""Rarity: several signals, ranked within condition and fused into one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals import single_model
from workbench.curation.signals.disagreement import disagreement
from workbench.curation.signals.single_model import (
    Fusion,
    count_uncertain,
    doubt,
    fuse_ranks,
    merge_small_groups,
    novelty,
    rank_within,
    typicality,
)

__all__ = [
    "DEFAULT_SIGNALS",
    "SIGNAL_WEIGHTS",
    "RarityScores",
    "rank_within",
    "score_rarity",
]

DEFAULT_SIGNALS = ("novelty", "doubt")
"""Asked by default; ``disagreement`` joins them when other models are given."""

SIGNAL_WEIGHTS: Mapping[str, float] = {
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
class RarityScores:
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
    names: tuple[str, ...] = DEFAULT_SIGNALS
    weights: tuple[float, ...] = ()
    oddest_tile: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    alone: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def score_rarity(  # noqa: PLR0913 - what is compared with what, and how
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
) -> RarityScores:
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
        fusion: See `workbench.curation.signals.single_model.fuse_ranks`.
        other_models: The pool through other models, see `disagreement`.
        drives: The drive of each frame of the pool; what is common in other drives is then no
            longer new, labelled or not.
        neighbours: Labelled things that a distance is the mean to.

    Raises:
        DataError: Not one condition a frame; a vector that is not finite; vectors of another model.
        ParameterError: An unknown signal, or weights that are none.
    """
    asked = _requested_signals(signals, other_models)
    _check_inputs(pool, labelled, conditions, known_conditions)
    if drives is not None and len(drives) != len(pool.frames):
        raise DataError(f"{len(drives)} drives for {len(pool.frames)} frames", where="drives")
    if labelled is not None and not len(labelled.frames):
        labelled = None
    groups = merge_small_groups(conditions)
    known = _known_groups(labelled, groups, known_conditions)
    look = _SignalRun(pool, labelled, groups, known, tuple(other_models), neighbours)
    look.drives = drives
    ranks = np.stack([rank_within(*look.at(name)) for name in asked], axis=1)
    shares = [{**SIGNAL_WEIGHTS, **(weights or {})}[name] for name in asked]
    return RarityScores(
        fused=rank_within(fuse_ranks(ranks, shares, fusion), groups),
        ranks=ranks,
        condition=tuple(groups),
        oddest=look.oddest,
        unsure=count_uncertain(pool),
        names=asked,
        weights=tuple(share / sum(shares) for share in shares),
        oddest_tile=look.oddest_tile,
        alone=look.alone,
    )


class _SignalRun:
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
            return single_model.frame_distance(*compared), self.groups
        if name == "doubt":
            return doubt(self.pool), self.groups
        if name == "novelty":
            values, self.oddest = novelty(self.pool, self.labelled, self.drives, self.neighbours)
        elif name == "objects":
            values, self.oddest = single_model.object_outliers(*compared)
        elif name == "tiles":
            values, self.oddest_tile = single_model.tile_outliers(*compared)
        elif name == "disagreement":
            found = disagreement(self.pool, self.others)
            values, self.alone = found.value, found.alone
        else:
            values = typicality(self.pool, self.groups)
        return values, self.groups


def _requested_signals(
    signals: Sequence[str] | None, others: Sequence[Embeddings]
) -> tuple[str, ...]:
    if signals is None:
        return (*DEFAULT_SIGNALS, "disagreement") if others else DEFAULT_SIGNALS
    asked = tuple(dict.fromkeys(signals))
    strange = [name for name in asked if name not in SIGNAL_WEIGHTS]
    if strange or not asked:
        raise ParameterError(
            f"unknown signal {strange[0]}" if strange else "no signal was asked for",
            where="signals",
            hint=f"Known are {', '.join(SIGNAL_WEIGHTS)}",
        )
    if "disagreement" in asked and not others:
        raise ParameterError(
            "disagreement needs another model",
            where="signals",
            hint="Embed the same frames with a second checkpoint and give it as other_models",
        )
    return asked


def _check_inputs(
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
