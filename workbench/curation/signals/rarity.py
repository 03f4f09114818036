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
from workbench.detection.boxes import CONFIDENCE_THRESHOLD, iou_matrix

__all__ = ()


_MATCH_IOU = 0.4
"""IoU from which two models' boxes of one class match."""


@dataclass(frozen=True)
class _Disagreement:
    """Differences between models on ``n`` frames.

    Attributes:
        value: Float64 ``[n]``: scores of unmatched boxes, plus score differences of matched ones;
            the mean over all pairs of models.
        unmatched: Int64 ``[n]``: confident boxes (score 0.3 or more) of one model of a pair only.
    """

    value: NDArray[np.float64]
    unmatched: NDArray[np.int64]


def disagreement(pool: Embeddings, others: Sequence[Embeddings]) -> _Disagreement:
    """Compare every pair of models on every frame.

    Models may be checkpoints of one training (an ensemble: Lakshminarayanan et al. 2017), or a
    candidate in shadow mode beside production. Only boxes are compared, so models may differ in
    everything else.

    Args:
        pool: Embeddings by one model, such as production.
        others: The same frames by other models with the same classes.

    Raises:
        DataError: Frames or classes differ.
    """
    models = [pool, *others]
    for other in others:
        _check_comparable(pool, other)
    value, unmatched = np.zeros(len(pool.frames)), np.zeros(len(pool.frames), np.int64)
    pairs = [(a, b) for a in range(len(models)) for b in range(a + 1, len(models))]
    bounds = [np.searchsorted(m.owner, np.arange(len(m.frames) + 1)) for m in models]
    for a, b in pairs:
        for frame in range(len(pool.frames)):
            one = slice(bounds[a][frame], bounds[a][frame + 1])
            two = slice(bounds[b][frame], bounds[b][frame + 1])
            gap, count = _frame_disagreement(models[a], one, models[b], two)
            value[frame] += gap / len(pairs)
            unmatched[frame] += count
    return _Disagreement(value, unmatched)


def _frame_disagreement(one: Embeddings, a: slice, two: Embeddings, b: slice) -> tuple[float, int]:
    """Summed differences of one frame, and its number of confident unmatched boxes."""
    first, second = one.scores[a].copy(), two.scores[b].copy()
    if len(first) and len(second):
        overlap = iou_matrix(one.boxes[a], two.boxes[b])
        overlap[one.classes[a][:, None] != two.classes[b][None, :]] = 0.0
    else:
        overlap = np.zeros((len(first), len(second)), np.float32)
    gap = 0.0
    for row, column in _greedy_matches(overlap):
        gap += abs(float(first[row]) - float(second[column]))
        first[row] = second[column] = 0.0
    unmatched = int((first >= CONFIDENCE_THRESHOLD).sum() + (second >= CONFIDENCE_THRESHOLD).sum())
    return gap + float(first.sum()) + float(second.sum()), unmatched


def _greedy_matches(overlap: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pairs of rows and columns, each used once, best IoU first, as in COCO matching."""
    rows, columns = np.nonzero(overlap >= _MATCH_IOU)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    pairs: list[tuple[int, int]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for index in order.tolist():
        row, column = int(rows[index]), int(columns[index])
        if row not in used_rows and column not in used_columns:
            pairs.append((row, column))
            used_rows.add(row)
            used_columns.add(column)
    return pairs


def _check_comparable(pool: Embeddings, other: Embeddings) -> None:
    if other.frames != pool.frames:
        missing = len(set(pool.frames) - set(other.frames))
        raise DataError(
            "the models were run on different frames",
            where=f"{missing} of {len(pool.frames)} frames are missing, or in another order",
            hint="Embed the same frames with every model, without those that one of them skipped",
        )
    if other.class_names != pool.class_names:
        raise DataError(
            "the models have different classes",
            where=f"{', '.join(other.class_names)} and {', '.join(pool.class_names)}",
            hint="Compare models trained on the same label schema",
        )


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
