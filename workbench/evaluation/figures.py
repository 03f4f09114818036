"""What an evaluation hands on: figures with their intervals, and what each rests on."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from workbench.errors import ParameterError
from workbench.evaluation.slices import nearest
from workbench.records.base import Ref, Row

MetricName = Literal["ap", "ap50", "ar", "precision", "recall", "f1"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
EVERY_CLASS = "all"


class Settings(Row):
    """How to evaluate; part of the rules, so that no verdict depends on a hidden default."""

    threshold: float = Field(default=0.3, ge=0, le=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=1000, ge=100)
    seed: int = 0


class Figure(Row):
    """A value with its two-sided interval; None where there is nothing to measure."""

    value: float | None
    low: float | None = None
    high: float | None = None


class SliceMetrics(Row):
    """One slice and class. ``drives`` have frames in the slice, ``drives_with_boxes`` truth too.

    ``usable`` tells whether the intervals may decide a gate; ``method`` says how they were made.
    """

    slice: str
    cls: str
    frames: int
    drives: int
    drives_with_boxes: int
    boxes: int
    usable: bool
    method: str
    ap: Figure
    ap50: Figure
    ar: Figure
    precision: Figure
    recall: Figure
    f1: Figure
    tp: int
    fp: int
    fn: int


class Metrics(Row):
    """Everything measured of one model on one evaluation set.

    ``truth`` counts labels by origin: figures that rest on ``rendered`` or ``replayed`` labels
    are simulated, and ``simulated`` says so.
    """

    name: str
    dataset: Ref | None
    settings: Settings
    simulated: bool
    truth: dict[str, int]
    ignore_regions: int
    rows: tuple[SliceMetrics, ...]

    def at(self, part: str = "all", cls: str = EVERY_CLASS) -> SliceMetrics:
        """The row of a slice and class; raises `ParameterError` when it was not evaluated."""
        for row in self.rows:
            if (row.slice, row.cls) == (part, cls):
                return row
        slices = dict.fromkeys(row.slice for row in self.rows)
        classes = dict.fromkeys(row.cls for row in self.rows if row.slice == part)
        raise ParameterError(
            "not evaluated",
            where=f"slice {part!r}, class {cls!r}",
            hint=nearest(cls, list(classes)) if classes else nearest(part, list(slices)),
        )
