"""COCO metrics: the reference implementation, and the same metrics for resampled drives."""

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

_IGNORED_AREA = 1e12
"""An area outside every range: COCO ignores truth outside the range without making it a crowd."""


@dataclass(frozen=True)
class CocoMetrics:
    """By class in the order of the slice's classes, NaN without truth; ``overall`` as COCOeval's.

    ``precision`` is [t, 101, k] and ``scores`` the same: the interpolated curve and the score
    at which each recall is reached.
    """

    ap: Floats
    ap50: Floats
    ar: Floats
    overall: tuple[float, float, float]
    precision: Floats
    scores: Floats


def coco_metrics(scene: EvaluationSet, part: Slice) -> CocoMetrics:
    """Run faster-coco-eval on one slice."""
    from faster_coco_eval import COCO, COCOeval_faster

    names = part.class_names(scene.schema)
    chosen = [cls + 1 for cls, name in enumerate(scene.classes) if name in names]
    images = [
        number + 1
        for number, frame in enumerate(scene.frames)
        if not part.frame or part.frame(frame)
    ]
    if not chosen or not images:
        return _empty_metrics(len(names))
    truth, found = _to_coco(scene, part, images, chosen)
    run = COCOeval_faster(COCO(truth), COCO(found), iouType="bbox")
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
        scores=np.reshape(run.eval["scores"], size),
    )


def _to_coco(
    scene: EvaluationSet, part: Slice, images: list[int], classes: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    frame = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number, "name": scene.classes[number - 1]} for number in classes],
    }
    truth, predicted = scene.truth, scene.predicted
    area = np.where(counted_truth(scene, part), truth.box[:, 2] * truth.box[:, 3], _IGNORED_AREA)
    there = _annotations(truth, images, classes, area=area, iscrowd=truth.crowd.astype(np.int64))
    size = predicted.box[:, 2] * predicted.box[:, 3]
    found = _annotations(predicted, images, classes, area=size, score=predicted.score)
    return {**frame, "annotations": there}, {**frame, "annotations": found}


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
    """Mean of what is there, in COCOeval's own order of summation."""
    there = value[~np.isnan(value)]
    return float(np.mean(there)) if there.size else float("nan")


def _empty_metrics(classes: int) -> CocoMetrics:
    empty = np.full(classes, np.nan)
    curve = np.full((10, 101, classes), np.nan)
    nan = float("nan")
    return CocoMetrics(empty, empty, empty, (nan, nan, nan), curve, curve)


# ---- COCO's figures from match tables, for any weighting of the clusters that frames fall into.
#
# Average precision pools the predictions of all frames by score, so it cannot be averaged over
# drives. But it depends on a drive only through the running counts of its hits and false alarms,
# and those can be added up with weights: a resample of drives is one matrix product instead of
# another evaluation. With all weights one the result is COCOeval's own.


_EPSILON = float(np.spacing(1.0))
_RECALL_STEPS = len(RECALL_THRESHOLDS) - 1
_RECALL_STEP = float(RECALL_THRESHOLDS[1])
_WEIGHTINGS_PER_BLOCK = 64
"""Weightings whose curves are worked on together: small enough to stay in the cache."""


