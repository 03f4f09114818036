"""Results of an evaluation as records: settings, and metrics by slice and class with intervals."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from workbench.core.errors import ParameterError
from workbench.core.text import did_you_mean
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.records.base import FrozenModel, Ref

__all__ = ["EvaluationSettings"]

MetricName = Literal["ap", "ap50", "ar", "precision", "recall", "f1"]
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
ALL_CLASSES = "all"


class EvaluationSettings(FrozenModel):
    """Settings of an evaluation; part of the gate rules, so no verdict depends on a default.

    Attributes:
        threshold: Score of the operating point.
        confidence: Level of the intervals.
        resamples: Number of bootstrap resamples.
        seed: Of the resampling.
    """

    threshold: float = Field(default=CONFIDENCE_THRESHOLD, ge=0, le=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=1000, ge=100)
    seed: int = 0


class Estimate(FrozenModel):
    """A value with its two-sided confidence interval; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class SliceMetrics(FrozenModel):
    """Metrics of one slice and class.

    Attributes:
        drives: With frames in the slice.
        drives_with_boxes: With ground truth in the slice.
        boxes: Ground-truth boxes that count.
        usable: Whether the intervals may decide a gate.
        method: How the intervals were computed.
    """

    slice: str
    cls: str
    frames: int
    drives: int
    drives_with_boxes: int
    boxes: int
    usable: bool
    method: str
    ap: Estimate
    ap50: Estimate
    ar: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    tp: int
    fp: int
    fn: int


class EvaluationMetrics(FrozenModel):
    """All metrics of one model on one evaluation set.

    Attributes:
        simulated: Whether rendered or replayed data or labels are among the ground truth.
        truth: Number of labels by origin.
    """

    name: str
    dataset: Ref | None
    settings: EvaluationSettings
    simulated: bool
    truth: dict[str, int]
    ignore_regions: int
    rows: tuple[SliceMetrics, ...]

    def at(self, part: str = "all", cls: str = ALL_CLASSES) -> SliceMetrics:
        """The metrics of a slice and class.

        Raises:
            ParameterError: The slice or class was not evaluated.
        """
        for row in self.rows:
            if (row.slice, row.cls) == (part, cls):
                return row
        slices = dict.fromkeys(row.slice for row in self.rows)
        classes = dict.fromkeys(row.cls for row in self.rows if row.slice == part)
        raise ParameterError(
            "slice or class was not evaluated",
            where=f"slice {part!r}, class {cls!r}",
            hint=did_you_mean(cls, list(classes)) if classes else did_you_mean(part, list(slices)),
        )
