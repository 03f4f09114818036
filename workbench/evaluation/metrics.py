"""A model's figures by class and slice, each with its interval and with what it rests on.

    evaluated = evaluate(dataset.with_roles(Role.SAFETY), predictions, name="int8")
    evaluated.metrics.at("light=night").recall.value

AP, AP50 and AR are COCO's, computed by faster-coco-eval; for all classes together they are the
mean over the classes with truth. Precision, recall and F1 are those of the operating point: the
predictions that score at least ``Settings.threshold``, matched at IoU 0.5, all classes pooled.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import ParameterError, WorkbenchError
from workbench.evaluation import bootstrap, scene
from workbench.evaluation.bootstrap import Clusters
from workbench.evaluation.figures import (
    EVERY_CLASS,
    METRICS,
    Figure,
    MetricName,
    Metrics,
    Settings,
    SliceMetrics,
)
from workbench.evaluation.matching import MatchTable, match
from workbench.evaluation.pooling import Pooled, pool
from workbench.evaluation.reference import CocoFigures, coco_figures
from workbench.evaluation.scene import Floats, Scene
from workbench.evaluation.slices import STANDARD, Slice
from workbench.records.dataset import Dataset
from workbench.records.types import Prediction

__all__ = [
    "EVERY_CLASS",
    "METRICS",
    "Difference",
    "Evaluated",
    "Figure",
    "MetricName",
    "Metrics",
    "Settings",
    "SliceMetrics",
    "compare",
    "evaluate",
]

_AGREEMENT = 1e-9


@dataclass(frozen=True)
class Evaluated:
    """Metrics with what they were made from, for comparing, judging and drawing.

    Attributes:
        samples: (slice, class, metric) to [1 + r] values: the sample's own, then the resamples'.
        tables: Slice to what matched what.
        curves: Slice to COCO's interpolated precision.
    """

    metrics: Metrics
    scene: Scene
    samples: Mapping[tuple[str, str, MetricName], Floats]
    tables: Mapping[str, MatchTable]
    curves: Mapping[str, CocoFigures]
    clusters: Mapping[str, Clusters]

    @property
    def name(self) -> str:
        return self.metrics.name


def evaluate(
    dataset: Dataset,
    predictions: Sequence[Prediction],
    slices: Sequence[Slice] = STANDARD,
    *,
    name: str = "candidate",
    settings: Settings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Measure a model's predictions on all frames of ``dataset``.

    Args:
        dataset: Exactly the frames to judge on, such as ``dataset.with_roles(Role.SAFETY)``.
        predictions: Boxes in pixels of the stored frames, down to a score well below
            ``settings.threshold``; a frame without any counts as searched in vain.

    Raises:
        DataError: No frames, or truth or predictions that cannot be used (see `scene.build`).
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    settings = settings or Settings()
    whole = scene.build(dataset, predictions)
    rows: list[SliceMetrics] = []
    samples: dict[tuple[str, str, MetricName], Floats] = {}
    tables: dict[str, MatchTable] = {}
    curves: dict[str, CocoFigures] = {}
    drawn: dict[str, Clusters] = {}
    for done, part in enumerate(slices):
        table, figures = match(whole, part), coco_figures(whole, part)
        groups = bootstrap.clusters(whole.frames, table.frames)
        weights = bootstrap.draw(groups.count, settings.resamples, settings.seed)
        with threadpool_limits(1, user_api="blas"):  # small products: threads would only wait
            pooled = pool(table, groups.of, weights, settings.threshold)
        found = _samples(pooled, table.classes)
        _insist_on_agreement(figures, found, part, table.classes)
        samples |= {(part.name, cls, metric): value for (cls, metric), value in found.items()}
        rows += _rows(whole, table, groups, figures, found, settings)
        tables[part.name], curves[part.name], drawn[part.name] = table, figures, groups
        if progress:
            progress(done + 1, len(slices))
    origins = Counter(str(label.origin) for label in whole.labels)
    metrics = Metrics(
        name=name,
        dataset=dataset.ref,
        settings=settings,
        simulated=dataset.simulated or any(label.origin.is_simulated for label in whole.labels),
        truth=dict(sorted(origins.items())),
        ignore_regions=sum(label.ignore for label in whole.labels),
        rows=tuple(rows),
    )
    return Evaluated(metrics, whole, samples, tables, curves, drawn)


@dataclass(frozen=True)
class Difference:
    """``left`` minus ``right`` on the same frames, with a paired interval."""

    figure: Figure
    usable: bool
    method: str


def compare(
    left: Evaluated,
    right: Evaluated,
    metric: MetricName,
    part: str = "all",
    cls: str = EVERY_CLASS,
) -> Difference:
    """How much better ``left`` is than ``right``, resample by resample.

    Raises:
        ParameterError: They were not evaluated on the same frames, truth and settings.
    """
    _insist_on_same_ground(left, right)
    row = left.metrics.at(part, cls)
    key = (part, cls, metric)
    change = left.samples[key] - right.samples[key]
    figure = _figure(change, left.clusters[part].count, left.metrics.settings.confidence)
    return Difference(figure, row.usable, f"paired {row.method}")


def _insist_on_same_ground(left: Evaluated, right: Evaluated) -> None:
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


def _samples(pooled: Pooled, classes: tuple[str, ...]) -> dict[tuple[str, MetricName], Floats]:
    """Every metric of every class and of all together, [1 + r] each."""
    found: dict[tuple[str, MetricName], Floats] = {}
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing are NaN on purpose
        for metric in ("ap", "ap50", "ar"):
            value: Floats = getattr(pooled, metric)
            found[EVERY_CLASS, metric] = np.nanmean(value, axis=1)  # type: ignore[index]
            for k, cls in enumerate(classes):
                found[cls, metric] = value[:, k]  # type: ignore[index]
        counts = (pooled.tp, pooled.fp, pooled.positives)
        found |= _operating(EVERY_CLASS, *(count.sum(axis=1) for count in counts))
        for k, cls in enumerate(classes):
            found |= _operating(cls, *(count[:, k] for count in counts))
    return found


def _operating(
    cls: str, tp: Floats, fp: Floats, positives: Floats
) -> dict[tuple[str, MetricName], Floats]:
    return {
        (cls, "precision"): tp / (tp + fp),
        (cls, "recall"): tp / positives,
        (cls, "f1"): np.where(positives > 0, 2 * tp / (tp + fp + positives), np.nan),
    }


def _rows(
    whole: Scene,
    table: MatchTable,
    groups: Clusters,
    figures: CocoFigures,
    found: Mapping[tuple[str, MetricName], Floats],
    settings: Settings,
) -> list[SliceMetrics]:
    rows = []
    acted = table.score >= settings.threshold
    for k, cls in enumerate((EVERY_CLASS, *table.classes), start=-1):
        mine = np.ones(len(table.cls), np.bool_) if k < 0 else table.cls == k
        truths = np.ones(len(table.truth_cls), np.bool_) if k < 0 else table.truth_cls == k
        boxes = int(truths.sum())
        reference = figures.overall if k < 0 else (figures.ap[k], figures.ap50[k], figures.ar[k])
        values = dict(zip(("ap", "ap50", "ar"), reference, strict=True))
        shown = {
            metric: _figure(
                found[cls, metric], groups.count, settings.confidence, values.get(metric)
            )
            for metric in METRICS
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


def _figure(
    samples: Floats, clusters: int, confidence: float, value: float | None = None
) -> Figure:
    """The sample's own value (the reference's where given) and the interval of the resamples."""
    own = float(samples[0] if value is None else value)
    if not np.isfinite(own):
        return Figure(value=None)
    ends = bootstrap.interval(samples[1:], clusters, confidence)
    if ends is None:
        return Figure(value=own)
    return Figure(value=own, low=ends[0], high=ends[1])


def _insist_on_agreement(
    figures: CocoFigures,
    found: Mapping[tuple[str, MetricName], Floats],
    part: Slice,
    classes: tuple[str, ...],
) -> None:
    """Refuse to show an interval that belongs to another figure than the reference's."""
    for metric, overall in zip(("ap", "ap50", "ar"), figures.overall, strict=True):
        theirs = np.array([overall, *getattr(figures, metric)])
        ours = np.array([found[cls, metric][0] for cls in (EVERY_CLASS, *classes)])  # type: ignore[index]
        if not np.allclose(ours, theirs, rtol=0, atol=_AGREEMENT, equal_nan=True):
            raise WorkbenchError(
                "the resampled figures do not agree with faster-coco-eval",
                where=f"slice {part.name}, {metric}",
                hint="This is a fault in the workbench: please report it with the predictions",
            )
