"""Metrics of a model by class and slice, with confidence intervals, and comparisons of two models."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import Field

from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.text import did_you_mean
from workbench.data import resampling
from workbench.data.slices import STANDARD_SLICES, Slice
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.evaluation import bootstrap, matching
from workbench.evaluation.bootstrap import Clusters
from workbench.evaluation.coco import CocoMetrics, PooledMetrics, coco_metrics, pool_metrics
from workbench.evaluation.matching import EvaluationSet, Floats, MatchTable, match_slice
from workbench.records.base import FrozenModel, Ref, Verdict
from workbench.records.dataset import Dataset
from workbench.records.types import ArmComparison, Prediction

MetricName = Literal["ap", "ap50", "ar", "precision", "recall", "f1"]
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
ALL_CLASSES = "all"


class EvaluationSettings(FrozenModel):
    """How to evaluate; part of the rules, so that no verdict depends on a hidden default."""

    threshold: float = Field(default=CONFIDENCE_THRESHOLD, ge=0, le=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=1000, ge=100)
    seed: int = 0


class Estimate(FrozenModel):
    """A value with its two-sided interval; None where there is nothing to measure."""

    value: float | None
    low: float | None = None
    high: float | None = None


class SliceMetrics(FrozenModel):
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
    """Everything measured of one model on one evaluation set.

    ``truth`` counts labels by origin: figures that rest on ``rendered`` or ``replayed`` labels
    are simulated, and ``simulated`` says so.
    """

    name: str
    dataset: Ref | None
    settings: EvaluationSettings
    simulated: bool
    truth: dict[str, int]
    ignore_regions: int
    rows: tuple[SliceMetrics, ...]

    def at(self, part: str = "all", cls: str = ALL_CLASSES) -> SliceMetrics:
        """The row of a slice and class; raises `ParameterError` when it was not evaluated."""
        for row in self.rows:
            if (row.slice, row.cls) == (part, cls):
                return row
        slices = dict.fromkeys(row.slice for row in self.rows)
        classes = dict.fromkeys(row.cls for row in self.rows if row.slice == part)
        raise ParameterError(
            "not evaluated",
            where=f"slice {part!r}, class {cls!r}",
            hint=did_you_mean(cls, list(classes)) if classes else did_you_mean(part, list(slices)),
        )


# ---- A model's figures by class and slice, each with its interval and with what it rests on.
#
# evaluated = evaluate(dataset.role(Role.SAFETY), predictions, name="int8")
# evaluated.metrics.at("light=night").recall.value
#
# AP, AP50 and AR are COCO's, computed by faster-coco-eval; for all classes together they are the
# mean over the classes with truth. Precision, recall and F1 are those of the operating point: the
# predictions that score at least ``Settings.threshold``, matched at IoU 0.5, all classes pooled.


_REFERENCE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Evaluation:
    """Metrics with what they were made from, for comparing, judging and drawing.

    Attributes:
        samples: (slice, class, metric) to [1 + r] values: the sample's own, then the resamples'.
        tables: Slice to what matched what.
        curves: Slice to COCO's interpolated precision.
    """

    metrics: EvaluationMetrics
    scene: EvaluationSet
    samples: Mapping[tuple[str, str, MetricName], Floats]
    tables: Mapping[str, MatchTable]
    curves: Mapping[str, CocoMetrics]
    clusters: Mapping[str, Clusters]

    @property
    def name(self) -> str:
        return self.metrics.name


def evaluate(
    dataset: Dataset,
    predictions: Sequence[Prediction],
    slices: Sequence[Slice] = STANDARD_SLICES,
    *,
    name: str = "candidate",
    settings: EvaluationSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a model's predictions on all frames of ``dataset``.

    Args:
        dataset: Exactly the frames to judge on, such as ``dataset.role(Role.SAFETY)``.
        predictions: Boxes in pixels of the stored frames, down to a score well below
            ``settings.threshold``; a frame without any counts as searched in vain.

    Raises:
        DataError: No frames, or truth or predictions that cannot be used (see `scene.build`).
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    settings = settings or EvaluationSettings()
    whole = matching.build_evaluation_set(dataset, predictions)
    rows: list[SliceMetrics] = []
    samples: dict[tuple[str, str, MetricName], Floats] = {}
    tables: dict[str, MatchTable] = {}
    curves: dict[str, CocoMetrics] = {}
    drawn: dict[str, Clusters] = {}
    for done, part in enumerate(slices):
        table, figures = match_slice(whole, part), coco_metrics(whole, part)
        groups = bootstrap.cluster_frames(whole.frames, table.frames)
        weights = resampling.draw_resamples(groups.count, settings.resamples, settings.seed)
        with threadpool_limits(1, user_api="blas"):  # small products: threads would only wait
            pooled = pool_metrics(table, groups.of, weights, settings.threshold)
        found = _metric_samples(pooled, table.classes)
        _check_against_reference(figures, found, part, table.classes)
        samples |= {(part.name, cls, metric): value for (cls, metric), value in found.items()}
        rows += _slice_rows(whole, table, groups, figures, found, settings)
        tables[part.name], curves[part.name], drawn[part.name] = table, figures, groups
        if progress:
            progress(done + 1, len(slices))
    origins = Counter(str(label.origin) for label in whole.labels)
    metrics = EvaluationMetrics(
        name=name,
        dataset=dataset.ref,
        settings=settings,
        simulated=dataset.simulated or any(label.origin.is_simulated for label in whole.labels),
        truth=dict(sorted(origins.items())),
        ignore_regions=sum(label.ignore for label in whole.labels),
        rows=tuple(rows),
    )
    return Evaluation(metrics, whole, samples, tables, curves, drawn)


@dataclass(frozen=True)
class MetricDifference:
    """``left`` minus ``right`` on the same frames, with a paired interval."""

    figure: Estimate
    usable: bool
    method: str


def paired_difference(
    left: Evaluation,
    right: Evaluation,
    metric: MetricName,
    part: str = "all",
    cls: str = ALL_CLASSES,
) -> MetricDifference:
    """How much better ``left`` is than ``right``, resample by resample.

    Raises:
        ParameterError: They were not evaluated on the same frames, truth and settings.
    """
    _check_comparable(left, right)
    row = left.metrics.at(part, cls)
    key = (part, cls, metric)
    change = left.samples[key] - right.samples[key]
    figure = _estimate(change, left.clusters[part].count, left.metrics.settings.confidence)
    return MetricDifference(figure, row.usable, f"paired {row.method}")


def _check_comparable(left: Evaluation, right: Evaluation) -> None:
    same = (
        left.scene.frames == right.scene.frames
        and left.scene.labels == right.scene.labels
        and left.metrics.settings == right.metrics.settings
    )
    if not same:
        raise ParameterError(
            "two models can only be compared on the same frames, labels and settings",
            where=f"{left.name} and {right.name}",
            hint="Evaluate both with the same dataset and rules",
        )


def _metric_samples(
    pooled: PooledMetrics, classes: tuple[str, ...]
) -> dict[tuple[str, MetricName], Floats]:
    """Every metric of every class and of all together, [1 + r] each."""
    found: dict[tuple[str, MetricName], Floats] = {}
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing are NaN on purpose
        for metric in ("ap", "ap50", "ar"):
            value: Floats = getattr(pooled, metric)
            found[ALL_CLASSES, metric] = np.nanmean(value, axis=1)  # type: ignore[index]
            for k, cls in enumerate(classes):
                found[cls, metric] = value[:, k]  # type: ignore[index]
        counts = (pooled.tp, pooled.fp, pooled.positives)
        found |= _operating_point_metrics(ALL_CLASSES, *(count.sum(axis=1) for count in counts))
        for k, cls in enumerate(classes):
            found |= _operating_point_metrics(cls, *(count[:, k] for count in counts))
    return found


def _operating_point_metrics(
    cls: str, tp: Floats, fp: Floats, positives: Floats
) -> dict[tuple[str, MetricName], Floats]:
    return {
        (cls, "precision"): tp / (tp + fp),
        (cls, "recall"): tp / positives,
        (cls, "f1"): np.where(positives > 0, 2 * tp / (tp + fp + positives), np.nan),
    }


def _slice_rows(
    whole: EvaluationSet,
    table: MatchTable,
    groups: Clusters,
    figures: CocoMetrics,
    found: Mapping[tuple[str, MetricName], Floats],
    settings: EvaluationSettings,
) -> list[SliceMetrics]:
    rows = []
    acted = table.score >= settings.threshold
    for k, cls in enumerate((ALL_CLASSES, *table.classes), start=-1):
        mine = np.ones(len(table.cls), np.bool_) if k < 0 else table.cls == k
        truths = np.ones(len(table.truth_cls), np.bool_) if k < 0 else table.truth_cls == k
        boxes = int(truths.sum())
        reference = figures.overall if k < 0 else (figures.ap[k], figures.ap50[k], figures.ar[k])
        values = dict(zip(("ap", "ap50", "ar"), reference, strict=True))
        shown = {
            metric: _estimate(
                found[cls, metric], groups.count, settings.confidence, values.get(metric)
            )
            for metric in METRIC_NAMES
        }
        tp = int((table.hit[0] & acted & mine).sum())
        rows.append(
            SliceMetrics(
                slice=table.slice,
                cls=cls,
                frames=len(table.frames),
                drives=groups.drives,
                drives_with_boxes=len({whole.frames[f].drive for f in table.truth_frame[truths]}),
                boxes=boxes,
                usable=groups.usable,
                method=f"{groups.method}, {settings.resamples} resamples, "
                f"{settings.confidence:.0%} expanded percentile",
                tp=tp,
                fp=int((~table.hit[0] & ~table.ignored[0] & acted & mine).sum()),
                fn=boxes - tp,
                **shown,
            )
        )
    return rows


def _estimate(
    samples: Floats, clusters: int, confidence: float, value: float | None = None
) -> Estimate:
    """The sample's own value (the reference's where given) and the interval of the resamples."""
    own = float(samples[0] if value is None else value)
    if not np.isfinite(own):
        return Estimate(value=None)
    ends = bootstrap.percentile_interval(samples[1:], clusters, confidence)
    if ends is None:
        return Estimate(value=own)
    return Estimate(value=own, low=ends[0], high=ends[1])


def _check_against_reference(
    figures: CocoMetrics,
    found: Mapping[tuple[str, MetricName], Floats],
    part: Slice,
    classes: tuple[str, ...],
) -> None:
    """Refuse to show an interval that belongs to another figure than the reference's."""
    for metric, overall in zip(("ap", "ap50", "ar"), figures.overall, strict=True):
        theirs = np.array([overall, *getattr(figures, metric)])
        ours = np.array([found[cls, metric][0] for cls in (ALL_CLASSES, *classes)])  # type: ignore[index]
        if not np.allclose(ours, theirs, rtol=0, atol=_REFERENCE_TOLERANCE, equal_nan=True):
            raise WorkbenchError(
                "the resampled figures do not agree with faster-coco-eval",
                where=f"slice {part.name}, {metric}",
                hint="This is a fault in the workbench: please report it with the predictions",
            )


