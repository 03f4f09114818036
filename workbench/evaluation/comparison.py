"""Two models on the same frames: by slice with paired intervals, and the frames that flipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.text import counted, html_table
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace
from workbench.data.slices import STANDARD_SLICES, Slice
from workbench.detection.model import Model
from workbench.evaluation.metrics import (
    Evaluation,
    MetricDifference,
    evaluate,
    holm_levels,
    one_sided_p,
    paired_difference,
)
from workbench.evaluation.results import ALL_CLASSES, EvaluationSettings, MetricName
from workbench.records.base import Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label
from workbench.records.types import ArmComparison

__all__ = ["compare", "compare_retrained"]

_SHOWN: tuple[MetricName, ...] = ("ap50", "precision", "recall")


@dataclass(frozen=True)
class FlippedFrame:
    """A frame with labels that only one of two models detected."""

    frame: Frame
    gained: tuple[Label, ...]
    lost: tuple[Label, ...]


@dataclass(frozen=True, repr=False)
class Comparison:
    """``second`` against ``first`` on the same frames, labels and settings.

    A difference is positive where ``second`` is better.
    """

    first: Evaluation
    second: Evaluation

    def difference(
        self, metric: MetricName, part: str = "all", cls: str = ALL_CLASSES
    ) -> MetricDifference:
        """``second`` minus ``first`` in one metric, with a paired interval over drives."""
        return paired_difference(self.second, self.first, metric, part, cls)

    def verdicts(self, metric: MetricName = "recall") -> dict[str, str]:
        """Slice to ``better``, ``worse`` or ``unknown``: what ``second`` is beside ``first``.

        Slices with fewer than 10 drives stay unknown. The others are tested on one side each, at
        levels corrected for their number by Holm's method: the chance that any ``better`` is wrong
        is at most one minus the confidence of the intervals, and so is that of any ``worse``.
        """
        rows = [row for row in self.first.metrics.rows if row.cls == ALL_CLASSES and row.boxes]
        verdicts = {row.slice: "unknown" for row in rows}
        tested = [row.slice for row in rows if row.usable]
        alpha = 1 - self.first.metrics.settings.confidence
        for word, above in (("better", True), ("worse", False)):
            p = [self._one_sided_p(name, metric, above=above) for name in tested]
            for name, one, level in zip(tested, p, holm_levels(p, alpha), strict=True):
                if one <= level:
                    verdicts[name] = word
        return verdicts

    def _one_sided_p(self, part: str, metric: MetricName, *, above: bool) -> float:
        key = (part, ALL_CLASSES, metric)
        change = self.second.samples[key] - self.first.samples[key]
        if not np.isfinite(change[0]) or change[0] == 0:
            return 1.0
        return one_sided_p(change, self.first.clusters[part].count, 0.0, above=above)

    def rows(self) -> tuple[Json, ...]:
        """One row a slice: verdict on recall, and the change of each metric with its interval."""
        return tuple(
            {
                "slice": part,
                "verdict": verdict,
                "boxes": self.first.metrics.at(part).boxes,
                "drives": self.first.metrics.at(part).drives_with_boxes,
                **{m: self.difference(m, part).estimate.model_dump() for m in _SHOWN},
            }
            for part, verdict in self.verdicts().items()
        )

    def report(self, path: str | Path, workspace: Workspace, *, pictures: int = 12) -> Path:
        """Write a page that a product owner can read: one HTML file, with pictures inside.

        Args:
            path: Where to write it.
            workspace: Holds the images.
            pictures: Most frames shown, those with the most lost labels first.
        """
        from workbench.evaluation.comparison_page import write_page

        return write_page(self, Path(path), workspace, pictures=pictures)

    def to_pandas(self) -> Any:
        """One row a slice, class and metric: both values, the difference and its interval."""
        import pandas as pd

        rows = []
        for row in self.first.metrics.rows:
            if not row.boxes:
                continue
            for metric in _SHOWN:
                change = self.difference(metric, row.slice, row.cls)
                other = self.second.metrics.at(row.slice, row.cls)
                rows.append(
                    {
                        "slice": row.slice,
                        "class": row.cls,
                        "metric": metric,
                        "first": getattr(row, metric).value,
                        "second": getattr(other, metric).value,
                        "difference": change.estimate.value,
                        "low": change.estimate.low,
                        "high": change.estimate.high,
                        "boxes": row.boxes,
                        "drives": row.drives_with_boxes,
                    }
                )
        return pd.DataFrame(rows)

    def flipped(self, part: str = "all") -> tuple[FlippedFrame, ...]:
        """Frames with labels that only one model detected, most lost labels first."""
        before, after = (set(_detected(one, part)) for one in (self.first, self.second))
        changes: dict[int, tuple[list[Label], list[Label]]] = {}
        labels = self.first.data.labels
        for side, numbers in enumerate((after - before, before - after)):
            for frame, label in sorted(numbers):
                changes.setdefault(frame, ([], []))[side].append(labels[label])
        flipped = [
            FlippedFrame(self.first.data.frames[frame], tuple(gained), tuple(lost))
            for frame, (gained, lost) in changes.items()
        ]
        return tuple(
            sorted(flipped, key=lambda one: (-len(one.lost), -len(one.gained), one.frame.id))
        )

    def plot(self, metric: MetricName = "recall") -> Any:
        """Both models on every slice, each with its interval; a matplotlib figure."""
        from workbench.evaluation.plots import metrics_by_slice

        return metrics_by_slice(self.second, self.first, metric=metric)

    def __repr__(self) -> str:
        changed = self.difference("ap50").estimate
        return f"Comparison({self.second.name!r} minus {self.first.name!r}: AP50 {changed})"

    def _repr_html_(self) -> str:
        rows = [
            [row.slice, f"{row.boxes:,}"]
            + [str(self.difference(metric, row.slice).estimate) for metric in _SHOWN]
            for row in self.first.metrics.rows
            if row.cls == ALL_CLASSES and row.boxes
        ]
        title = f"{self.second.name} minus {self.first.name}"
        return html_table(title, rows, ["slice", "boxes", "AP50", "precision", "recall"])


def compare(
    first: Model,
    second: Model,
    dataset: Dataset,
    slices: Sequence[Slice] = STANDARD_SLICES,
    *,
    settings: EvaluationSettings | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Predict with both models on ``dataset`` and compare them on every slice.

    Args:
        first: The model in use, such as the champion.
        second: The candidate.
        dataset: Frames that neither learned from, such as ``dataset.role("safety")``.
        slices: Named parts of the truth, each compared on its own.
        settings: Score threshold, confidence level, number of resamples and seed.
        progress: Called with the number of frames predicted and their total, for each model.

    Raises:
        DataError: No frames, or labels or predictions that cannot be used.
    """
    evaluations = (
        evaluate(model.predict(dataset, progress=progress), slices, settings=settings)
        for model in (first, second)
    )
    return Comparison(*evaluations)


