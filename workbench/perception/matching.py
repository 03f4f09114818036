"""Which predicted box belongs to which true one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.perception.boxes import Floats, iou_matrix

UNMATCHED = -1


def match(
    boxes: Floats,
    scores: Floats,
    truth: Floats,
    *,
    iou: float = 0.5,
    classes: NDArray[np.integer] | None = None,
    truth_classes: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """Greedy matching as in COCO: best score first, each takes the best truth still free.

    Args:
        boxes: Predicted, ``[n, 4]`` xyxy.
        scores: ``[n]``.
        truth: ``[m, 4]`` xyxy.
        iou: Smallest overlap that counts as a match.
        classes: ``[n]``; with ``truth_classes`` ``[m]``, only equal classes match.

    Returns:
        For each prediction the index of its truth, or `UNMATCHED`; ``[n]``.
    """
    overlap = _overlap(boxes, truth, classes, truth_classes)
    owner = np.full(len(boxes), UNMATCHED, np.int64)
    if not len(truth):
        return owner
    for index in np.argsort(-scores, kind="stable"):
        best = int(overlap[index].argmax())
        if overlap[index, best] >= iou:
            owner[index] = best
            overlap[:, best] = -1
    return owner


def match_optimal(
    first: Floats,
    second: Floats,
    *,
    iou: float = 0.5,
    classes: NDArray[np.integer] | None = None,
    second_classes: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """One-to-one matching of two sets of boxes with the largest total overlap (Hungarian method).

    Neither side ranks above the other, as for two labelers of one frame.

    Returns:
        Pairs of indices ``[k, 2]`` with at least ``iou`` overlap, ordered by the first.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = _overlap(first, second, classes, second_classes)
    # Pairs below the threshold must not be bought at the price of a valid one.
    worth = np.where(overlap >= iou, overlap, 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    pairs = np.stack([rows, columns], axis=1).astype(np.int64)
    chosen: NDArray[np.int64] = pairs[overlap[rows, columns] >= iou]
    return chosen


def _overlap(
    first: Floats,
    second: Floats,
    classes: NDArray[np.integer] | None,
    second_classes: NDArray[np.integer] | None,
) -> Floats:
    overlap = iou_matrix(first, second)
    if classes is not None and second_classes is not None:
        overlap = np.where(classes[:, None] == second_classes[None, :], overlap, -1.0)
    return overlap
