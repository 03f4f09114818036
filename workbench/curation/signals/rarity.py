"""Rarity: several signals, ranked within condition and fused into one score.

Density over a whole pool finds nothing: it ranks night above day and rain above sun, because the
condition moves a vector more than any object does. So frames are ranked within condition, and
objects within class and size. Each signal becomes a rank in (0, 1) within its condition, the ranks
are fused, and the result is ranked within condition again:

    watch         how much it shows of a watch list, such as motorcycles and rail vehicles
    novelty       how unlike any labelled object, and any of other drives, its objects are
    doubt         how low the score of a large, uncropped box is
    entropy       uncertainty of the detector, summed over its boxes
    objects       distance of its oddest object to labelled ones of its class and size
    frame         distance of the whole frame to labelled frames
    tiles         distance of its oddest tile to labelled tiles at the same position
    disagreement  how much other models' boxes differ, where there are other models
    typicality    closeness to the centre of its cluster, for when almost nothing is labelled
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals.disagreement import disagreement
from workbench.curation.signals.single_model import (
    count_uncertain,
    doubt,
    frame_distance,
    fuse_ranks,
    merge_small_groups,
    novelty,
    object_outliers,
    rank_within,
    tile_outliers,
    typicality,
)
from workbench.curation.signals.words import Word, WordEvidence, watch

__all__ = ()

DEFAULT_SIGNALS = ("novelty", "doubt")
"""Used by default on rendered drives, with ``disagreement`` when there are other models. On real
ones both are at or below chance."""

DEFAULT_SIGNALS_WITH_WORDS = ("watch",)
"""The same on real drives, where the words of a watch list can be looked for."""

SIGNAL_WEIGHTS: Mapping[str, float] = {
    "watch": 1.0,
    "novelty": 3.0,
    "doubt": 1.0,
    "entropy": 1.0,
    "objects": 1.0,
    "frame": 1.0,
    "tiles": 1.0,
    "disagreement": 1.0,
    "typicality": 1.0,
}
"""All signals, and their default weights."""


@dataclass(frozen=True)
class RarityScores:
    """Scores of ``n`` frames, in the order of the embeddings; ranks in [0, 1], 1 is rarest.

    Attributes:
        fused: Float64 ``[n]``: the fused ranks, ranked again within condition.
        ranks: Float64 ``[n, s]``, columns as in ``names``.
        condition: Group that a frame was compared with.
        oddest: Index into the embeddings' objects, -1 for none.
        uncertain: Int64 ``[n]``: boxes with an uncertain score.
        names: The signals.
        weights: Weight of each signal, summing to one.
        oddest_tile: Index into the embeddings' tiles, -1 for none; empty without the signal.
        unmatched: Int64 ``[n]``: confident boxes that only one of the models has.
        watched: Evidence for the words of the watch list; None without the signal.
        watch_list: The words.
    """

    fused: NDArray[np.float64]
    ranks: NDArray[np.float64]
    condition: tuple[str, ...]
    oddest: NDArray[np.int64]
    uncertain: NDArray[np.int64]
    names: tuple[str, ...] = DEFAULT_SIGNALS
    weights: tuple[float, ...] = ()
    oddest_tile: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    unmatched: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    watched: WordEvidence | None = None
    watch_list: tuple[Word, ...] = ()


def score_rarity(  # noqa: PLR0913 - inputs of the comparison, and how to compare
    pool: Embeddings,
    labelled: Embeddings | None,
    conditions: Sequence[str],
    *,
    known_conditions: Sequence[str] | None = None,
    signals: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    other_models: Sequence[Embeddings] = (),
    drives: Sequence[str] | None = None,
    neighbours: int = 3,
    watch_list: Sequence[Word] = (),
) -> RarityScores:
    """Rank a pool's frames by how much labeling them should teach.

    Args:
        pool: The candidates.
        labelled: What is labelled already; with None or nothing, all distances are equal.
        conditions: Light, weather and so on of each frame, such as ``night, rain``. Groups of
            fewer than 20 frames are ranked together.
        known_conditions: The same of each labelled frame; frames and objects are then compared
            with labelled ones of their own condition, where there are enough.
        signals: Names in `SIGNAL_WEIGHTS`; by default `DEFAULT_SIGNALS`, and ``disagreement``
            when there are ``other_models``.
        weights: Override some of `SIGNAL_WEIGHTS`.
        other_models: The pool embedded by other models, see `disagreement`.
        drives: Drive of each frame of the pool; what is common in other drives is then not novel.
        neighbours: Labelled neighbours that a distance is averaged over.
        watch_list: Words of the signal ``watch``; the pool's words must have a vocabulary.

    Raises:
        DataError: Lengths differ, a vector is not finite, or models differ.
        ParameterError: An unknown signal, or invalid weights.
    """
    names = _requested_signals(signals, other_models, watch_list)
    _check_inputs(pool, labelled, conditions, known_conditions)
    if drives is not None and len(drives) != len(pool.frames):
        raise DataError(f"{len(drives)} drives for {len(pool.frames)} frames", where="drives")
    if labelled is not None and not len(labelled.frames):
        labelled = None
    # Words are compared over the whole pool, see `workbench.curation.signals.words`.
    groups = ["all"] * len(conditions) if "watch" in names else merge_small_groups(conditions)
    known = _known_groups(labelled, groups, known_conditions)
    run = _SignalRun(pool, labelled, groups, known, other_models, drives, neighbours)
    run.watch_list = tuple(watch_list)
    ranks = np.stack([rank_within(run.values(name), groups) for name in names], axis=1)
    shares = [{**SIGNAL_WEIGHTS, **(weights or {})}[name] for name in names]
    return RarityScores(
        fused=rank_within(fuse_ranks(ranks, shares), groups),
        ranks=ranks,
        condition=tuple(groups),
        oddest=run.oddest,
        uncertain=count_uncertain(pool),
        names=names,
        weights=tuple(share / sum(shares) for share in shares),
        oddest_tile=run.oddest_tile,
        unmatched=run.unmatched,
        watched=run.watched,
        watch_list=run.watch_list,
    )


class _SignalRun:
    """Computes signals of one pool, and keeps which object and tile of a frame stood out.

    To add a signal, write its function in `single_model`, then add it here and to
    `SIGNAL_WEIGHTS`.
    """

    def __init__(
        self,
        pool: Embeddings,
        labelled: Embeddings | None,
        groups: list[str],
        known_groups: list[str],
        other_models: Sequence[Embeddings],
        drives: Sequence[str] | None,
        neighbours: int,
    ) -> None:
        self.pool, self.labelled, self.groups = pool, labelled, groups
        self.other_models, self.drives, self.neighbours = other_models, drives, neighbours
        self._compared = (pool, labelled, groups, known_groups, neighbours)
        self.oddest = np.full(len(pool.frames), -1, np.int64)
        self.oddest_tile = self.oddest.copy()
        self.unmatched = np.zeros(len(pool.frames), np.int64)
        self.watch_list: tuple[Word, ...] = ()
        self.watched: WordEvidence | None = None

    def values(self, name: str) -> NDArray[np.floating]:
        """A signal's value of each frame ``[n]``."""
        values: NDArray[np.floating]
        match name:
            case "watch":
                self.watched = watch(self.pool, self.watch_list)
                values = self.watched.value
            case "novelty":
                values, self.oddest = novelty(
                    self.pool, self.labelled, self.drives, self.neighbours
                )
            case "doubt":
                values = doubt(self.pool)
            case "entropy":
                values = self.pool.entropy
            case "objects":
                values, self.oddest = object_outliers(*self._compared)
            case "frame":
                values = frame_distance(*self._compared)
            case "tiles":
                values, self.oddest_tile = tile_outliers(*self._compared)
            case "disagreement":
                result = disagreement(self.pool, self.other_models)
                values, self.unmatched = result.value, result.unmatched
            case _:
                values = typicality(self.pool, self.groups)
        return values


