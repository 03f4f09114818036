"""Is a confidence of 0.8 right in 80 of 100 boxes? And from which confidence on is a box acted on?

The reliability curve compares the mean confidence of boxes with their precision, in bins of
confidence; the expected calibration error is the mean absolute difference, weighted by the number
of boxes (Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
2015; for detectors Kueppers et al., "Multivariate Confidence Calibration for Object Detection",
CVPR workshops 2020). A box is right when it matches a label at IoU 0.5; boxes that count neither
way are left out. Few boxes in a bin make the error larger, never smaller, so compare models on the
same frames only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from workbench.core.text import counted
from workbench.data import resampling
from workbench.data.slices import ALL_FRAMES
from workbench.detection.bundles import OperatingPoint
from workbench.detection.model import Predictions
from workbench.evaluation.matching import Bools, Floats, Ints, build_evaluation_set, match_slice
from workbench.evaluation.metrics import Evaluation, estimate, ratio_samples
from workbench.evaluation.results import Estimate
from workbench.records.base import FrozenModel

__all__ = ["OperatingPointRule", "choose_operating_point"]

_BINS = 10
_LOWEST = 0.05
"""Boxes below this score are noise that no threshold would act on."""


class ReliabilityBin(FrozenModel):
    """Boxes with a confidence in ``[low, high)``; the last bin includes 1."""

    low: float
    high: float
    boxes: int
    confidence: float
    precision: Estimate


class Calibration(FrozenModel):
    """Reliability curve and expected calibration error on one slice.

    Attributes:
        boxes: Predictions with a score of at least ``lowest`` that count.
        lowest: Lowest score considered.
        bias: Mean confidence minus precision; positive when the model is too sure of itself.
    """

    slice: str
    lowest: float
    boxes: int
    drives: int
    error: Estimate
    bias: float | None
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class ResampledCalibration:
    """A `Calibration` with ``[1 + r]`` values of the error: of all drives, then of resamples."""

    metrics: Calibration
    samples: Floats


def calibration(evaluation: Evaluation, part: str = ALL_FRAMES.name) -> ResampledCalibration:
    """Reliability of the confidence on one slice, with intervals over drives.

    Args:
        evaluation: Of the model.
        part: Name of the slice.
    """
    table, clusters = evaluation.tables[part], evaluation.clusters[part]
    settings = evaluation.metrics.settings
    counts = (table.score >= _LOWEST) & ~table.ignored[0]
    score, hit = table.score[counts], table.hit[0][counts]
    of = clusters.of[table.frame[counts]]
    size = max(1, clusters.count)
    weights = resampling.draw_resamples(size, settings.resamples, settings.seed)
    number = np.minimum((score * _BINS).astype(np.int64), _BINS - 1)
    key = of * _BINS + number

    def sums(values: Floats | None = None) -> Floats:
        flat = np.bincount(key, weights=values, minlength=size * _BINS)
        return flat.reshape(size, _BINS).astype(np.float64)

    boxes, right, scores = sums(), sums(hit.astype(np.float64)), sums(score)
    # |confidence - precision| of a bin, weighted by its share of the boxes, is |sums' difference|.
    gap = np.abs(weights @ (scores - right)).sum(axis=1)
    total = (weights @ boxes).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        samples: Floats = gap / total
    found = range(_BINS)
    bins = tuple(
        ReliabilityBin(
            low=number / _BINS,
            high=(number + 1) / _BINS,
            boxes=int(boxes[:, number].sum()),
            confidence=float(scores[:, number].sum() / boxes[:, number].sum()),
            precision=estimate(
                ratio_samples(right[:, number], boxes[:, number], weights),
                clusters.count,
                settings.confidence,
            ),
        )
        for number in found
        if boxes[:, number].any()
    )
    metrics = Calibration(
        slice=part,
        lowest=_LOWEST,
        boxes=len(score),
        drives=clusters.drives,
        error=estimate(samples, clusters.count, settings.confidence),
        bias=float(score.mean() - hit.mean()) if len(score) else None,
        bins=bins,
    )
    return ResampledCalibration(metrics, samples)


class OperatingPointRule(FrozenModel):
    """How the confidence threshold is chosen on frames that judge nothing else.

    Attributes:
        role: Role of the frames.
        precision: The lowest threshold at which precision is at least this.
        min_boxes: Labels that it takes; with fewer the fixed threshold stays.
    """

    role: str = "val"
    precision: float = Field(gt=0, lt=1)
    min_boxes: int = Field(default=200, ge=1)


def choose_operating_point(
    predictions: Predictions, rule: OperatingPointRule, fixed: float
) -> OperatingPoint:
    """The lowest threshold whose precision reaches the rule's, on frames that judge nothing.

    Precision does not grow evenly with the threshold: the threshold taken is the lowest from which
    on precision never falls below the aim again, up to where fewer than 20 boxes are left.

    Args:
        predictions: On the frames of the rule's role, down to a low score.
        rule: What to reach.
        fixed: Threshold that stays where too few labels, or no threshold, reach it.

    Raises:
        DataError: Labels or predictions are invalid.
    """
    frames = counted(len(predictions.dataset.frames), "frame")
    what = f"precision of at least {rule.precision:.0%} on {frames} of role {rule.role}"
    labels = sum(not label.ignore for label in predictions.dataset.labels)
    if labels < rule.min_boxes:
        lacking = f"{counted(labels, 'label')}, {rule.min_boxes} needed"
        return OperatingPoint(threshold=fixed, how=f"fixed: {what}: {lacking}")
    data = build_evaluation_set(predictions.dataset, predictions)
    table = match_slice(data, ALL_FRAMES)
    counts = ~table.ignored[0]
    boxes = len(table.truth_frame)
    score, precision, recall = _curve(table.score[counts], table.hit[0][counts], boxes)
    below = np.flatnonzero((precision < rule.precision) & (np.arange(len(score)) >= _FEWEST))
    end = int(below[0]) if len(below) else len(score)
    if end <= _FEWEST:
        return OperatingPoint(threshold=fixed, how=f"fixed: no threshold has a {what}")
    last = end - 1
    return OperatingPoint(
        threshold=float(score[last]),
        how=f"lowest with a {what}",
        precision=float(precision[last]),
        recall=float(recall[last]),
    )


_FEWEST = 20


def _curve(score: Floats, hit: Bools, boxes: int) -> tuple[Floats, Floats, Floats]:
    """Threshold, precision and recall after each box by falling score."""
    order: Ints = np.argsort(-score, kind="stable")
    right = np.cumsum(hit[order])
    count = np.arange(1, len(order) + 1)
    return score[order], right / count, right / max(1, boxes)
