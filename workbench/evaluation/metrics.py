"""Metrics of a model by class and slice with confidence intervals, and comparison of two models.

    evaluation = evaluate(model.predict(dataset.role("safety")))
    evaluation.metrics.at("light=night").recall.value

AP, AP50 and AR are COCO's, computed by faster-coco-eval; for all classes together they are the mean
over the classes with ground truth. Precision, recall and F1 are those of the operating point:
predictions with a score of at least `EvaluationSettings.threshold`, matched at IoU 0.5, all classes
pooled.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.text import counted, html_table
from workbench.data import resampling
from workbench.data.resampling import MIN_DRIVES, expanded_tail, resampling_units
from workbench.data.slices import STANDARD_SLICES, Slice
from workbench.detection.model import Predictions
from workbench.evaluation import matching
from workbench.evaluation.coco import CocoMetrics, PooledMetrics, coco_metrics, pool_metrics
from workbench.evaluation.matching import EvaluationSet, Floats, Ints, MatchTable, match_slice
from workbench.evaluation.results import (
    ALL_CLASSES,
    METRIC_NAMES,
    Estimate,
    EvaluationMetrics,
    EvaluationSettings,
    MetricName,
    SliceMetrics,
)
from workbench.records.frames import Frame

__all__ = ["Evaluation", "evaluate", "paired_difference"]


_MIN_DEFINED_SHARE = 0.5
"""Share of resamples in which a metric must be defined for an interval."""


@dataclass(frozen=True)
class Clusters:
    """Units of resampling.

    Attributes:
        of: ``[f]`` cluster of every frame of the evaluation set, or -1.
        count: Number of clusters.
        drives: Number of drives.
        method: Description for reports.
    """

    of: Ints
    count: int
    drives: int
    method: str

    @property
    def usable(self) -> bool:
        """Whether intervals may decide a gate; otherwise they only describe these drives."""
        return self.drives >= MIN_DRIVES


def cluster_frames(frames: Sequence[Frame], chosen: Ints) -> Clusters:
    """Clusters of some frames: their drives, or blocks of time where there are too few drives.

    Args:
        frames: All frames of the evaluation set.
        chosen: ``[n]`` indices of the frames to cluster.
    """
    units = resampling_units([frames[position] for position in chosen])
    of = np.full(len(frames), -1, np.int64)
    of[chosen] = units.of
    drives = f"{units.drives} drive{'s' * (units.drives != 1)}"
    method = f"cluster bootstrap over {drives}"
    if units.drives < MIN_DRIVES:
        method = (
            f"descriptive: bootstrap over {units.count} time blocks of {drives}, "
            f"fewer than the {MIN_DRIVES} that a gate needs"
        )
    return Clusters(of, units.count, units.drives, method)


def percentile_interval(
    samples: Floats, clusters: int, confidence: float
) -> tuple[float, float] | None:
    """Two-sided expanded percentile interval of resampled values.

    See `workbench.data.resampling` for the method. In a simulation of ten drives, each with its own
    recall, 95 % expanded percentile intervals contained the true recall in 93 % of trials, plain
    percentile intervals in 88 % (``python -m benchmarks.evaluation``). Two models on the same
    frames are compared resample by resample, which removes the variance between drives.

    Args:
        samples: ``[r]`` values of resamples; NaN where a resample has no ground truth.
        clusters: Number of clusters in each resample.
        confidence: Level of the interval.

    Returns:
        Lower and upper end, or None if too few values are defined.
    """
    defined = samples[np.isfinite(samples)]
    if clusters < 2 or not len(defined) or len(defined) < _MIN_DEFINED_SHARE * len(samples):
        return None
    tail = expanded_tail(clusters, confidence)
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class StudentizedRatio:
    """A ratio of counts with its standard error, of all drives and of each resample.

    Bounds of a ratio by the bootstrap-t (Efron and Tibshirani, "An Introduction to the Bootstrap",
    1993, 12.5) hold one-sided where percentile bounds do not: they follow its skewness. Standard
    errors are those of a linearised ratio over drives.

    Attributes:
        value: ``[1 + r]`` ratios.
        error: ``[1 + r]`` standard errors.
    """

    value: Floats
    error: Floats

    @classmethod
    def of(cls, hits: Floats | Ints, of: Floats | Ints, weights: Floats) -> StudentizedRatio:
        """From ``[c]`` counts of each unit; ``hits`` may be a difference of two counts."""
        count = weights.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            total = weights @ of
            value = (weights @ hits) / total
            square = weights @ (hits * hits) - 2 * value * (weights @ (hits * of))
            square += value**2 * (weights @ (of * of))
            error = np.sqrt(np.maximum(square, 0) * count / max(1, count - 1)) / total
        return cls(value, error)

    @property
    def defined(self) -> bool:
        """Whether bounds can be trusted: no resample in which all drives have the same ratio."""
        return len(self.value) > 1 and bool((self.error > 0).all())

    @property
    def _t(self) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            t: Floats = (self.value[1:] - self.value[0]) / np.maximum(self.error[1:], 1e-9)
        return t[np.isfinite(t)]

    def bounds(self, tail: float) -> tuple[float, float]:
        """One-sided lower and upper bound, each wrong with a chance of ``tail``."""
        low, high = np.quantile(self._t, [tail, 1 - tail])
        value, error = self.value[0], self.error[0]
        return (
            float(max(-1.0, value - high * error)),
            float(min(1.0, value - low * error)),
        )

    def one_sided_p(self, limit: float, *, above: bool) -> float:
        """The inverse of `bounds`, see `one_sided_p`."""
        distance = (self.value[0] - limit) / self.error[0]
        beyond = self._t > distance if above else self._t < distance
        return float(beyond.mean())


def operating_counts(
    evaluation: Evaluation, part: str, cls: str = ALL_CLASSES
) -> tuple[Ints, Ints, Ints]:
    """True positives, false positives and labels of each unit of resampling, ``[c]`` each."""
    table, clusters = evaluation.tables[part], evaluation.clusters[part]
    above = table.score >= evaluation.metrics.settings.threshold
    truths = np.ones(len(table.truth_cls), np.bool_)
    if cls != ALL_CLASSES:
        above &= table.cls == table.classes.index(cls)
        truths = table.truth_cls == table.classes.index(cls)

    def count(frames: Ints) -> Ints:
        return np.bincount(clusters.of[frames], minlength=clusters.count).astype(np.int64)

    wrong = above & ~table.hit[0] & ~table.ignored[0]
    return (
        count(table.frame[above & table.hit[0]]),
        count(table.frame[wrong]),
        count(table.truth_frame[truths]),
    )


def one_sided_p(samples: Floats, clusters: int, limit: float, *, above: bool) -> float:
    """Chance of samples like these if the truth were on the other side of ``limit``.

    The inverse of `percentile_interval`: its lower bound with a tail of ``a`` reaches the limit
    where this is at most ``a``; 0 where all resamples reach it.

    Args:
        samples: ``[1 + r]`` values: of all drives, then of each resample.
        clusters: Number of clusters in each resample.
        limit: What the metric is compared with.
        above: Whether the claim is that the metric is at least ``limit``; else at most.
    """
    from scipy import stats

    defined = samples[1:][np.isfinite(samples[1:])]
    if clusters < 2 or not len(defined):
        return 1.0
    beyond = int((defined < limit).sum() if above else (defined > limit).sum())
    share = beyond / len(defined)
    shrunk = stats.norm.ppf(share) * np.sqrt((clusters - 1) / clusters)
    return float(stats.t.cdf(shrunk, clusters - 1))


def holm_levels(p: Sequence[float], alpha: float) -> list[float]:
    """The level that each of several hypotheses is tested at by Holm's step-down method.

    A hypothesis is rejected exactly where its p value is at most its level.

    Args:
        p: p value of each.
        alpha: Chance, at most, that any true hypothesis is rejected.
    """
    order = sorted(range(len(p)), key=lambda number: p[number])
    levels, level, going = [0.0] * len(p), 0.0, True
    for rank, number in enumerate(order):
        if going:  # after the first that is not rejected, no other one is, either
            level = alpha / (len(p) - rank)
            going = p[number] <= level
        levels[number] = level
    return levels


_REFERENCE_TOLERANCE = 1e-9


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Metrics of a model with the data they come from, for comparisons, gates and plots.

    Attributes:
        metrics: The metrics themselves.
        predictions: What was evaluated.
        data: Frames, ground truth and predictions.
        samples: (slice, class, metric) to ``[1 + r]`` values: of all drives, then of each resample.
        tables: Slice to matched predictions.
        curves: Slice to COCO's interpolated precision.
        clusters: Slice to the units of resampling.
        slices: Slice to its definition.
    """

    metrics: EvaluationMetrics
    predictions: Predictions
    data: EvaluationSet
    samples: Mapping[tuple[str, str, MetricName], Floats]
    tables: Mapping[str, MatchTable]
    curves: Mapping[str, CocoMetrics]
    clusters: Mapping[str, Clusters]
    slices: Mapping[str, Slice]

    @property
    def name(self) -> str:
        return self.metrics.name

    def to_pandas(self) -> Any:
        """One row a slice, class and metric: value, ends of the interval, boxes, drives."""
        import pandas as pd

        rows = [
            {
                "model": self.name,
                "slice": row.slice,
                "class": row.cls,
                "metric": metric,
                **getattr(row, metric).model_dump(),
                "boxes": row.boxes,
                "frames": row.frames,
                "drives": row.drives,
            }
            for row in self.metrics.rows
            for metric in METRIC_NAMES
        ]
        return pd.DataFrame(rows)

    def plot(self, metric: MetricName = "recall") -> Any:
        """One metric with its interval on every slice; a matplotlib figure."""
        from workbench.evaluation import plots

        return plots.metrics_by_slice(self, metric=metric)

    def __repr__(self) -> str:
        row = self.metrics.at()
        return (
            f"Evaluation({self.name!r}: AP50 {row.ap50}, recall {row.recall} on"
            f" {counted(row.boxes, 'box', 'boxes')} of {counted(row.drives, 'drive')})"
        )

    def _repr_html_(self) -> str:
        rows = [
            [
                row.slice,
                f"{row.boxes:,}",
                f"{row.drives:,}",
                *(str(getattr(row, metric)) for metric in ("ap50", "precision", "recall")),
            ]
            for row in self.metrics.rows
            if row.cls == ALL_CLASSES and row.boxes
        ]
        note = "simulated, " if self.metrics.simulated else ""
        title = f"{self.name}: {note}threshold {self.metrics.settings.threshold:g}"
        header = ["slice", "boxes", "drives", "AP50", "precision", "recall"]
        return html_table(title, rows, header)


