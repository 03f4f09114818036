"""Boxes as numpy arrays: conversion, overlap, non-maximum suppression and matching.

A box is ``(x1, y1, x2, y2)`` in pixels: origin top left, x right, y down, continuous coordinates
(a box that covers exactly the first pixel is ``(0, 0, 1, 1)``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.records.frames import Box

__all__ = ["CONFIDENCE_THRESHOLD", "iou_matrix"]

Floats = NDArray[np.floating]

CONFIDENCE_THRESHOLD = 0.3
"""Score from which a predicted box counts as a detection, where a model has no operating point of
its own (`Model.threshold`): checkpoints, bundles from before there was one, parity, mining."""


def boxes_to_array(boxes: Iterable[Box]) -> NDArray[np.float32]:
    """Boxes of labels or predictions as float32 ``[n, 4]`` xyxy."""
    return as_boxes([box.xyxy for box in boxes])


def as_boxes(values: ArrayLike) -> NDArray[np.float32]:
    """A list or array of boxes as float32 ``[n, 4]``, also for an empty one."""
    return np.asarray(values, np.float32).reshape(-1, 4)


def xywh_to_xyxy(boxes: Floats) -> Floats:
    """Boxes ``[..., 4]`` from (x, y, width, height) to corners (x1, y1, x2, y2)."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def box_area(boxes: Floats) -> Floats:
    """Area of boxes ``[..., 4]`` in square pixels, ``[...]``; 0 for an inverted box."""
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    product: Floats = sides[..., 0] * sides[..., 1]
    return product


def clip_boxes(boxes: Floats, width: float, height: float) -> Floats:
    """Boxes ``[..., 4]`` clipped to an image of this size in pixels."""
    limit = np.array([width, height, width, height], boxes.dtype)
    clipped: Floats = np.clip(boxes, 0, limit)
    return clipped


def intersection_matrix(first: Floats, second: Floats) -> Floats:
    """Intersection area of every pair, ``[n, m]`` in square pixels."""
    x0, y0, x1, y1 = first.T[:, :, None]
    u0, v0, u1, v1 = second.T[:, None, :]
    # One contiguous array per coordinate is several times faster in numpy than [n, m, 2].
    width = np.minimum(x1, u1) - np.maximum(x0, u0)
    height = np.minimum(y1, v1) - np.maximum(y0, v0)
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    area: Floats = np.multiply(width, height, out=width)
    return area


def iou_matrix(first: Floats, second: Floats) -> Floats:
    """Intersection over union (IoU) of every pair of boxes.

    Args:
        first: ``[n, 4]`` xyxy.
        second: ``[m, 4]`` xyxy.

    Returns:
        ``[n, m]`` in [0, 1]; 0 where both boxes are empty.
    """
    intersection = intersection_matrix(first, second)
    union = box_area(first)[:, None] + box_area(second)[None, :] - intersection
    ratio: Floats = intersection / np.maximum(union, np.finfo(intersection.dtype).tiny)
    return ratio


def non_maximum_suppression(
    boxes: Floats, scores: Floats, classes: NDArray[np.integer], iou: float
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression within each class; equal scores keep the given order.

    Args:
        boxes: ``[n, 4]`` xyxy.
        scores: ``[n]``.
        classes: ``[n]``; boxes of different classes never suppress each other.
        iou: A box whose IoU with a better one is above this is dropped.

    Returns:
        Indices of the boxes kept, best first.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_classes = classes[order]
    kept = np.ones(len(order), bool)
    for cls in np.unique(sorted_classes):
        rows = np.flatnonzero(sorted_classes == cls)
        kept[rows] = _unsuppressed(boxes[order[rows]], iou)
    return order[kept]


def _unsuppressed(boxes: Floats, iou: float) -> NDArray[np.bool_]:
    """Mask of the boxes that survive; boxes are sorted by falling score."""
    suppresses = np.triu(iou_matrix(boxes, boxes) > iou, 1)
    kept = np.ones(len(boxes), bool)
    for index in np.flatnonzero(suppresses.any(axis=1)):
        if kept[index]:
            kept &= ~suppresses[index]
    return kept


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
    """Greedy matching as in COCO: by falling score, each prediction takes the best free truth.

    Args:
        boxes: Predicted, ``[n, 4]`` xyxy.
        scores: ``[n]``.
        truth: ``[m, 4]`` xyxy.
        iou: Smallest IoU of a match.
        classes: ``[n]``; with ``truth_classes`` ``[m]``, only equal classes match.

    Returns:
        Index of the matched truth of each prediction, or `UNMATCHED`, ``[n]``.
    """
    overlap = _class_overlap(boxes, truth, classes, truth_classes)
    matched = np.full(len(boxes), UNMATCHED, np.int64)
    if not len(truth):
        return matched
    for index in np.argsort(-scores, kind="stable"):
        best = int(overlap[index].argmax())
        if overlap[index, best] >= iou:
            matched[index] = best
            overlap[:, best] = -1
    return matched


def match_optimal(
    first: Floats,
    second: Floats,
    *,
    iou: float = 0.5,
    classes: NDArray[np.integer] | None = None,
    second_classes: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """One-to-one matching of two sets of boxes with the largest total IoU (Hungarian method).

    Symmetric, as needed for the boxes of two labelers.

    Args:
        first: ``[n, 4]`` xyxy.
        second: ``[m, 4]`` xyxy.
        iou: Smallest IoU of a match.
        classes: ``[n]``; with ``second_classes`` ``[m]``, only equal classes match.

    Returns:
        Pairs of indices ``[k, 2]``, ordered by the first.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = _class_overlap(first, second, classes, second_classes)
    # Pairs below the threshold must not displace a valid pair.
    rows, columns = linear_sum_assignment(np.where(overlap >= iou, overlap, 0.0), maximize=True)
    valid = overlap[rows, columns] >= iou
    return np.stack([rows[valid], columns[valid]], axis=1).astype(np.int64)


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