# ---- Two models that were trained alike but for which frames were labelled: which learned more.


_OVERALL_METRICS: tuple[MetricName, ...] = ("ap", "ap50", "recall")


def compare_arms(
    mined: Evaluation, control: Evaluation, classes: Sequence[str] = ()
) -> tuple[ArmComparison, ...]:
    """The mined arm's model less the control arm's, on the same frames, draw by draw.

    Args:
        classes: Of these AP50 and recall are compared, too: the rare ones.

    Raises:
        ParameterError: They were not evaluated on the same frames, truth and settings.
    """
    wanted: list[tuple[MetricName, str]] = [(metric, ALL_CLASSES) for metric in _OVERALL_METRICS]
    for cls in dict.fromkeys(classes):
        wanted += [("ap50", cls), ("recall", cls)]
    return tuple(_compare_metric(mined, control, metric, cls) for metric, cls in wanted)


def _compare_metric(
    mined: Evaluation, control: Evaluation, metric: MetricName, cls: str
) -> ArmComparison:
    change = paired_difference(mined, control, metric, cls=cls)
    row = mined.metrics.at(cls=cls)
    theirs = control.metrics.at(cls=cls)
    figure = change.figure
    verdict, why = Verdict.INSUFFICIENT, ""
    if figure.value is None:
        why = f"the {row.frames} safety frames hold none" if not row.boxes else "nothing was found"
    elif not change.usable:
        why = f"{row.drives} drives are too few to speak of others"
    elif figure.low is not None and figure.low > 0:
        verdict = Verdict.PASS
    elif figure.high is not None and figure.high < 0:
        verdict = Verdict.FAIL
    else:
        why = "the interval holds 0: they may as well be equal"
    return ArmComparison(
        figure=f"{metric} of {'all classes' if cls == ALL_CLASSES else cls}, retrained",
        change="difference",
        mined=getattr(row, metric).value,
        control=getattr(theirs, metric).value,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        verdict=verdict,
        drives=row.drives,
        unit=f"{row.drives} drives" if change.usable else f"blocks of time of {row.drives} drives",
        why=why,
    )


__all__ = [
    "ALL_CLASSES",
    "METRIC_NAMES",
    "Estimate",
    "Evaluation",
    "EvaluationMetrics",
    "EvaluationSettings",
    "MetricDifference",
    "MetricName",
    "SliceMetrics",
    "evaluate",
    "paired_difference",
]
