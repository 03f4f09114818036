"""Disagreement between models, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.detection.boxes import CONFIDENCE_THRESHOLD, iou_matrix

MATCH_IOU = 0.4
"""Overlap (IoU) from which two models' boxes of one class mean the same thing."""


@dataclass(frozen=True)
class Disagreement:
    """What ``n`` frames' models differ in.

    Attributes:
        value: Float64 ``[n]``: scores of boxes that only one model of a pair has, plus the gaps
            between the scores of boxes that both have, the mean over all pairs.
        alone: Int64 ``[n]``: boxes believed (score 0.3 or more) by one model of a pair only.
    """

    value: NDArray[np.float64]
    alone: NDArray[np.int64]


def disagreement(pool: Embeddings, others: Sequence[Embeddings]) -> Disagreement:
    """Compare every pair of models on every frame.

    Args:
        pool: What one model saw, such as production.
        others: The same frames through other models of the same classes.

    Raises:
        DataError: Other frames, or other classes.
    """
    models = [pool, *others]
    for other in others:
        _check_comparable(pool, other)
    value, alone = np.zeros(len(pool.frames)), np.zeros(len(pool.frames), np.int64)
    pairs = [(a, b) for a in range(len(models)) for b in range(a + 1, len(models))]
    bounds = [np.searchsorted(m.owner, np.arange(len(m.frames) + 1)) for m in models]
    for a, b in pairs:
        for frame in range(len(pool.frames)):
            one = slice(bounds[a][frame], bounds[a][frame + 1])
            two = slice(bounds[b][frame], bounds[b][frame + 1])
            gap, lone = _frame_disagreement(models[a], one, models[b], two)
            value[frame] += gap / len(pairs)
            alone[frame] += lone
    return Disagreement(value, alone)


def _frame_disagreement(one: Embeddings, a: slice, two: Embeddings, b: slice) -> tuple[float, int]:
    """Summed gaps of one frame, and how many believed boxes stand alone."""
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
    lone = int((first >= CONFIDENCE_THRESHOLD).sum() + (second >= CONFIDENCE_THRESHOLD).sum())
    return gap + float(first.sum()) + float(second.sum()), lone


def _greedy_matches(overlap: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pairs of rows and columns, each used once, best overlap first (greedy, as in scoring)."""
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
            "the models did not see the same frames",
            where=f"{missing} of {len(pool.frames)} frames are missing, or in another order",
            hint="Embed the same list of frames with every model; leave out what one left out",
        )
    if other.class_names != pool.class_names:
        raise DataError(
            "the models do not know the same classes",
            where=f"{', '.join(other.class_names)} against {', '.join(pool.class_names)}",
            hint="Compare models that were trained on the same label schema",
        )
