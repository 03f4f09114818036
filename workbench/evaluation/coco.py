"""COCO metrics: the reference implementation, and the same metrics for resampled drives.

Average precision pools the predictions of all frames by score, so it is no mean over drives. But it
depends on a drive only through the cumulative counts of its hits and false positives, and
these can be added with weights: a resample of drives is one matrix product instead of another
evaluation. With all weights one the result equals COCOeval's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.data.slices import Slice
from workbench.evaluation.matching import (
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    RECALL_THRESHOLDS,
    Bools,
    EvaluationSet,
    Floats,
    GroundTruthBoxes,
    Ints,
    MatchTable,
    PredictedBoxes,
    counted_truth,
)

__all__ = ()

_IGNORED_AREA = 1e12
"""An area outside every range: COCO ignores such truth without treating it as a crowd."""


@dataclass(frozen=True)
class CocoMetrics:
    """COCO metrics of one slice; NaN for a class without ground truth.

    Attributes:
        ap: ``[k]`` by class, in the order of the slice's classes.
        ap50: ``[k]``.
        ar: ``[k]``.
        overall: AP, AP50 and AR of all classes.
        precision: ``[t, 101, k]`` interpolated precision at COCO's recall thresholds.
    """

    ap: Floats
    ap50: Floats
    ar: Floats
    overall: tuple[float, float, float]
    precision: Floats


def coco_metrics(data: EvaluationSet, part: Slice) -> CocoMetrics:
    """Metrics of one slice, computed by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    names = part.class_names(data.schema)
    chosen = [cls + 1 for cls, name in enumerate(data.classes) if name in names]
    images = [
        number + 1
        for number, frame in enumerate(data.frames)
        if not part.frame or part.frame(frame)
    ]
    if not chosen or not images:
        return _empty_metrics(len(names))
    truth, predictions = _to_coco(data, part, images, chosen)
    run = COCOeval_faster(COCO(truth), COCO(predictions), iouType="bbox")
    run.params.imgIds, run.params.catIds = images, chosen
    run.params.areaRng, run.params.areaRngLbl = [list(part.area)], [part.name]
    run.params.maxDets = [MAX_DETECTIONS]
    run.evaluate()
    run.accumulate()
    size = (len(run.params.iouThrs), len(run.params.recThrs), len(chosen))
    precision = _negative_to_nan(np.reshape(run.eval["precision"], size))
    recall = _negative_to_nan(np.reshape(run.eval["recall"], (size[0], size[2])))
    return CocoMetrics(
        ap=precision.mean(axis=(0, 1)),
        ap50=precision[0].mean(axis=0),
        ar=recall.mean(axis=0),
        overall=(
            _mean_without_nan(precision),
            _mean_without_nan(precision[0]),
            _mean_without_nan(recall),
        ),
        precision=precision,
    )


def _to_coco(
    data: EvaluationSet, part: Slice, images: list[int], classes: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    frame = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number, "name": data.classes[number - 1]} for number in classes],
    }
    truth, predicted = data.truth, data.predicted
    area = np.where(counted_truth(data, part), truth.box[:, 2] * truth.box[:, 3], _IGNORED_AREA)
    truths = _annotations(truth, images, classes, area=area, iscrowd=truth.crowd.astype(np.int64))
    size = predicted.box[:, 2] * predicted.box[:, 3]
    predictions = _annotations(predicted, images, classes, area=size, score=predicted.score)
    return {**frame, "annotations": truths}, {**frame, "annotations": predictions}


def _annotations(
    boxes: GroundTruthBoxes | PredictedBoxes,
    images: list[int],
    classes: list[int],
    **more: Floats | Ints,
) -> list[dict[str, Any]]:
    rows = np.flatnonzero(np.isin(boxes.frame + 1, images) & np.isin(boxes.cls + 1, classes))
    columns = {
        "id": rows + 1,
        "image_id": boxes.frame[rows] + 1,
        "category_id": boxes.cls[rows] + 1,
        "bbox": boxes.box[rows],
        **{name: value[rows] for name, value in more.items()},
    }
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _negative_to_nan(value: Floats) -> Floats:
    return np.where(value > -1, value, np.nan)


def _mean_without_nan(value: Floats) -> float:
    """Mean of the defined values, in COCOeval's order of summation."""
    defined = value[~np.isnan(value)]
    return float(np.mean(defined)) if defined.size else float("nan")


def _empty_metrics(classes: int) -> CocoMetrics:
    empty = np.full(classes, np.nan)
    curve = np.full((10, 101, classes), np.nan)
    nan = float("nan")
    return CocoMetrics(empty, empty, empty, (nan, nan, nan), curve)


_EPSILON = float(np.spacing(1.0))
_RECALL_STEPS = len(RECALL_THRESHOLDS) - 1
_RECALL_STEP = float(RECALL_THRESHOLDS[1])
_WEIGHTINGS_PER_BLOCK = 64
"""Resamples whose curves are computed together: small enough for the CPU cache."""


