"""Several trainings compared: what differs between them, and how their metrics compare over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from workbench.core.errors import DataError
from workbench.records.base import Ref
from workbench.records.model_types import Checkpoint, SweepModel, SweepReport, SweepSetting
from workbench.records.store import Store

_WEEK = timedelta(days=7)
_SEED = "seed"


def sweep_models(
    store: Store,
    figures: Mapping[Ref, tuple[float, float | None, float | None]],
) -> tuple[SweepModel, ...]:
    """Each checkpoint with the settings in which it differs from the others, and its figure.

    Args:
        figures: By checkpoint, a value with its interval on the evaluation frames.
    """
    settings = {ref: _flat_settings(store.get(ref, Checkpoint)) for ref in figures}
    names = sorted({name for said in settings.values() for name in said})
    differing = [n for n in names if len({repr(said.get(n)) for said in settings.values()}) > 1]
    return tuple(
        SweepModel(
            checkpoint=ref,
            seed=int(settings[ref][_SEED]),
            settings={n: settings[ref].get(n) for n in differing if n != _SEED},
            value=value,
            low=low,
            high=high,
        )
        for ref, (value, low, high) in figures.items()
    )


def sweep_settings(
    models: Sequence[SweepModel], confidence: float = 0.95
) -> tuple[SweepSetting, ...]:
    """Models that differ by their seeds alone, as one line each, best mean first."""
    groups: dict[str, list[SweepModel]] = {}
    for model in models:
        groups.setdefault(repr(sorted(model.settings.items())), []).append(model)
    found = []
    for group in groups.values():
        values = [model.value for model in group]
        mean = sum(values) / len(values)
        half = _half_width(values, mean, confidence)
        found.append(
            SweepSetting(
                settings=group[0].settings,
                seeds=tuple(sorted(model.seed for model in group)),
                mean=mean,
                low=None if half is None else mean - half,
                high=None if half is None else mean + half,
            )
        )
    return tuple(sorted(found, key=lambda one: (-one.mean, repr(one.settings))))


def sweep_report(
    dataset: Ref,
    models: Sequence[SweepModel],
    *,
    figure: str,
    frames: int,
    simulated: bool,
    confidence: float = 0.95,
) -> SweepReport:
    """The comparison as a record.

    Args:
        figure: What was measured and on which frames, in words.

    Raises:
        DataError: Nothing to compare.
    """
    if not models:
        raise DataError("there are no models to compare", where="sweep")
    settings = sweep_settings(models, confidence)
    return SweepReport(
        dataset=dataset,
        figure=figure,
        frames=frames,
        models=tuple(models),
        settings=settings,
        best=max(models, key=lambda model: (model.value, model.checkpoint)).checkpoint,
        decided=_best_is_significant(settings),
        confidence=confidence,
        simulated=simulated,
    )


def format_report(made: SweepReport) -> str:
    """The settings as lines of text, best first, and whether the best is really better."""
    lines = []
    for one in made.settings:
        said = ", ".join(f"{name} {value}" for name, value in one.settings.items()) or "as it is"
        spread = (
            f"[{one.low:.3f}, {one.high:.3f}]"
            if one.low is not None and one.high is not None
            else "no interval from one seed"
        )
        lines.append(f"{one.mean:.3f} {spread}  {said}  ({len(one.seeds)} seed(s))")
    lines.append(made.summary)
    return "\n".join(lines)


def weekly_trainings(store: Store, now: datetime | None = None) -> tuple[int, int]:
    """Trainings whose checkpoint was made in the last seven days, and in the seven before."""
    now = now or datetime.now(UTC)
    made = list(_training_times(store))
    this = sum(now - _WEEK <= at <= now for at in made)
    return this, sum(now - 2 * _WEEK <= at < now - _WEEK for at in made)


def _training_times(store: Store) -> Iterable[datetime]:
    for ref in store.refs(Checkpoint.KIND):
        created = store.side(ref, "created")
        if created:
            yield datetime.fromisoformat(created["at"])


def _flat_settings(record: Checkpoint) -> dict[str, Any]:
    """Settings by dotted name; what another family is stands in ``family``."""
    found: dict[str, Any] = {"family": record.family}
    if record.supplier is not None:
        found["supplier"] = record.supplier.origin
    found["input"] = f"{record.preprocessing['width']}x{record.preprocessing['height']}"
    for name, value in record.training.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif not isinstance(value, list):
            found[name] = value
    shaped = record.architecture
    return found | {"width": shaped["width"], "depth": shaped.get("depth", 1)}


def _half_width(values: Sequence[float], mean: float, confidence: float) -> float | None:
    from scipy.stats import t

    if len(values) < 2:
        return None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    reach = float(t.ppf(0.5 + confidence / 2, len(values) - 1))
    return reach * math.sqrt(variance / len(values))


def _best_is_significant(settings: Sequence[SweepSetting]) -> bool | None:
    """Whether the best setting's interval lies above the next one's; None without two intervals."""
    if len(settings) < 2:
        return None
    first, second = settings[:2]
    if first.low is None or second.high is None:
        return None
    return first.low > second.high
