"""How many more objects the candidate misses than the champion, from the frames that came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from workbench.core.errors import ParameterError
from workbench.deployment.runtime import AnswerBox
from workbench.detection.boxes import match_greedy

__all__ = ["estimate_difference"]

_IOU = 0.5


@dataclass(frozen=True)
class LabelledFrame:
    """A returned frame after labelling.

    Attributes:
        drive: The drive or vehicle it is from.
        probability: With which it was kept.
        difference: Objects that the candidate missed minus those that the champion missed.
    """

    drive: str
    probability: float
    difference: int


@dataclass(frozen=True)
class MissDifference:
    """Candidate minus champion, missed objects per frame; negative: the candidate misses fewer.

    Attributes:
        low, high: Of the interval at ``confidence``; infinite with fewer than two drives.
        labels: Frames that were labelled.
        frames: Frames that both models answered.
    """

    value: float
    low: float
    high: float
    confidence: float
    labels: int
    frames: int
    drives: int


def estimate_difference(
    labelled: Sequence[LabelledFrame],
    compared: Mapping[str, int],
    *,
    confidence: float = 0.95,
) -> MissDifference:
    """Estimate the difference in misses over all frames that both models answered.

    Each labelled frame stands for 1 / probability frames (Horvitz and Thompson, 1952). The sum over
    drives is divided by the number of frames, and the variance is that between drives
    (ultimate clusters: Hansen, Hurwitz and Madow, 1953; Särndal, Swensson and Wretman, 1992, 5.6),
    so the interval is about other drives like these.

    Args:
        labelled: All frames that were returned; one that was not labelled makes it biased.
        compared: Frames that both models answered, by drive.

    Raises:
        ParameterError: No frame was compared, or a frame has an unknown drive or no probability.
    """
    names = sorted(compared)
    frames = np.array([compared[name] for name in names], np.float64)
    if not frames.sum() > 0:
        raise ParameterError("no frame was answered by both models")
    number = {name: index for index, name in enumerate(names)}
    totals = np.zeros(len(names))
    for frame in labelled:
        if frame.drive not in number or not 0 < frame.probability <= 1:
            raise ParameterError(
                f"frame with probability {frame.probability}", where=f"drive {frame.drive}"
            )
        totals[number[frame.drive]] += frame.difference / frame.probability
    value = float(totals.sum() / frames.sum())
    margin = _margin(totals - value * frames, confidence) / float(frames.sum())
    return MissDifference(
        value=value,
        low=value - margin,
        high=value + margin,
        confidence=confidence,
        labels=len(labelled),
        frames=int(frames.sum()),
        drives=len(names),
    )


def _margin(residuals: NDArray[np.float64], confidence: float) -> float:
    """Half width of the interval of a sum of independent residuals."""
    drives = len(residuals)
    if drives < 2 or not residuals.any():
        return float("inf")
    variance = drives / (drives - 1) * float((residuals**2).sum())
    return float(stats.t.ppf(0.5 + confidence / 2, drives - 1) * np.sqrt(variance))


def missed(truth: Sequence[AnswerBox], boxes: Sequence[AnswerBox]) -> int:
    """Objects that an answer misses: none of its boxes of their class overlaps them (IoU 0.5)."""
    if not truth or not boxes:
        return len(truth)
    names = sorted({box.cls for box in (*truth, *boxes)})
    matched = match_greedy(
        np.array([box.xyxy for box in boxes]),
        np.array([box.score for box in boxes]),
        np.array([box.xyxy for box in truth]),
        iou=_IOU,
        classes=np.array([names.index(box.cls) for box in boxes]),
        truth_classes=np.array([names.index(box.cls) for box in truth]),
    )
    return len(truth) - int((matched >= 0).sum())
