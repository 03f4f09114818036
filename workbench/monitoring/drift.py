"""Have drives changed? Tests in which the drive is the unit of chance.

Frames of one drive are alike, so a test that counts frames raises an alarm on nearly every pair of
weeks (measured in ``benchmarks/drift.py``). Here each drive gives one number, or one histogram, for
each signal, and the p-value comes from permuting whole drives between reference and current: exact
for any distribution and any correlation within a drive, with the add-one of Phipson & Smyth (2010).

Drives are permuted within their slice only, so a fleet that drives more at night raises no alarm
by itself (Simpson's paradox); the mix of slices is tested on its own. A vehicle that is in both
periods is compared with itself.

Two statistics for each slice and signal: location is Welch's t, studentised so that unequal lengths
of drives do no harm (Janssen 1997; Chung & Romano 2013); shape is the Cramér-von Mises distance
between the mean distributions of drives. The maximum over all slices, signals and both statistics
is compared with its own distribution (max-T, Westfall & Young 1993).

Looking every week is paid for evenly: a look may raise a false alarm with probability
``false_alarms_a_year / looks_a_year``. The expected number a year is the sum over looks, however
much the weeks depend on each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import short_repr
from workbench.records.base import FrozenModel

__all__ = ["find_drift"]

Statistic = Literal["location", "shape"]

_GRID = 32  # points of the distribution of a scalar signal
_TIE = 1e-9
_MIX_SHARE = 0.2  # of a look's false alarms, for the mix of slices; the rest for signals
_SPREAD = 0.95  # quantile over draws that statistics are measured in, so that they compare


class DriftRule(FrozenModel):
    """How often to look, and how many false alarms that may cost.

    Attributes:
        false_alarms_a_year: Expected number over all signals, slices and looks of a year.
        looks_a_year: Number of looks.
        min_drives: Drives that a slice needs in each period; fewer are not tested.
        permutations: Number of draws, the real one included.
    """

    false_alarms_a_year: float = Field(default=0.5, gt=0)
    looks_a_year: int = Field(default=52, ge=1)
    min_drives: int = Field(default=8, ge=3)
    permutations: int = Field(default=4000, ge=200, le=100_000)

    @property
    def alpha(self) -> float:
        """Probability of a false alarm at one look."""
        return min(0.5, self.false_alarms_a_year / self.looks_a_year)


@short_repr
@dataclass(frozen=True)
class DriveSignals:
    """Signals of drives in a reference and a current period.

    Attributes:
        values: By signal, one number a drive ``[N]``, or its histogram ``[N, B]`` (counts; bins in
            ascending order, the same for all drives). NaN, or an empty histogram: not measured.
        current: Whether each drive is of the current period, ``[N]``.
        slices: Slice of each drive, ``[N]``.
        vehicles: Vehicle of each drive, ``[N]``. Drives of one vehicle, slice and period are
            averaged first. Without it each drive is taken to be of a vehicle of its own.
    """

    values: Mapping[str, NDArray[np.float64]]
    current: NDArray[np.bool_]
    slices: Sequence[str]
    vehicles: Sequence[str] | None = None


@dataclass(frozen=True)
class Drift:
    """One signal in one slice.

    Attributes:
        what: ``location`` or ``shape``, of the smaller p-value.
        reference: Mean over drives; of a histogram, the mean number of the bin.
        current: Likewise.
        effect: Change in standard deviations of the reference's drives.
        p_value: Adjusted for all slices, signals and statistics of the look.
    """

    slice: str
    signal: str
    what: Statistic
    reference: float
    current: float
    effect: float
    p_value: float
    drives: tuple[int, int]


@short_repr
@dataclass(frozen=True)
class DriftLook:
    """Result of one look.

    Attributes:
        tested: Every slice and signal with enough drives, the smallest p-value first.
        alpha: Level of the tests of signals.
        mix_p_value: That slices are driven as often as before; None for a single slice.
        mix_alpha: Level of that test.
        shares: Share of drives by slice, in the reference and now.
        skipped: Why a slice was not tested.
    """

    tested: tuple[Drift, ...]
    alpha: float
    mix_p_value: float | None
    mix_alpha: float
    shares: dict[str, tuple[float, float]]
    skipped: dict[str, str]

    @property
    def found(self) -> tuple[Drift, ...]:
        """What drifted."""
        return tuple(one for one in self.tested if one.p_value <= self.alpha)

    @property
    def mix_changed(self) -> bool:
        """Whether slices are driven more or less often than before."""
        return self.mix_p_value is not None and self.mix_p_value <= self.mix_alpha


@dataclass(frozen=True)
class _Units:
    """Drives after averaging; ``pair`` numbers vehicles of a slice that are in both periods."""

    values: dict[str, NDArray[np.float64]]
    current: NDArray[np.bool_]
    slices: NDArray[np.str_]
    vehicles: NDArray[np.str_]


def find_drift(signals: DriveSignals, rule: DriftRule | None = None, *, seed: int = 0) -> DriftLook:
    """Test every signal in every slice, and the mix of slices, at one look.

    Args:
        rule: Levels; weekly looks by default.
        seed: Of the draws.

    Raises:
        ParameterError: Shapes do not fit.
        DataError: A value is infinite, or a count negative.
    """
    rule = rule or DriftRule()
    units = _units(signals)
    rng = np.random.default_rng(seed)
    names = [str(one) for one in np.unique(units.slices)]
    candidates: list[tuple[str, str, Statistic, NDArray[np.float64]]] = []
    skipped: dict[str, str] = {}
    for name in names:
        rows, paired = _rows(units, units.slices == name, rule.min_drives)
        old, new = int((~units.current[rows]).sum()), int(units.current[rows].sum())
        if min(old, new) < rule.min_drives:
            skipped[name] = f"{old} and {new} drives, at least {rule.min_drives} each are needed"
            continue
        draws = _draws(units.current[rows], units.vehicles[rows], rule.permutations, rng, paired)
        for signal, values in units.values.items():
            for what, statistic in _statistics(values[rows], draws, rule.min_drives):
                candidates.append((name, signal, what, statistic))
    level = rule.alpha * (1 - _MIX_SHARE if len(names) > 1 else 1)
    mix, shares = _mix(units, names, rule, rng)
    return DriftLook(
        tested=_adjusted(units, candidates),
        alpha=level,
        mix_p_value=mix,
        mix_alpha=rule.alpha * _MIX_SHARE,
        shares=shares,
        skipped=skipped,
    )


def _adjusted(
    units: _Units,
    candidates: Sequence[tuple[str, str, Statistic, NDArray[np.float64]]],
) -> tuple[Drift, ...]:
    """Max-T: the share of draws whose largest statistic is at least as large."""
    if not candidates:
        return ()
    largest = np.maximum.reduce([statistic for *_, statistic in candidates])
    best: dict[tuple[str, str], Drift] = {}
    strongest: dict[tuple[str, str], float] = {}
    for name, signal, what, statistic in candidates:
        if statistic[0] <= strongest.get((name, signal), -np.inf):
            continue
        strongest[name, signal] = float(statistic[0])
        p_value = float((largest >= statistic[0] - _TIE).mean())
        best[name, signal] = _drift(units, name, signal, what, p_value)
    return tuple(sorted(best.values(), key=lambda one: one.p_value))


def _drift(units: _Units, name: str, signal: str, what: Statistic, p_value: float) -> Drift:
    values = _score(units.values[signal])
    inside = (units.slices == name) & np.isfinite(values)
    old, new = values[inside & ~units.current], values[inside & units.current]
    spread = float(old.std(ddof=1)) if len(old) > 1 else 0.0
    change = float(new.mean() - old.mean())
    return Drift(
        slice=name,
        signal=signal,
        what=what,
        reference=float(old.mean()),
        current=float(new.mean()),
        effect=change / spread if spread > 0 else 0.0,
        p_value=p_value,
        drives=(len(old), len(new)),
    )


def _units(signals: DriveSignals) -> _Units:
    """Checked, with one row for each vehicle, slice and period."""
    current = np.asarray(signals.current, bool)
    count = len(current)
    vehicles = signals.vehicles
    if vehicles is None:
        vehicles = [str(number) for number in range(count)]
    values: dict[str, NDArray[np.float64]] = {}
    for name, given in signals.values.items():
        array = np.asarray(given, np.float64)
        if np.isinf(array).any() or (array.ndim == 2 and (array < 0).any()):
            raise DataError("a value is infinite, or a count negative", where=f"signal {name}")
        values[name] = array
    lengths = {len(signals.slices), len(vehicles), *(len(array) for array in values.values())}
    if lengths != {count} or any(array.ndim not in {1, 2} for array in values.values()):
        raise ParameterError(f"signals, slices and vehicles do not fit {count} drives")
    if not values or not current.any() or current.all():
        raise ParameterError("drift needs signals, and drives of a reference and a current period")
    keys = np.array([*zip(signals.slices, vehicles, current.astype(str), strict=True)])
    unique, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    if len(unique) < count:
        values = {name: _averaged(array, group, len(unique)) for name, array in values.items()}
        current = current[first]
    else:
        unique = keys
    return _Units(values, current, unique[:, 0], unique[:, 1])


def _averaged(
    array: NDArray[np.float64], group: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Mean of each group without what is missing; histograms become mean shares."""
    rows = _shares(array) if array.ndim == 2 else array
    known = np.isfinite(rows)
    sums = np.zeros((count, *rows.shape[1:]))
    numbers = np.zeros_like(sums)
    np.add.at(sums, group, np.where(known, rows, 0.0))
    np.add.at(numbers, group, known)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / np.where(numbers > 0, numbers, np.nan))


