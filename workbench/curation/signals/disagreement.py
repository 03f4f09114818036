"""Disagreement between models, frame by frame.

Models may be checkpoints of one training (an ensemble: Lakshminarayanan et al. 2017), or a
candidate in shadow mode beside production. Only boxes are compared, so models may differ in
everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.detection.boxes import CONFIDENCE_THRESHOLD, iou_matrix

__all__ = ()

MATCH_IOU = 0.4
"""IoU from which two models' boxes of one class match."""


@dataclass(frozen=True)
class Disagreement:
    """Differences between models on ``n`` frames.

    Attributes:
        value: Float64 ``[n]``: scores of unmatched boxes, plus score differences of matched ones;
            the mean over all pairs of models.
        unmatched: Int64 ``[n]``: confident boxes (score 0.3 or more) of one model of a pair only.
    """

    value: NDArray[np.float64]
    unmatched: NDArray[np.int64]


def disagreement(pool: Embeddings, others: Sequence[Embeddings]) -> Disagreement:
    """Compare every pair of models on every frame.

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
    return Disagreement(value, unmatched)


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
    rows, columns = np.nonzero(overlap >= MATCH_IOU)
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