def _detected(evaluation: Evaluation, part: str) -> Iterator[tuple[int, int]]:
    """Frame and label of every true positive at the operating point."""
    table = evaluation.tables[part]
    confident = table.score >= evaluation.metrics.settings.threshold
    rows = zip(table.truth_frame, table.truth_label, table.matched_by, strict=True)
    for frame, label, row in rows:
        if row >= 0 and confident[row]:
            yield int(frame), int(label)


_OVERALL_METRICS: tuple[MetricName, ...] = ("ap", "ap50", "recall")


def compare_retrained(
    mined: Evaluation, control: Evaluation, classes: Sequence[str] = ()
) -> tuple[ArmComparison, ...]:
    """Compare models trained on frames chosen by mining and on control frames.

    Args:
        mined: Evaluation of the model trained with mined frames.
        control: Evaluation of the model trained with control frames, on the same frames.
        classes: Rare classes whose AP50 and recall are compared as well.

    Raises:
        ParameterError: They were evaluated on other frames, labels or settings.
    """
    wanted: list[tuple[MetricName, str]] = [(metric, ALL_CLASSES) for metric in _OVERALL_METRICS]
    for cls in dict.fromkeys(classes):
        wanted += [("ap50", cls), ("recall", cls)]
    return tuple(_compare_retrained_metric(mined, control, metric, cls) for metric, cls in wanted)


def _compare_retrained_metric(
    mined: Evaluation, control: Evaluation, metric: MetricName, cls: str
) -> ArmComparison:
    change = paired_difference(mined, control, metric, cls=cls)
    row = mined.metrics.at(cls=cls)
    control_row = control.metrics.at(cls=cls)
    estimate = change.estimate
    verdict, why = Verdict.INSUFFICIENT, ""
    if estimate.value is None:
        why = "no predictions" if row.boxes else f"no such box in {counted(row.frames, 'frame')}"
    elif not change.usable:
        why = f"{counted(row.drives, 'drive')}, too few to generalise to other drives"
    elif estimate.low is not None and estimate.low > 0:
        verdict = Verdict.PASS
    elif estimate.high is not None and estimate.high < 0:
        verdict = Verdict.FAIL
    else:
        why = "the interval includes 0"
    drives = f"{row.drives} drive{'s' * (row.drives != 1)}"
    return ArmComparison(
        figure=f"{metric} of {'all classes' if cls == ALL_CLASSES else cls}, retrained",
        change="difference",
        mined=getattr(row, metric).value,
        control=getattr(control_row, metric).value,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        verdict=verdict,
        drives=row.drives,
        unit=drives if change.usable else f"blocks of time of {drives}",
        why=why,
    )