def evaluate(
    predictions: Predictions,
    slices: Sequence[Slice] = STANDARD_SLICES,
    *,
    settings: EvaluationSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a model's predictions on all frames of their dataset.

    Args:
        predictions: Boxes in pixels of the stored frames, down to a score well below
            ``settings.threshold``, such as ``model.predict(dataset.role("safety"))``. A frame
            without predictions counts as empty.
        slices: Named parts of the frames and labels.
        settings: Threshold and resampling; by default at the model's own threshold.
        progress: Called with the number of slices done and in all.

    Raises:
        DataError: There are no frames, or labels or predictions are invalid.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    settings = settings or EvaluationSettings(threshold=predictions.threshold)
    dataset = predictions.dataset
    whole = matching.build_evaluation_set(dataset, predictions)
    rows: list[SliceMetrics] = []
    samples: dict[tuple[str, str, MetricName], Floats] = {}
    tables: dict[str, MatchTable] = {}
    curves: dict[str, CocoMetrics] = {}
    clusters: dict[str, Clusters] = {}
    for done, part in enumerate(slices):
        table, reference = match_slice(whole, part), coco_metrics(whole, part)
        groups = cluster_frames(whole.frames, table.frames)
        weights = resampling.draw_resamples(groups.count, settings.resamples, settings.seed)
        with threadpool_limits(1, user_api="blas"):  # matrices are too small for threads
            pooled = pool_metrics(table, groups.of, weights, settings.threshold)
        values = _metric_samples(pooled, table.classes)
        _check_against_reference(reference, values, part, table.classes)
        samples |= {(part.name, cls, metric): value for (cls, metric), value in values.items()}
        rows += _slice_rows(whole, table, groups, reference, values, settings)
        tables[part.name], curves[part.name], clusters[part.name] = table, reference, groups
        if progress:
            progress(done + 1, len(slices))
    origins = Counter(str(label.origin) for label in whole.labels)
    metrics = EvaluationMetrics(
        name=predictions.model,
        dataset=dataset.ref,
        settings=settings,
        simulated=dataset.simulated or any(label.origin.is_simulated for label in whole.labels),
        truth=dict(sorted(origins.items())),
        ignore_regions=sum(label.ignore for label in whole.labels),
        rows=tuple(rows),
    )
    named = {part.name: part for part in slices}
    return Evaluation(metrics, predictions, whole, samples, tables, curves, clusters, named)


@dataclass(frozen=True)
class MetricDifference:
    """Metric of one model minus that of another on the same frames, with a paired interval."""

    estimate: Estimate
    usable: bool
    method: str


def paired_difference(
    left: Evaluation,
    right: Evaluation,
    metric: MetricName,
    part: str = "all",
    cls: str = ALL_CLASSES,
) -> MetricDifference:
    """Difference ``left`` - ``right`` of a metric, with an interval over paired resamples.

    Args:
        left: Evaluation of one model.
        right: Evaluation of the other model, on the same frames.
        metric: Name of the metric.
        part: Name of the slice.
        cls: Class name, or `ALL_CLASSES`.

    Raises:
        ParameterError: They were evaluated on other frames, labels or settings.
    """
    check_comparable(left, right)
    row = left.metrics.at(part, cls)
    key = (part, cls, metric)
    change = left.samples[key] - right.samples[key]
    found = estimate(change, left.clusters[part].count, left.metrics.settings.confidence)
    return MetricDifference(found, row.usable, f"paired {row.method}")


def check_comparable(left: Evaluation, right: Evaluation) -> None:
    same = (
        left.data.frames == right.data.frames
        and left.data.labels == right.data.labels
        and _without_threshold(left) == _without_threshold(right)
    )
    if not same:
        raise ParameterError(
            "models were evaluated on different frames, labels or settings",
            where=f"{left.name} and {right.name}",
            hint="Evaluate both on the same dataset with the same settings",
        )


def _without_threshold(evaluation: Evaluation) -> EvaluationSettings:
    """Each model may act from a threshold of its own on."""
    return evaluation.metrics.settings.model_copy(update={"threshold": 0.0})


def _metric_samples(
    pooled: PooledMetrics, classes: tuple[str, ...]
) -> dict[tuple[str, MetricName], Floats]:
    """Every metric of every class and of all classes together, ``[1 + r]`` each."""
    result: dict[tuple[str, MetricName], Floats] = {}
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no values is NaN, as intended
        for metric in ("ap", "ap50", "ar"):
            value: Floats = getattr(pooled, metric)
            result[ALL_CLASSES, metric] = np.nanmean(value, axis=1)  # type: ignore[index]
            for k, cls in enumerate(classes):
                result[cls, metric] = value[:, k]  # type: ignore[index]
        counts = (pooled.tp, pooled.fp, pooled.positives)
        result |= _operating_point_metrics(ALL_CLASSES, *(count.sum(axis=1) for count in counts))
        for k, cls in enumerate(classes):
            result |= _operating_point_metrics(cls, *(count[:, k] for count in counts))
    return result


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
    reference: CocoMetrics,
    values: Mapping[tuple[str, MetricName], Floats],
    settings: EvaluationSettings,
) -> list[SliceMetrics]:
    rows = []
    above = table.score >= settings.threshold
    for k, cls in enumerate((ALL_CLASSES, *table.classes), start=-1):
        chosen = np.ones(len(table.cls), np.bool_) if k < 0 else table.cls == k
        truths = np.ones(len(table.truth_cls), np.bool_) if k < 0 else table.truth_cls == k
        boxes = int(truths.sum())
        coco = reference.overall if k < 0 else (reference.ap[k], reference.ap50[k], reference.ar[k])
        exact = dict(zip(("ap", "ap50", "ar"), coco, strict=True))
        estimates = {
            metric: estimate(
                values[cls, metric], groups.count, settings.confidence, exact.get(metric)
            )
            for metric in METRIC_NAMES
        }
        tp = int((table.hit[0] & above & chosen).sum())
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
                fp=int((~table.hit[0] & ~table.ignored[0] & above & chosen).sum()),
                fn=boxes - tp,
                **estimates,
            )
        )
    return rows