@dataclass(frozen=True)
class PooledMetrics:
    """Figures of [r] weightings by [k] classes; NaN where a class has no truth.

    ``tp``, ``fp`` and ``positives`` count at the operating point: scores from the threshold on,
    IoU 0.5.
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
    """Pool the predictions of a slice with weights for the clusters of its frames.

    Args:
        cluster: Cluster of every frame of the scene, [f]; only the slice's frames are looked at.
        weights: How often each cluster counts, [r, c] whole numbers as float64.
        threshold: Score from which a prediction is acted on.
    """
    shape = (len(weights), len(table.classes))
    figures = [np.full(shape, np.nan) for _ in range(3)]
    points = [np.zeros(shape) for _ in range(3)]
    clusters = weights.shape[1]
    for k in range(len(table.classes)):
        truths = cluster[table.truth_frame[table.truth_cls == k]]
        positives = weights @ np.bincount(truths, minlength=clusters).astype(np.float64)
        rows = slice(*np.searchsorted(table.cls, [k, k + 1]))
        where, score = cluster[table.frame[rows]], table.score[rows]
        points[2][:, k] = positives
        points[0][:, k], points[1][:, k] = _operating_point(
            table.hit[0, rows], table.ignored[0, rows], where, score >= threshold, weights
        )
        if not len(truths):
            continue
        ap, ar = _curve_metrics(
            table.hit[:, rows], table.ignored[:, rows], where, weights, positives
        )
        figures[0][:, k] = ap.mean(axis=0)
        figures[1][:, k] = ap[0]
        figures[2][:, k] = ar.mean(axis=0)
    return PooledMetrics(figures[0], figures[1], figures[2], points[0], points[1], points[2])


def _operating_point(
    hit: Bools, ignored: Bools, where: Ints, acted: Bools, weights: Floats
) -> tuple[Floats, Floats]:
    clusters = weights.shape[1]
    hits = np.bincount(where[hit & acted], minlength=clusters)
    alarms = np.bincount(where[~hit & ~ignored & acted], minlength=clusters)
    return weights @ hits.astype(np.float64), weights @ alarms.astype(np.float64)


def _curve_metrics(
    hit: Bools, ignored: Bools, where: Ints, weights: Floats, positives: Floats
) -> tuple[Floats, Floats]:
    """[t, r] average precision and greatest recall of one class that has truth."""
    ap = np.zeros((len(IOU_THRESHOLDS), len(weights)))
    ar = np.zeros_like(ap)
    for t in range(len(IOU_THRESHOLDS)):
        hits, alarms = _running_counts(hit[t], ~hit[t] & ~ignored[t], where, weights.shape[1])
        if not hits.shape[1]:
            continue
        tp, fp = weights @ hits, weights @ alarms
        for low in range(0, len(weights), _WEIGHTINGS_PER_BLOCK):
            rows = slice(low, low + _WEIGHTINGS_PER_BLOCK)
            ap[t, rows], ar[t, rows] = _average_precision(tp[rows], fp[rows], positives[rows])
    there = positives > 0
    return np.where(there, ap, np.nan), np.where(there, ar, np.nan)


def _running_counts(hit: Bools, alarm: Bools, where: Ints, clusters: int) -> tuple[Floats, Floats]:
    """[c, h] hits and false alarms of each cluster down to each hit, by falling score.

    Precision rises only where there is a hit, so the envelope of the curve is decided there.
    """
    at = np.flatnonzero(hit)
    steps = np.zeros((2, clusters, len(at)))
    steps[0, where[at], np.arange(len(at))] = 1
    alarms = np.flatnonzero(alarm)
    before = np.searchsorted(at, alarms)
    inside = before < len(at)
    np.add.at(steps[1], (where[alarms[inside]], before[inside]), 1)
    running = np.cumsum(steps, axis=2)
    return running[0], running[1]


def _average_precision(tp: Floats, fp: Floats, positives: Floats) -> tuple[Floats, Floats]:
    """[r] precision interpolated at COCO's 101 recalls, averaged; and greatest recall.

    Instead of looking up every recall, each hit's precision counts once for every recall that
    is reached with it.
    """
    recall = tp / np.maximum(positives, 1)[:, None]
    precision = tp / (tp + fp + _EPSILON)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # How many recall thresholds are <= recall: rounding finds the nearest, and comparing with
    # that threshold's own float decides. Exact, and much faster than a search.
    nearest = np.rint(recall * _RECALL_STEPS)
    reached = nearest + (nearest * _RECALL_STEP <= recall)
    new = reached[:, 1:] - reached[:, :-1]
    total = envelope[:, 0] * reached[:, 0] + np.einsum("rh,rh->r", envelope[:, 1:], new)
    return total / len(RECALL_THRESHOLDS), recall[:, -1]