@dataclass(frozen=True)
class PooledMetrics:
    """Metrics ``[r, k]`` of r resamples and k classes; NaN for a class without ground truth.

    ``tp``, ``fp`` and ``positives`` are counts at the operating point, matched at IoU 0.5.
    """

    ap: Floats
    ap50: Floats
    ar: Floats
    tp: Floats
    fp: Floats
    positives: Floats


def pool_metrics(
    table: MatchTable, cluster: Ints, weights: Floats, threshold: float
) -> PooledMetrics:
    """Metrics of a slice for each weighting of the clusters of its frames.

    Args:
        table: Matches of the slice.
        cluster: ``[f]`` cluster of every frame of the evaluation set.
        weights: ``[r, c]`` how often each resample has each cluster, whole numbers as float64.
        threshold: Score of the operating point.
    """
    shape = (len(weights), len(table.classes))
    ap, ap50, ar = (np.full(shape, np.nan) for _ in range(3))
    tp, fp, positives = (np.zeros(shape) for _ in range(3))
    clusters = weights.shape[1]
    for k in range(len(table.classes)):
        truths = cluster[table.truth_frame[table.truth_cls == k]]
        positives[:, k] = weights @ np.bincount(truths, minlength=clusters).astype(np.float64)
        rows = slice(*np.searchsorted(table.cls, [k, k + 1]))
        hit, ignored = table.hit[:, rows], table.ignored[:, rows]
        where, above = cluster[table.frame[rows]], table.score[rows] >= threshold
        tp[:, k], fp[:, k] = _operating_point(hit[0], ignored[0], where, above, weights)
        if len(truths):
            precisions, recalls = _curve_metrics(hit, ignored, where, weights, positives[:, k])
            ap[:, k], ap50[:, k] = precisions.mean(axis=0), precisions[0]
            ar[:, k] = recalls.mean(axis=0)
    return PooledMetrics(ap, ap50, ar, tp, fp, positives)


def _operating_point(
    hit: Bools, ignored: Bools, where: Ints, above: Bools, weights: Floats
) -> tuple[Floats, Floats]:
    """``[r]`` true and false positives with a score above the threshold."""
    clusters = weights.shape[1]
    tp = np.bincount(where[hit & above], minlength=clusters)
    fp = np.bincount(where[~hit & ~ignored & above], minlength=clusters)
    return weights @ tp.astype(np.float64), weights @ fp.astype(np.float64)


def _curve_metrics(
    hit: Bools, ignored: Bools, where: Ints, weights: Floats, positives: Floats
) -> tuple[Floats, Floats]:
    """``[t, r]`` average precision and maximum recall of one class with ground truth."""
    ap = np.zeros((len(IOU_THRESHOLDS), len(weights)))
    ar = np.zeros_like(ap)
    for t in range(len(IOU_THRESHOLDS)):
        tp_of, fp_of = _cumulative_counts(hit[t], ~hit[t] & ~ignored[t], where, weights.shape[1])
        if not tp_of.shape[1]:
            continue
        tp, fp = weights @ tp_of, weights @ fp_of
        for low in range(0, len(weights), _WEIGHTINGS_PER_BLOCK):
            rows = slice(low, low + _WEIGHTINGS_PER_BLOCK)
            ap[t, rows], ar[t, rows] = _average_precision(tp[rows], fp[rows], positives[rows])
    defined = positives > 0
    return np.where(defined, ap, np.nan), np.where(defined, ar, np.nan)


def _cumulative_counts(
    hit: Bools, miss: Bools, where: Ints, clusters: int
) -> tuple[Floats, Floats]:
    """``[c, h]`` true and false positives of each cluster down to each hit, by falling score.

    Only the hits are needed: precision rises only at a hit, so they define the envelope.
    """
    at = np.flatnonzero(hit)
    steps = np.zeros((2, clusters, len(at)))
    steps[0, where[at], np.arange(len(at))] = 1
    misses = np.flatnonzero(miss)
    before = np.searchsorted(at, misses)
    inside = before < len(at)
    np.add.at(steps[1], (where[misses[inside]], before[inside]), 1)
    cumulative = np.cumsum(steps, axis=2)
    return cumulative[0], cumulative[1]


def _average_precision(tp: Floats, fp: Floats, positives: Floats) -> tuple[Floats, Floats]:
    """``[r]`` mean precision at COCO's 101 recall thresholds, and maximum recall.

    Instead of a search for each threshold, the precision of each hit is weighted with the number of
    thresholds that it is the first to reach.
    """
    recall = tp / np.maximum(positives, 1)[:, None]
    precision = tp / (tp + fp + _EPSILON)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Number of recall thresholds <= recall: rounding gives the nearest threshold, and comparing
    # with its float value decides. Exact, and much faster than a search.
    nearest = np.rint(recall * _RECALL_STEPS)
    reached = nearest + (nearest * _RECALL_STEP <= recall)
    new = reached[:, 1:] - reached[:, :-1]
    total = envelope[:, 0] * reached[:, 0] + np.einsum("rh,rh->r", envelope[:, 1:], new)
    return total / len(RECALL_THRESHOLDS), recall[:, -1]
