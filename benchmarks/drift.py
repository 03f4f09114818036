"""How often drift tests are wrong: ``python -m benchmarks.drift``.

Simulated: 20 reference drives and 10 current ones of 100 frames; a frame's value has standard
deviation 1, of which a share ICC of the variance is the drive's own; the rest is AR(1) within the
drive. Nominal level 5 %. Peers test frames: Kolmogorov-Smirnov on all frames of both periods, and
the population stability index in ten bins with its usual limit of 0.2. Welch's test on the means of
drives stands beside the power: it knows that the values are normal.

The fleet-year has 60 vehicles with a level of their own in 15 signals, a third of them at night,
and 52 weekly looks of one week against the four weeks before; nothing drifts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from benchmarks.common import Row, main, note, row
from workbench.monitoring.drift import DriftRule, DriveSignals, find_drift

OLD, NEW, FRAMES = 20, 10, 100
ONE_LOOK = DriftRule(false_alarms_a_year=0.05, looks_a_year=1, permutations=400)
CELLS = ((0.0, 0.0), (0.0, 0.98), (0.3, 0.95), (0.5, 0.0), (0.5, 0.98))
_SIGNALS, _VEHICLES, _WEEKS = 15, 60, 52
_PSI_LIMIT = 0.2


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` simulates a tenth."""
    trials, years = (400, 2) if quick else (4000, 12)
    rows = []
    for icc, correlation in CELLS:
        name = f"ICC {icc:g}, autocorrelation {correlation:g}"
        note(f"{trials} pairs of periods, {name}")
        rng = np.random.default_rng(int(1000 * icc + 100_000 * correlation))
        same = np.array([_pair(rng, icc, correlation, 0.0, seed) for seed in range(trials)])
        ours, smirnov, psi, _ = same.mean(axis=0)
        rows.append(
            row(
                f"false alarms, {name}",
                float(ours),
                f"of {trials:,}",
                peer=float(smirnov),
                peer_name="KS on frames",
                goal="0.04 to 0.06",
                met=bool(0.04 <= ours <= 0.06),
            )
        )
        rows.append(row(f"  PSI > {_PSI_LIMIT}, {name}", float(psi), f"of {trials:,}", detail=True))
        fewer = max(trials // 4, 200)
        moved = np.array([_pair(rng, icc, correlation, 1.0, seed) for seed in range(fewer)])
        power, _, _, welch = moved.mean(axis=0)
        rows.append(
            row(
                f"found: a shift of one standard deviation, {name}",
                float(power),
                f"of {fewer:,}",
                peer=float(welch),
                peer_name="Welch on means of drives",
                goal=">= 0.9",
                met=bool(power >= 0.9),
            )
        )
    note(f"{years} fleet-years")
    counts = [_year(np.random.default_rng(year), year) for year in range(years)]
    high = float(stats.chi2.ppf(0.975, 2 * (sum(counts) + 1)) / 2 / years)
    rows.append(
        row(
            f"false alarms a fleet-year ({years} years, at most {high:.2f} at 95 %)",
            float(np.mean(counts)),
            f"of {_WEEKS} looks x {_SIGNALS} signals x 2 slices",
            goal="<= 1",
            met=high <= 1 if years >= 10 else None,
        )
    )
    return rows


def _pair(
    rng: np.random.Generator, icc: float, correlation: float, shift: float, seed: int
) -> tuple[bool, bool, bool, bool]:
    """Whether drift, KS on frames, PSI and Welch on drives raise an alarm."""
    frames = _drives(rng, OLD + NEW, icc, correlation)
    frames[OLD:] += shift
    means = frames.mean(axis=1)
    current = np.arange(OLD + NEW) >= OLD
    signals = DriveSignals({"value": means}, current, ["all"] * (OLD + NEW))
    found = bool(find_drift(signals, ONE_LOOK, seed=seed).found)
    old, new = frames[:OLD].ravel(), frames[OLD:].ravel()
    smirnov = stats.ks_2samp(old, new).pvalue < 0.05
    welch = stats.ttest_ind(means[:OLD], means[OLD:], equal_var=False).pvalue < 0.05
    return found, bool(smirnov), _psi(old, new) > _PSI_LIMIT, bool(welch)


def _drives(
    rng: np.random.Generator, count: int, icc: float, correlation: float
) -> NDArray[np.float64]:
    """Frames of drives, ``[count, FRAMES]``, with variance 1."""
    noise = rng.normal(size=(count, FRAMES))
    noise[:, 1:] *= np.sqrt(1 - correlation**2)
    within = signal.lfilter([1.0], [1.0, -correlation], noise, axis=1)
    own = rng.normal(size=(count, 1)) * np.sqrt(icc)
    return np.asarray(own + np.sqrt(1 - icc) * within)


def _psi(old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    edges = np.quantile(old, np.linspace(0, 1, 11)[1:-1])
    shares = [
        np.maximum(np.bincount(np.searchsorted(edges, part), minlength=10) / len(part), 1e-4)
        for part in (old, new)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _year(rng: np.random.Generator, seed: int) -> int:
    """Alarms in a year in which nothing drifts."""
    own = rng.normal(size=(_VEHICLES, _SIGNALS))
    weeks = own + 0.5 * rng.standard_t(4, size=(_WEEKS + 4, _VEHICLES, _SIGNALS))
    slices = ["night" if number % 3 == 0 else "day" for number in range(_VEHICLES)]
    vehicles = [str(number) for number in range(_VEHICLES)]
    alarms = 0
    for look in range(_WEEKS):
        before, now = weeks[look : look + 4].mean(axis=0), weeks[look + 4]
        values = np.concatenate([before, now])
        signals = DriveSignals(
            {f"signal {number}": values[:, number] for number in range(_SIGNALS)},
            np.arange(2 * _VEHICLES) >= _VEHICLES,
            slices * 2,
            vehicles * 2,
        )
        result = find_drift(signals, seed=1000 * seed + look)
        alarms += len({one.slice for one in result.found}) + result.mix_changed
    return alarms


if __name__ == "__main__":
    main(measure)