def _rows(
    units: _Units, inside: NDArray[np.bool_], min_drives: int
) -> tuple[NDArray[np.int64], bool]:
    """Rows of a slice to compare, and whether they are pairs of the same vehicle."""
    rows = np.flatnonzero(inside)
    names, counts = np.unique(units.vehicles[rows], return_counts=True)
    both = names[counts == 2]
    smaller = min(int(units.current[rows].sum()), int((~units.current[rows]).sum()))
    if len(both) >= max(min_drives, smaller / 2):
        return rows[np.isin(units.vehicles[rows], both)], True
    # The same vehicle in both periods makes the two more alike: fewer false alarms, not more.
    return rows, False


def _draws(
    current: NDArray[np.bool_],
    vehicles: NDArray[np.str_],
    count: int,
    rng: np.random.Generator,
    paired: bool,
) -> NDArray[np.float32]:
    """``[count, N]``, 1 for a drive drawn as current; the first draw is the real one."""
    if paired:
        _, pair = np.unique(vehicles, return_inverse=True)
        swap = rng.random((count, int(pair.max()) + 1)) < 0.5
        draws = (current[None, :] ^ swap[:, pair]).astype(np.float32)
    else:
        order = rng.random((count, len(current)), dtype=np.float32)
        chosen = int(current.sum())
        draws = np.zeros((count, len(current)), np.float32)
        np.put_along_axis(draws, np.argpartition(order, chosen - 1, axis=1)[:, :chosen], 1, axis=1)
    draws[0] = current
    return draws