def ratio_samples(hits: Floats | Ints, of: Floats | Ints, weights: Floats) -> Floats:
    """Ratio of two counts over the units of resampling.

    Args:
        hits: ``[c]`` counts of each unit.
        of: ``[c]`` counts out of which, of each unit.
        weights: ``[1 + r, c]`` of `resampling.draw_resamples`.

    Returns:
        ``[1 + r]`` ratios; NaN where nothing is counted.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Floats = (weights @ hits) / (weights @ of)
    return ratio


def estimate(
    samples: Floats, clusters: int, confidence: float, value: float | None = None
) -> Estimate:
    """The value of all drives (of the reference where given) with the interval of resamples."""
    own = float(samples[0] if value is None else value)
    if not np.isfinite(own):
        return Estimate(value=None)
    ends = percentile_interval(samples[1:], clusters, confidence)
    if ends is None:
        return Estimate(value=own)
    return Estimate(value=own, low=ends[0], high=ends[1])


def _check_against_reference(
    reference: CocoMetrics,
    values: Mapping[tuple[str, MetricName], Floats],
    part: Slice,
    classes: tuple[str, ...],
) -> None:
    """Refuse intervals of a metric that differs from the reference implementation."""
    for metric, overall in zip(("ap", "ap50", "ar"), reference.overall, strict=True):
        theirs = np.array([overall, *getattr(reference, metric)])
        ours = np.array([values[cls, metric][0] for cls in (ALL_CLASSES, *classes)])  # type: ignore[index]
        if not np.allclose(ours, theirs, rtol=0, atol=_REFERENCE_TOLERANCE, equal_nan=True):
            raise WorkbenchError(
                "resampled metrics differ from faster-coco-eval",
                where=f"slice {part.name}, {metric}",
                hint="This is a bug in the workbench: please report it with the predictions",
            )
