"""One look at the fleet's telemetry: what drifted, why, and the alarms that follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError
from workbench.core.text import short_repr
from workbench.data.telemetry import SHADOW, SIGNALS
from workbench.monitoring.causes import Cause, find_cause
from workbench.monitoring.drift import Drift, DriftLook, DriftRule, DriveSignals, find_drift
from workbench.monitoring.store import read_telemetry
from workbench.records.base import Ref
from workbench.records.types import Alarm

__all__ = ["look_at_telemetry"]

_DRIVES_IN_ALARM = 20
_NOT_WATCHED = ("latency", "lateness")  # of the computer, not of the road
_YEAR_DAYS = 365


@short_repr
@dataclass(frozen=True)
class Rides:
    """Rides of the telemetry table, one row each.

    Attributes:
        names: ``VEHICLE/RIDE``.
        kinds: Hardware and calibration of the front camera.
        values: By signal, or ``SIGNAL[CLASS]``: ``[N]`` or histograms ``[N, B]``; NaN and zeros
            where a ride did not report it.
    """

    names: tuple[str, ...]
    vehicles: tuple[str, ...]
    days: NDArray[np.int64]
    slices: tuple[str, ...]
    kinds: tuple[str, ...]
    models: tuple[str, ...]
    evidence: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]

    def select(self, rows: NDArray[np.bool_]) -> Rides:
        """Some of the rides."""
        index = np.flatnonzero(rows).tolist()
        texts = {
            name: tuple(getattr(self, name)[i] for i in index)
            for name in ("names", "vehicles", "slices", "kinds", "models", "evidence")
        }
        values = {name: array[index] for name, array in self.values.items()}
        return Rides(days=self.days[index], values=values, **texts)


@short_repr
@dataclass(frozen=True)
class Look:
    """Result of one look.

    Attributes:
        causes: Of what drifted, by slice and signal.
        alarms: At most one for each slice; not raised yet.
    """

    drift: DriftLook
    causes: dict[tuple[str, str], Cause]
    alarms: tuple[Alarm, ...]
    days: tuple[int, int]
    reference_days: tuple[int, int]
    rides: tuple[int, int]
    evidence: str


def read_rides(
    url: str,
    *,
    by: str = "light",
    since: int = 0,
    until: int = 2**31 - 1,
    model: str = "",
    shadow: bool = False,
) -> Rides:
    """Rides of a telemetry table.

    Args:
        url: The table.
        by: Condition that slices the rides, such as ``light``; ``region``, ``hardware`` too.
        since, until: First and last fleet day.
        model: Only rides that this model answered.
        shadow: Also rides as a candidate answered them in the shadow.
    """
    table = read_telemetry(url, since=since, until=until)
    rows: list[dict[str, Any]] = table.to_pylist()
    index: dict[tuple[str, int], int] = {}
    heads: list[dict[str, Any]] = []
    cells: dict[str, dict[int, Any]] = {}
    for row in rows:
        if (model and row["model"] != model) or (row["model"].startswith(SHADOW) and not shadow):
            continue
        key = (row["vehicle"], row["sequence"])
        if key not in index:
            index[key] = len(heads)
            heads.append(row)
        spec = SIGNALS.get(row["signal"])
        if spec is None or row["signal"] in _NOT_WATCHED:
            continue
        name = f"{row['signal']}[{row['cls']}]" if row["cls"] else row["signal"]
        cells.setdefault(name, {})[index[key]] = row["counts"] if spec.edges else row["mean"]
    return Rides(
        names=tuple(f"{row['vehicle']}/{row['ride']}" for row in heads),
        vehicles=tuple(row["vehicle"] for row in heads),
        days=np.array([row["day"] for row in heads], np.int64),
        slices=tuple(_slice(row, by) for row in heads),
        kinds=tuple(f"{row['hardware']} {row['calibration']}".strip() for row in heads),
        models=tuple(row["model"] for row in heads),
        evidence=tuple(row["evidence"] for row in heads),
        values={name: _column(found, len(heads)) for name, found in cells.items()},
    )


def look_at_telemetry(
    rides: Rides,
    *,
    days: tuple[int, int],
    reference_days: tuple[int, int],
    rule: DriftRule | None = None,
    model: Ref | None = None,
    seed: int = 0,
) -> Look:
    """Compare the rides of a period with those of a reference period.

    Args:
        days: First and last fleet day of the period.
        reference_days: First and last fleet day of the reference.
        model: What the alarms name as the model that answered.

    Raises:
        DataError: One of the periods has no rides.
    """
    current = (rides.days >= days[0]) & (rides.days <= days[1])
    reference = (rides.days >= reference_days[0]) & (rides.days <= reference_days[1]) & ~current
    for what, chosen, span in (
        ("current", current, days),
        ("reference", reference, reference_days),
    ):
        if not chosen.any():
            raise DataError(
                f"no rides in the {what} period",
                where=f"fleet days {span[0]} to {span[1]}",
                hint=f"There are rides of days {rides.days.min()} to {rides.days.max()}"
                if len(rides.days)
                else "The table is empty: has the fleet reported?",
            )
    both = rides.select(current | reference)
    now = current[current | reference]
    signals = DriveSignals(both.values, now, both.slices, both.vehicles)
    drift = find_drift(signals, rule, seed=seed)
    ago = rides.select((rides.days >= days[0] - _YEAR_DAYS) & (rides.days <= days[1] - _YEAR_DAYS))
    causes = {(one.slice, one.signal): _cause(both, now, one, ago, seed) for one in drift.found}
    evidence = _evidence(both.evidence)
    period = (days, reference_days, model, evidence)
    return Look(
        drift=drift,
        causes=causes,
        alarms=(*_alarms(both, now, drift, causes, period), *_mix_alarm(drift, period)),
        days=days,
        reference_days=reference_days,
        rides=(int((~now).sum()), int(now.sum())),
        evidence=evidence,
    )


def compare_models(
    rides: Rides, candidate: str, champion: str, *, rule: DriftRule | None = None, seed: int = 0
) -> DriftLook:
    """The same vehicles' rides as two models answer them: a candidate in the shadow, or a canary.

    Vehicles that have both are compared with themselves.

    Raises:
        DataError: One of them answered no ride.
    """
    models = np.array(rides.models)
    for name in (candidate, champion):
        if not (models == name).any():
            known = ", ".join(sorted(set(rides.models))) or "none"
            raise DataError(f"no rides of model {name!r}", hint=f"There are: {known}")
    both = rides.select((models == candidate) | (models == champion))
    signals = DriveSignals(
        both.values, np.array(both.models) == candidate, both.slices, both.vehicles
    )
    return find_drift(signals, rule, seed=seed)


def disagreement_alarms(
    rides: Rides, look: DriftLook, candidate: str, champion: str, *, model: Ref | None = None
) -> tuple[Alarm, ...]:
    """Alarms for what `compare_models` found: one for each slice."""
    models = np.array(rides.models)
    chosen = rides.select((models == candidate) | (models == champion))
    current = np.array(chosen.models) == candidate
    span = (int(chosen.days.min()), int(chosen.days.max()))
    evidence = _evidence(chosen.evidence)
    why = f"the same vehicles' drives as {candidate} answers them and as {champion} does"
    causes = {(one.slice, one.signal): Cause("model", why) for one in look.found}
    found = _alarms(chosen, current, look, causes, (span, span, model, evidence))
    return tuple(one.model_copy(update={"what": "disagreement"}) for one in found)


_Period = tuple[tuple[int, int], tuple[int, int], Ref | None, str]


def _alarms(
    rides: Rides,
    current: NDArray[np.bool_],
    drift: DriftLook,
    causes: Mapping[tuple[str, str], Cause],
    period: _Period,
) -> list[Alarm]:
    """One for each slice: the strongest signal, and the names of the others."""
    by_slice: dict[str, list[Drift]] = {}
    for one in drift.found:
        by_slice.setdefault(one.slice, []).append(one)
    made = []
    for name, found in by_slice.items():
        first = found[0]
        # A sensor moves several signals, not all of them plainly: any of them says so.
        cause = next(
            (
                causes[name, one.signal]
                for one in found
                if causes[name, one.signal].name == "sensor"
            ),
            causes[name, first.signal],
        )
        made.append(
            Alarm(
                signal=first.signal,
                also=tuple(one.signal for one in found[1:]),
                what=first.what,
                slice=name,
                cause=cause.name,
                why=cause.why,
                reference=first.reference,
                current=first.current,
                effect=first.effect,
                p_value=first.p_value,
                alpha=drift.alpha,
                drives=_furthest(rides, current, first),
                days=period[0],
                reference_days=period[1],
                model=period[2],
                evidence=period[3],  # type: ignore[arg-type]
            )
        )
    return made


def _mix_alarm(drift: DriftLook, period: _Period) -> list[Alarm]:
    if not drift.mix_changed or drift.mix_p_value is None:
        return []
    name, (before, now) = max(
        drift.shares.items(), key=lambda item: (item[1][1] - item[1][0], item[0])
    )
    return [
        Alarm(
            signal="share of drives",
            what="mix",
            slice=name,
            cause="fleet-mix",
            why=f"{now:.0%} of drives are in this slice, {before:.0%} were; see it by slice",
            reference=before,
            current=now,
            effect=0.0,
            p_value=drift.mix_p_value,
            alpha=drift.mix_alpha,
            drives=(),
            days=period[0],
            reference_days=period[1],
            model=period[2],
            evidence=period[3],  # type: ignore[arg-type]
        )
    ]


def _cause(rides: Rides, current: NDArray[np.bool_], one: Drift, ago: Rides, seed: int) -> Cause:
    inside = np.array([name == one.slice for name in rides.slices])
    before = np.array([name == one.slice for name in ago.slices], bool)
    return find_cause(
        _scores(rides.values[one.signal])[inside],
        current[inside],
        [rides.kinds[i] for i in np.flatnonzero(inside)],
        year_ago=_scores(ago.values[one.signal])[before] if before.any() else None,
        seed=seed,
    )


def _furthest(rides: Rides, current: NDArray[np.bool_], one: Drift) -> tuple[str, ...]:
    """Current drives of the slice that moved most in the direction of the change."""
    scores = _scores(rides.values[one.signal])
    inside = [
        i for i in np.flatnonzero(current & np.isfinite(scores)) if rides.slices[i] == one.slice
    ]
    sign = -1.0 if one.current > one.reference else 1.0
    inside.sort(key=lambda i: (sign * scores[i], rides.names[i]))
    return tuple(rides.names[i] for i in inside[:_DRIVES_IN_ALARM])


def _scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One number a ride: of a histogram, the mean number of the bin."""
    if values.ndim == 1:
        return values
    total = values.sum(axis=1)
    return np.asarray(values @ np.arange(values.shape[1]) / np.where(total > 0, total, np.nan))


def _column(found: Mapping[int, Any], count: int) -> NDArray[np.float64]:
    first = next(iter(found.values()))
    shape = (count, len(first)) if isinstance(first, list) else (count,)
    column = np.full(shape, 0.0 if len(shape) == 2 else np.nan)
    for row, value in found.items():
        if value is not None:
            column[row] = value
    return column


def _slice(row: Mapping[str, Any], by: str) -> str:
    if by in {"region", "hardware", "calibration", "model_year"}:
        return f"{by}={row[by]}"
    conditions = json.loads(row["conditions"])
    return f"{by}={conditions[by]}" if by in conditions else "all"


def _evidence(found: Sequence[str]) -> str:
    """The weakest of the rides' evidence."""
    order = ("simulated", "replayed", "real")
    return next((name for name in order if name in found), "simulated")
