"""Where a drift comes from: a sensor, a season, a changed mix, the world; or it cannot be said.

Each answer is a comparison that could have come out otherwise, and what the data cannot separate is
called ``unknown`` with what is missing:

- fleet mix: drives differ all together, but not within slices (Simpson's paradox);
- sensor: within a slice, vehicles of one kind (hardware, calibration) moved away from the others;
- season: the current drives are like those of the same weeks of an earlier year;
- world: they are not, in vehicles of every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError

__all__ = ()

CauseName = Literal["fleet-mix", "sensor", "season", "world", "model", "unknown"]

_ALPHA = 0.05
_DRAWS = 2000
_MIN_DRIVES = 5  # of a kind of vehicle, in each period
_LIKE_BEFORE = 0.5  # share of the change that may be left for the season to explain it


@dataclass(frozen=True)
class Cause:
    """What a drift comes from, and the comparison that says so."""

    name: CauseName
    why: str


def find_cause(
    values: NDArray[np.float64],
    current: NDArray[np.bool_],
    kinds: Sequence[str],
    *,
    year_ago: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Cause:
    """Why one signal of one slice changed.

    Args:
        values: One number a drive, ``[N]``; NaN where it was not measured.
        current: Whether each drive is of the current period, ``[N]``.
        kinds: What could be wrong with a vehicle: hardware and calibration of its camera, ``[N]``.
        year_ago: The signal on drives of the same weeks of an earlier year.
        seed: Of the draws.

    Raises:
        ParameterError: Lengths do not fit.
    """
    if not len(values) == len(current) == len(kinds):
        raise ParameterError(f"values, periods and kinds do not fit {len(values)} drives")
    known = np.isfinite(values)
    values, current = values[known], current[known]
    named = np.array(list(kinds))[known]
    rng = np.random.default_rng(seed)
    sensor = _moved_kind(values, current, named, rng)
    if sensor is not None:
        return Cause("sensor", sensor)
    one_kind = len(np.unique(named)) < 2
    alone = "; all vehicles are of one kind, so it may be their sensor" if one_kind else ""
    before = year_ago[np.isfinite(year_ago)] if year_ago is not None else np.zeros(0)
    if len(before) < _MIN_DRIVES:
        missing = "no drives of the same weeks of an earlier year, so season and world look alike"
        return Cause("unknown", missing + alone)
    change = float(values[current].mean() - values[~current].mean())
    low, high = _interval(values[current], before, rng)
    middle = abs(float(values[current].mean() - before.mean()))
    if low <= 0 <= high and middle <= _LIKE_BEFORE * abs(change):
        return Cause("season", "drives of the same weeks of an earlier year were alike")
    if low <= 0 <= high:
        return Cause("unknown", "too few drives to compare with the same weeks of an earlier year")
    if one_kind:
        return Cause("unknown", "differs from the same weeks of an earlier year" + alone)
    return Cause(
        "world", "differs from the same weeks of an earlier year, in vehicles of all kinds"
    )


def _moved_kind(
    values: NDArray[np.float64],
    current: NDArray[np.bool_],
    kinds: NDArray[np.str_],
    rng: np.random.Generator,
) -> str | None:
    """A kind of vehicle that changed while the others did not, or changed differently.

    Kinds are permuted within each period: if kind does not matter, every assignment is as likely.
    """
    names = [
        name
        for name in np.unique(kinds)
        if all(
            min(((kinds == name) & period).sum(), ((kinds != name) & period).sum()) >= _MIN_DRIVES
            for period in (current, ~current)
        )
    ]
    if not names:
        return None
    order = np.tile(np.arange(len(values)), (_DRAWS, 1))
    for period in (current, ~current):
        rows = np.flatnonzero(period)
        order[1:, rows] = rng.permuted(np.tile(rows, (_DRAWS - 1, 1)), axis=1)
    statistics = {}
    for name in names:
        inside = (kinds == name)[order]  # [draws, N]
        own = _changes(values, current, inside)
        others = _changes(values, current, ~inside)
        difference = own - others
        deviation = float(difference.std())
        statistics[str(name)] = np.abs(difference) / deviation if deviation > 0 else own * 0.0
    largest = np.maximum.reduce(list(statistics.values()))
    strongest = max(statistics, key=lambda name: float(statistics[name][0]))
    p_value = float((largest >= largest[0] - 1e-9).mean())
    if p_value > _ALPHA:
        return None
    kind = (kinds == strongest)[None, :]
    moved = float(_changes(values, current, kind)[0])
    rest = float(_changes(values, current, ~kind)[0])
    if abs(rest) > abs(moved):  # the others moved: they are the kind that changed, if it is one
        remaining = sorted({str(name) for name in kinds} - {strongest})
        if len(remaining) > 1:
            return None
        strongest, moved, rest = remaining[0], rest, moved
    return (
        f"vehicles with {strongest} changed by {moved:.3g}, the others by {rest:.3g} "
        f"(p {p_value:.3g})"
    )


def _changes(
    values: NDArray[np.float64], current: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean of the current minus mean of the reference drives that are inside, ``[draws]``."""
    means = []
    for period in (current, ~current):
        rows = inside & period
        means.append((rows @ values) / rows.sum(axis=1))
    return np.asarray(means[0] - means[1])


def _interval(
    one: NDArray[np.float64], other: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, float]:
    """Bootstrap interval of the difference of means, 95 %, over drives."""
    means = [rng.choice(values, (_DRAWS, len(values))).mean(axis=1) for values in (one, other)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(low), float(high)
