"""Several trainings compared: what differs between them, and their metrics over seeds.

A setting is judged by the spread over its seeds, never by its best one: the interval of a mean over
``n`` seeds is Student's with ``n - 1`` degrees of freedom. One seed has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from workbench.core.errors import DataError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.records.base import Ref
from workbench.records.model_types import Checkpoint, SweepModel, SweepReport, SweepSetting
from workbench.records.store import Store

__all__ = ["format_report", "sweep_report", "weekly_trainings"]

_WEEK = timedelta(days=7)
_SEED = "seed"


def sweep_report(
    store: Store,
    dataset: Ref,
    metrics: Mapping[Ref, tuple[float, float | None, float | None]],
    *,
    metric_name: str,
    frames: int,
    simulated: bool,
    confidence: float = 0.95,
) -> SweepReport:
    """Compare trainings on the same frames.

    Args:
        store: Where the checkpoints are.
        dataset: The dataset version they were evaluated on.
        metrics: Value of each checkpoint with its interval over frames (value, low, high).
        metric_name: The metric and the frames it was measured on, in words.
        frames: Number of evaluated frames.
        simulated: Whether any frame is simulated.
        confidence: Of the intervals over seeds.

    Raises:
        DataError: There are no models to compare.
    """
    if not metrics:
        raise DataError("no models to compare", where="sweep")
    models = _sweep_models(store, metrics)
    settings = _sweep_settings(models, confidence)
    return SweepReport(
        dataset=dataset,
        figure=metric_name,
        frames=frames,
        models=models,
        settings=settings,
        best=max(models, key=lambda model: (model.value, model.checkpoint)).checkpoint,
        decided=_best_is_significant(settings),
        confidence=confidence,
        simulated=simulated,
    )


def format_report(report: SweepReport) -> str:
    """The settings as lines of text, best first, and whether the best is significantly better."""
    lines = []
    for setting in report.settings:
        interval = (
            f"[{setting.low:.3f}, {setting.high:.3f}]"
            if setting.low is not None and setting.high is not None
            else "no interval from one seed"
        )
        seeds = counted(len(setting.seeds), "seed")
        lines.append(f"{setting.mean:.3f} {interval}  {describe_settings(setting)}  ({seeds})")
    return "\n".join([*lines, report.summary])


def describe_settings(setting: SweepSetting) -> str:
    """What a setting differs in, such as ``lr 0.003, width 0.5``."""
    return ", ".join(f"{name} {value}" for name, value in setting.settings.items()) or "no changes"


def weekly_trainings(store: Store, now: datetime | None = None) -> tuple[int, int]:
    """Number of trainings in the last seven days, and in the seven days before."""
    now = now or datetime.now(UTC)
    created = [store.side(ref, "created") for ref in store.refs(Checkpoint.KIND)]
    times = [at for side in created if side and (at := _parse_time(side["at"]))]
    this_week = sum(now - _WEEK <= at <= now for at in times)
    return this_week, sum(now - 2 * _WEEK <= at < now - _WEEK for at in times)


def _parse_time(text: str) -> datetime | None:
    """A time with its zone; None for any other text."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else None


def _sweep_models(
    store: Store, metrics: Mapping[Ref, tuple[float, float | None, float | None]]
) -> tuple[SweepModel, ...]:
    """Each checkpoint with its metric and the settings in which it differs from the others."""
    settings = {ref: _flat_settings(store.get(ref, Checkpoint)) for ref in metrics}
    names = sorted({name for values in settings.values() for name in values})
    differing = [n for n in names if len({repr(values.get(n)) for values in settings.values()}) > 1]
    return tuple(
        SweepModel(
            checkpoint=ref,
            seed=int(settings[ref][_SEED]),
            settings={n: settings[ref].get(n) for n in differing if n != _SEED},
            value=value,
            low=low,
            high=high,
        )
        for ref, (value, low, high) in metrics.items()
    )


def _sweep_settings(models: Sequence[SweepModel], confidence: float) -> tuple[SweepSetting, ...]:
    """Models that differ by their seeds only, as one setting each, best mean first."""
    groups: dict[str, list[SweepModel]] = {}
    for model in models:
        groups.setdefault(repr(sorted(model.settings.items())), []).append(model)
    settings = []
    for group in groups.values():
        values = [model.value for model in group]
        mean = sum(values) / len(values)
        half = _half_width(values, mean, confidence)
        settings.append(
            SweepSetting(
                settings=group[0].settings,
                seeds=tuple(sorted(model.seed for model in group)),
                mean=mean,
                low=None if half is None else mean - half,
                high=None if half is None else mean + half,
            )
        )
    return tuple(sorted(settings, key=lambda one: (-one.mean, repr(one.settings))))


def _flat_settings(record: Checkpoint) -> Json:
    """Settings by dotted name, with model family, supplier and input size."""
    settings: Json = {"family": record.family}
    if record.supplier is not None:
        settings["supplier"] = record.supplier.origin
    settings["input"] = f"{record.preprocessing['width']}x{record.preprocessing['height']}"
    for name, value in record.training.items():
        if isinstance(value, dict):
            settings |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif not isinstance(value, list):
            settings[name] = value
    detector = record.architecture
    return settings | {"width": detector["width"], "depth": detector.get("depth", 1)}


def _half_width(values: Sequence[float], mean: float, confidence: float) -> float | None:
    from scipy.stats import t

    if len(values) < 2:
        return None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    quantile = float(t.ppf(0.5 + confidence / 2, len(values) - 1))
    return quantile * math.sqrt(variance / len(values))


def _best_is_significant(settings: Sequence[SweepSetting]) -> bool | None:
    """Whether the best interval is above the next one; None without two intervals."""
    if len(settings) < 2:
        return None
    first, second = settings[:2]
    if first.low is None or second.high is None:
        return None
    return first.low > second.high
