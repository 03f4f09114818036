"""Boxes as numpy arrays: conversion, overlap, non-maximum suppression and matching."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.records.frames import Box

Floats = NDArray[np.floating]

CONFIDENCE_THRESHOLD = 0.3
"""Score from which a predicted box counts as a detection: in metrics at the operating point,
plots, parity checks, pre-annotations and mining."""


def boxes_to_array(boxes: Iterable[Box]) -> NDArray[np.float32]:
    """Boxes of labels or predictions as float32 ``[n, 4]`` xyxy."""
    return as_boxes([box.xyxy for box in boxes])


def as_boxes(values: ArrayLike) -> NDArray[np.float32]:
    """Anything like a list of boxes as float32 ``[n, 4]``, also when there are none."""
    return np.asarray(values, np.float32).reshape(-1, 4)


def xywh_to_xyxy(boxes: Floats) -> Floats:
    """``[..., 4]`` (x, y, width, height) to corners."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def box_area(boxes: Floats) -> Floats:
    """Area in square pixels, ``[...]``; a box turned inside out has none."""
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    product: Floats = sides[..., 0] * sides[..., 1]
    return product


def clip_boxes(boxes: Floats, width: float, height: float) -> Floats:
    """Boxes cut at the image's edges."""
    limit = np.array([width, height, width, height], boxes.dtype)
    clipped: Floats = np.clip(boxes, 0, limit)
    return clipped


def intersection_matrix(first: Floats, second: Floats) -> Floats:
    """Common area of every pair, ``[n, m]`` square pixels."""
    x0, y0, x1, y1 = first.T[:, :, None]
    u0, v0, u1, v1 = second.T[:, None, :]
    # Each coordinate for itself is one long row of numbers, which numpy reads several times faster.
    across = np.minimum(x1, u1) - np.maximum(x0, u0)
    down = np.minimum(y1, v1) - np.maximum(y0, v0)
    np.maximum(across, 0, out=across)
    np.maximum(down, 0, out=down)
    common: Floats = np.multiply(across, down, out=across)
    return common


def iou_matrix(first: Floats, second: Floats) -> Floats:
    """Intersection over union of every pair, ``[n, m]`` in [0, 1]; 0 where both are empty."""
    common = intersection_matrix(first, second)
    union = box_area(first)[:, None] + box_area(second)[None, :] - common
    ratio: Floats = common / np.maximum(union, np.finfo(common.dtype).tiny)
    return ratio


def non_maximum_suppression(
    boxes: Floats, scores: Floats, classes: NDArray[np.integer], iou: float
) -> NDArray[np.intp]:
    """Greedy suppression within each class.

    Equal scores are taken in the order given, so the outcome never depends on a sort's whims.

    Args:
        boxes: ``[n, 4]`` xyxy.
        scores: ``[n]``.
        classes: ``[n]``; boxes of different classes never suppress each other.
        iou: A box that overlaps a better one by more than this is dropped.

    Returns:
        Indices of the boxes kept, best first.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_classes = classes[order]
    alive = np.ones(len(order), bool)
    for cls in np.unique(sorted_classes):
        rows = np.flatnonzero(sorted_classes == cls)
        alive[rows] = _unsuppressed(boxes[order[rows]], iou)
    kept: NDArray[np.intp] = order[alive]
    return kept


def _unsuppressed(boxes: Floats, iou: float) -> NDArray[np.bool_]:
    """Which boxes, best first, overlap no better one that is kept by more than ``iou``."""
    rivals = np.triu(iou_matrix(boxes, boxes) > iou, 1)
    alive = np.ones(len(boxes), bool)
    for index in np.flatnonzero(rivals.any(axis=1)):
        if alive[index]:
            alive &= ~rivals[index]
    return alive


# ---- Which predicted box belongs to which true one.


UNMATCHED = -1


def match_greedy(
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
    overlap = _class_overlap(boxes, truth, classes, truth_classes)
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

    overlap = _class_overlap(first, second, classes, second_classes)
    # Pairs below the threshold must not be bought at the price of a valid one.
    worth = np.where(overlap >= iou, overlap, 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    pairs = np.stack([rows, columns], axis=1).astype(np.int64)
    chosen: NDArray[np.int64] = pairs[overlap[rows, columns] >= iou]
    return chosen


def _class_overlap(
    first: Floats,
    second: Floats,
    classes: NDArray[np.integer] | None,
    second_classes: NDArray[np.integer] | None,
) -> Floats:
    overlap = iou_matrix(first, second)
    if classes is not None and second_classes is not None:
        overlap = np.where(classes[:, None] == second_classes[None, :], overlap, -1.0)
    return overlap
