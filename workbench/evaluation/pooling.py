"""COCO's figures from match tables, for any weighting of the clusters that frames fall into.

Average precision pools the predictions of all frames by score, so it cannot be averaged over
drives. But it depends on a drive only through the running counts of its hits and false alarms,
and those can be added up with weights: a resample of drives is one matrix product instead of
another evaluation. With all weights one the result is COCOeval's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.evaluation.matching import IOU_THRESHOLDS, RECALL_THRESHOLDS, MatchTable
from workbench.evaluation.scene import Bools, Floats, Ints

_EPSILON = float(np.spacing(1.0))
_STEPS = len(RECALL_THRESHOLDS) - 1
_STEP = float(RECALL_THRESHOLDS[1])
_AT_ONCE = 64
"""Weightings whose curves are worked on together: small enough to stay in the cache."""


@dataclass(frozen=True)
class Pooled:
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


def pool(table: MatchTable, cluster: Ints, weights: Floats, threshold: float) -> Pooled:
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
        ap, ar = _curve_figures(
            table.hit[:, rows], table.ignored[:, rows], where, weights, positives
        )
        figures[0][:, k] = ap.mean(axis=0)
        figures[1][:, k] = ap[0]
        figures[2][:, k] = ar.mean(axis=0)
    return Pooled(figures[0], figures[1], figures[2], points[0], points[1], points[2])


def _operating_point(
    hit: Bools, ignored: Bools, where: Ints, acted: Bools, weights: Floats
) -> tuple[Floats, Floats]:
    clusters = weights.shape[1]
    hits = np.bincount(where[hit & acted], minlength=clusters)
    alarms = np.bincount(where[~hit & ~ignored & acted], minlength=clusters)
    return weights @ hits.astype(np.float64), weights @ alarms.astype(np.float64)


def _curve_figures(
    hit: Bools, ignored: Bools, where: Ints, weights: Floats, positives: Floats
) -> tuple[Floats, Floats]:
    """[t, r] average precision and greatest recall of one class that has truth."""
    ap = np.zeros((len(IOU_THRESHOLDS), len(weights)))
    ar = np.zeros_like(ap)
    for t in range(len(IOU_THRESHOLDS)):
        hits, alarms = _running(hit[t], ~hit[t] & ~ignored[t], where, weights.shape[1])
        if not hits.shape[1]:
            continue
        tp, fp = weights @ hits, weights @ alarms
        for low in range(0, len(weights), _AT_ONCE):
            rows = slice(low, low + _AT_ONCE)
            ap[t, rows], ar[t, rows] = _average_precision(tp[rows], fp[rows], positives[rows])
    there = positives > 0
    return np.where(there, ap, np.nan), np.where(there, ar, np.nan)


def _running(hit: Bools, alarm: Bools, where: Ints, clusters: int) -> tuple[Floats, Floats]:
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
    nearest = np.rint(recall * _STEPS)
    reached = nearest + (nearest * _STEP <= recall)
    new = reached[:, 1:] - reached[:, :-1]
    total = envelope[:, 0] * reached[:, 0] + np.einsum("rh,rh->r", envelope[:, 1:], new)
    return total / len(RECALL_THRESHOLDS), recall[:, -1]