def _statistics(
    values: NDArray[np.float64], draws: NDArray[np.float32], min_drives: int
) -> list[tuple[Statistic, NDArray[np.float64]]]:
    """Location and shape for each draw, in units of their own spread over draws."""
    score = _score(values)
    known = np.isfinite(score)
    inside = draws[:, known]
    drawn = inside.sum(axis=1)
    others = known.sum() - drawn
    if min(drawn[0], others[0]) < min_drives or np.ptp(score[known]) <= 0:
        return []
    usable = (drawn >= 2) & (others >= 2)
    location = np.abs(_welch(score[known], inside, drawn, others))
    shape = _distance(_cumulative(values[known]), inside, drawn, others)
    found: list[tuple[Statistic, NDArray[np.float64]]] = []
    pairs: tuple[tuple[Statistic, NDArray[np.float64]], ...]
    pairs = (("location", location), ("shape", shape))
    for what, given in pairs:
        statistic = np.where(usable & np.isfinite(given), given, 0.0)
        spread = float(np.quantile(statistic, _SPREAD))
        if spread > 0:
            found.append((what, statistic / spread))
    return found


def _welch(
    values: NDArray[np.float64],
    draws: NDArray[np.float32],
    drawn: NDArray[np.float32],
    others: NDArray[np.float32],
) -> NDArray[np.float64]:
    centred = (values - values.mean()) / values.std()
    sums = draws @ np.stack([centred, centred**2], axis=1).astype(np.float32)
    total, squares = float(centred.sum()), float((centred**2).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, rest = sums[:, 0] / drawn, (total - sums[:, 0]) / others
        variance = (sums[:, 1] / drawn - mean**2) / (drawn - 1)
        variance = variance + ((squares - sums[:, 1]) / others - rest**2) / (others - 1)
        return np.asarray((mean - rest) / np.sqrt(np.maximum(variance, 1e-12)), np.float64)


def _distance(
    cumulative: NDArray[np.float64],
    draws: NDArray[np.float32],
    drawn: NDArray[np.float32],
    others: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Root of the Cramér-von Mises distance between the mean distributions, for each draw."""
    mean = cumulative.mean(axis=0)
    weight = np.sqrt(np.diff(mean, prepend=0.0).clip(0))
    inside = draws @ ((cumulative - mean) * weight).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = inside / drawn[:, None] + inside / others[:, None]
    return np.asarray(np.sqrt((difference**2).sum(axis=1)), np.float64)


def _score(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One number a drive: itself, or the mean number of the bin of its histogram."""
    if values.ndim == 1:
        return values
    return np.asarray(_shares(values) @ np.arange(values.shape[1], dtype=np.float64))


def _shares(histograms: NDArray[np.float64]) -> NDArray[np.float64]:
    total = histograms.sum(axis=1, keepdims=True)
    return np.asarray(histograms / np.where(total > 0, total, np.nan))


def _cumulative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distribution of each drive: of its frames if it has a histogram, else a step."""
    if values.ndim == 2:
        return np.asarray(np.cumsum(_shares(values), axis=1))
    points = np.unique(np.quantile(values, (np.arange(_GRID) + 0.5) / _GRID))
    return (values[:, None] <= points[None, :]).astype(np.float64)


def _mix(
    units: _Units, names: Sequence[str], rule: DriftRule, rng: np.random.Generator
) -> tuple[float | None, dict[str, tuple[float, float]]]:
    """Whether slices are driven as often as before; vehicles are permuted with all their slices."""
    vehicles, index = np.unique(units.vehicles, return_inverse=True)
    counts = np.zeros((2, len(vehicles), len(names)))
    np.add.at(counts, (units.current.astype(int), index, np.searchsorted(names, units.slices)), 1)
    old, new = counts
    shares = {
        name: (float(old[:, i].sum() / old.sum()), float(new[:, i].sum() / new.sum()))
        for i, name in enumerate(names)
    }
    if len(names) < 2:
        return None, shares
    both = (old.sum(axis=1) > 0) & (new.sum(axis=1) > 0)
    # A vehicle in both periods swaps its two; the others are drawn as whole vehicles.
    swap = rng.random((rule.permutations, len(vehicles))) < 0.5
    alone = np.flatnonzero(~both)
    is_new = new[alone].sum(axis=1) > 0
    if len(alone):
        flags = (
            _draws(is_new, units.vehicles[:0], rule.permutations, rng, False) > 0.5
            if (0 < is_new.sum() < len(alone))
            else np.broadcast_to(is_new, (rule.permutations, len(alone)))
        )
        swap[:, alone] = flags != is_new
    swap[0] = False
    change = swap.astype(np.float32) @ (old - new).astype(np.float32)
    drawn = new.sum(axis=0) + change
    rest = old.sum(axis=0) - change
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = drawn / drawn.sum(axis=1, keepdims=True) - rest / rest.sum(
            axis=1, keepdims=True
        )
    deviation = difference.std(axis=0)
    statistic = np.abs(difference / np.where(deviation > 0, deviation, np.inf)).max(axis=1)
    return float((statistic >= statistic[0] - 1e-6).mean()), shares
