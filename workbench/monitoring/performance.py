"""How good a model is on drives without labels, estimated from its own confidences.

On labelled reference drives it is learned how often a box of a score is right (isotonic regression:
Zadrozny & Elkan 2002). On unlabelled drives the mean of these probabilities estimates the precision
(confidence-based estimation, as for classifiers in Guillory et al. 2021 and Garg et al. 2022). For
the recall, the expected right boxes above the threshold are compared with those at any score; the
share of objects that have no box at any score is taken from the reference.

Both assume that a score means what it meant on the reference, and that as many objects are not seen
at all. A new kind of object breaks that, and no confidence tells: the estimate is checked against
labels as soon as there are any. Intervals resample whole drives, of reference and current alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import short_repr

__all__ = ["check_estimate", "estimate_performance"]

_CONFIDENCE = 0.95
_BINS = 50
_MIN_DRIVES = 10


@short_repr
@dataclass(frozen=True)
class ScoredDrive:
    """Boxes of one drive, at every score that the model gives.

    Attributes:
        scores: ``[N]`` in [0, 1].
        right: Whether each box is right, ``[N]``; None without labels.
        objects: Number of labelled objects; None without labels.
    """

    scores: NDArray[np.float64]
    right: NDArray[np.bool_] | None = None
    objects: int | None = None


@dataclass(frozen=True)
class Interval:
    """A value and its interval, 95 %, over drives."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Estimated precision and recall at a threshold, and how many drives that rests on."""

    precision: Interval
    recall: Interval
    threshold: float
    drives: tuple[int, int]


@dataclass(frozen=True)
class EstimateCheck:
    """An estimate beside what labels said later.

    Attributes:
        precision, recall: Measured minus estimated, with an interval.
        holds: Whether both intervals contain 0.
    """

    precision: Interval
    recall: Interval
    holds: bool


def estimate_performance(
    reference: Sequence[ScoredDrive],
    current: Sequence[ScoredDrive],
    threshold: float,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Estimate:
    """Estimate precision and recall on drives without labels.

    Args:
        reference: Labelled drives of the same model.
        current: Drives whose labels, if any, are not looked at.
        threshold: Score from which a box counts.
        resamples: Bootstrap samples of drives.
        seed: Of the bootstrap.

    Raises:
        ParameterError: A reference drive has no labels.
        DataError: There are fewer than 10 drives of either kind, or no boxes.
    """
    if any(one.right is None or one.objects is None for one in reference):
        raise ParameterError("every reference drive needs labels")
    if min(len(reference), len(current)) < _MIN_DRIVES:
        raise DataError(
            f"{len(reference)} reference and {len(current)} current drives, at least "
            f"{_MIN_DRIVES} each are needed"
        )
    rng = np.random.default_rng(seed)
    value = _estimate(reference, current, threshold)
    samples = [
        _estimate(
            [reference[i] for i in rng.integers(0, len(reference), len(reference))],
            [current[i] for i in rng.integers(0, len(current), len(current))],
            threshold,
            rng,
        )
        for _ in range(resamples)
    ]
    precision, recall = (
        _interval(value[which], [one[which] for one in samples]) for which in (0, 1)
    )
    return Estimate(precision, recall, threshold, (len(reference), len(current)))


def check_estimate(
    reference: Sequence[ScoredDrive],
    labelled: Sequence[ScoredDrive],
    threshold: float,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> EstimateCheck:
    """Compare the estimate with what the labels of the current drives say.

    Both are resampled together, so that the interval is that of their difference.

    Raises:
        ParameterError: A drive has no labels.
    """
    if any(one.right is None or one.objects is None for one in (*reference, *labelled)):
        raise ParameterError("every drive needs labels to check an estimate")
    rng = np.random.default_rng(seed)

    def difference(old: Sequence[ScoredDrive], new: Sequence[ScoredDrive]) -> tuple[float, float]:
        estimated, measured = _estimate(old, new, threshold), _measure(new, threshold)
        return measured[0] - estimated[0], measured[1] - estimated[1]

    value = difference(reference, labelled)
    samples = [
        difference(
            [reference[i] for i in rng.integers(0, len(reference), len(reference))],
            [labelled[i] for i in rng.integers(0, len(labelled), len(labelled))],
        )
        for _ in range(resamples)
    ]
    precision, recall = (
        _interval(value[which], [one[which] for one in samples]) for which in (0, 1)
    )
    holds = all(one.low <= 0 <= one.high for one in (precision, recall))
    return EstimateCheck(precision, recall, holds)


def _estimate(
    reference: Sequence[ScoredDrive],
    current: Sequence[ScoredDrive],
    threshold: float,
    rng: np.random.Generator | None = None,
) -> tuple[float, float]:
    """Precision and recall; with ``rng`` boxes are drawn right or wrong, as labels will be."""
    scores = np.concatenate([one.scores for one in reference])
    right = np.concatenate([np.asarray(one.right, np.float64) for one in reference])
    new = np.concatenate([one.scores for one in current])
    if not len(scores) or not len(new):
        raise DataError("no boxes to estimate from")
    chance = _calibrated(scores, right, new)
    if rng is not None:
        chance = (rng.random(len(chance)) < chance).astype(np.float64)
    counted = new >= threshold
    precision = float(chance[counted].mean()) if counted.any() else float("nan")
    objects = sum(one.objects or 0 for one in reference)
    seen = right.sum() / objects if objects else float("nan")  # at any score
    recall = float(chance[counted].sum() / chance.sum() * seen) if chance.sum() > 0 else 0.0
    return precision, min(recall, 1.0)


def _measure(drives: Sequence[ScoredDrive], threshold: float) -> tuple[float, float]:
    scores = np.concatenate([one.scores for one in drives])
    right = np.concatenate([np.asarray(one.right, np.float64) for one in drives])
    counted = scores >= threshold
    objects = sum(one.objects or 0 for one in drives)
    precision = float(right[counted].mean()) if counted.any() else float("nan")
    return precision, float(right[counted].sum() / objects) if objects else float("nan")


def _calibrated(
    scores: NDArray[np.float64], right: NDArray[np.float64], new: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Probability that a box of a score is right; it rises with the score.

    Learned in bins of equally many boxes, and linear between their mean scores.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, _BINS + 1)[1:-1]))
    place = np.searchsorted(edges, scores, side="right")
    weight = np.bincount(place, minlength=len(edges) + 1).astype(np.float64)
    centre = np.bincount(place, weights=scores, minlength=len(edges) + 1)
    total = np.bincount(place, weights=right, minlength=len(edges) + 1)
    blocks: list[list[float]] = []  # right boxes, boxes, bins: pool adjacent violators
    for good, boxes in zip(total, weight, strict=True):
        blocks.append([good, boxes, 1])
        while len(blocks) > 1 and _share(blocks[-2]) >= _share(blocks[-1]):
            last = blocks.pop()
            blocks[-1] = [one + other for one, other in zip(blocks[-1], last, strict=True)]
    levels = np.concatenate([np.full(int(block[2]), _share(block)) for block in blocks])
    filled = weight > 0
    return np.asarray(np.interp(new, centre[filled] / weight[filled], levels[filled]))


def _share(block: Sequence[float]) -> float:
    return block[0] / block[1] if block[1] else 0.0


def _interval(value: float, samples: Sequence[float]) -> Interval:
    known = np.array([one for one in samples if np.isfinite(one)])
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))