def _requested_signals(
    signals: Sequence[str] | None, others: Sequence[Embeddings], watch_list: Sequence[Word]
) -> tuple[str, ...]:
    if signals is None:
        return (*DEFAULT_SIGNALS, "disagreement") if others else DEFAULT_SIGNALS
    names = tuple(dict.fromkeys(signals))
    unknown = [name for name in names if name not in SIGNAL_WEIGHTS]
    if unknown or not names:
        raise ParameterError(
            f"unknown signal {unknown[0]}" if unknown else "no signal given",
            where="signals",
            hint=f"Signals: {', '.join(SIGNAL_WEIGHTS)}",
        )
    if "watch" in names and not watch_list:
        raise ParameterError(
            "the signal watch needs a watch list", where="signals", hint="Pass read_watch_list()"
        )
    if "disagreement" in names and not others:
        raise ParameterError(
            "the signal disagreement needs another model",
            where="signals",
            hint="Embed the same frames with a second checkpoint and pass it as other_models",
        )
    return names


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
            where=f"{pool.model[:12]} and {labelled.model[:12]}",
            hint="Embed both with the same model",
        )


def _known_groups(
    labelled: Embeddings | None, groups: list[str], conditions: Sequence[str] | None
) -> list[str]:
    """Groups of the labelled frames, by the pool's names; empty for a condition unknown there."""
    if labelled is None:
        return []
    if conditions is None:
        return [""] * len(labelled.frames)
    return [name if name in set(groups) else "" for name in conditions]
