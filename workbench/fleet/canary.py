"""Judge a canary: did the vehicles with the new version do worse than those without it?

The vehicle is the unit of chance: frames, and days, of one vehicle are not independent, so a test
that counts them stops four of ten canaries that change nothing. The judge is a randomisation test
over vehicles: which of them became canaries was drawn at random, so under "no effect" every other
draw was as likely, and the answer is compared with those of such draws. It assumes no distribution,
and it is exact for heavy tails too.

Looking repeatedly is paid for by alpha spending (Lan & DeMets 1983, power family): of all draws,
at most ``alpha * (look / looks) ** 1.5`` may have been stopped by each look. Two scores of a
vehicle's rate are used, the rate and its square root, both with their highest values cut off
(winsorised): the first has power when rates vary little, the second when a few vehicles have most
of the events. The maximum over scores and metrics is compared with its own distribution (max-T,
Westfall & Young 1993), so a plan with more metrics stops no more often by chance.

Missing is not healthy. A vehicle without a report has no rate, is counted as silent, and silence is
judged as a metric of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import short_repr
from workbench.records.base import FrozenModel

__all__ = ["judge"]

SILENT = "silent"
"""Name of the metric that counts vehicles without a report."""

_SPENDING_POWER = 1.5
_CUT_OFF = 0.01, 0.05  # share of the highest rates that is cut off, for the rate and its root
_TIE = 1e-9  # scores closer than this are equal: sums depend on the order of vehicles


class Outcome(StrEnum):
    """The three answers of the judge."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


class CanaryRule(FrozenModel):
    """How a canary is judged.

    Attributes:
        metrics: Counts of bad events in vehicle reports; each is divided by the frames.
        looks: Number of times that the judge looks, spread evenly over the soak time.
        alpha: Probability of stopping a canary that changes nothing, over all looks and metrics.
        tolerated_ratio: A canary succeeds when rates that are this many times the baseline's can be
            ruled out, at 5 % for each metric.
        acceptable: Rate per frame, by metric, that needs no comparison: a canary also succeeds when
            the upper end of its own rate lies below. For events so rare that the baseline has none.
        min_vehicles: Least number of reporting canary vehicles for a success.
        min_reporting: Least share of canary vehicles that report, for a success.
        permutations: Number of draws that the answer is compared with.
    """

    metrics: tuple[str, ...] = Field(min_length=1)
    looks: int = Field(default=5, ge=1, le=50)
    alpha: float = Field(default=0.045, gt=0, lt=0.5)
    tolerated_ratio: float = Field(default=2.0, gt=1)
    acceptable: dict[str, float] = {}
    min_vehicles: int = Field(default=10, ge=3)
    min_reporting: float = Field(default=0.9, gt=0, le=1)
    permutations: int = Field(default=1000, ge=200, le=100_000)


@short_repr
@dataclass(frozen=True)
class CanaryData:
    """Totals of each vehicle from the start of the canary to each look.

    Attributes:
        canary: Whether each vehicle was *drawn* for the new version, ``[N]``; what it says it runs
            does not matter.
        events: Number of events by vehicle, look and metric, ``[N, K, M]``, cumulative over looks.
        exposure: Frames by vehicle and look, ``[N, K]``, cumulative; 0 for a silent vehicle.
    """

    canary: NDArray[np.bool_]
    events: NDArray[np.float64]
    exposure: NDArray[np.float64]


@dataclass(frozen=True)
class MetricResult:
    """One metric at the last look; rates are means over vehicles of events per frame."""

    name: str
    canary: float | None
    baseline: float | None
    p_value: float | None
    within_tolerance: bool


@short_repr
@dataclass(frozen=True)
class Judgement:
    """Answer of the judge.

    Attributes:
        look: Number of the look that decided, or of the last one.
        canary: Number of canary vehicles, and how many of them report; ``baseline`` likewise.
        p_value: Of the look alone, over all metrics, not corrected for earlier looks.
    """

    outcome: Outcome
    look: int
    looks: int
    canary: tuple[int, int]
    baseline: tuple[int, int]
    p_value: float
    metrics: tuple[MetricResult, ...]
    why: str


def judge(data: CanaryData, rule: CanaryRule, *, seed: int = 0) -> Judgement:
    """Judge a canary from the looks so far.

    FAILED can be the answer at any look. SUCCESSFUL is only given at the last one, and needs
    evidence: enough vehicles that report, and rates beyond the tolerated ratio ruled out. All else
    is INCONCLUSIVE. The answer of a look does not change when later looks are added.

    Args:
        data: With at most ``rule.looks`` looks.
        rule: Metrics in the order of ``data.events``.
        seed: Of the draws; the same for all looks of a canary.

    Raises:
        ParameterError: Shapes do not fit, or one of the groups has no vehicle.
        DataError: A number is negative, NaN or infinite.
    """
    _check(data, rule)
    present = data.exposure > 0
    draws = _draws(data.canary, rule.permutations, seed)
    looks = data.exposure.shape[1]
    statistics = [_statistic(data, look, draws) for look in range(looks)]
    stopped = _first_crossing([joint for joint, _ in statistics], rule)
    last = looks - 1 if stopped is None else stopped
    joint, by_metric = statistics[last]
    rates = _rates(data, last)
    final = last + 1 == rule.looks
    metrics = tuple(
        MetricResult(
            name=name,
            canary=_mean(rates[data.canary & present[:, last], number]),
            baseline=_mean(rates[~data.canary & present[:, last], number]),
            p_value=_p_value(by_metric[number]),
            within_tolerance=final and _within_tolerance(data, rule, number, draws),
        )
        for number, name in enumerate(rule.metrics)
    )
    canary = (int(data.canary.sum()), int((data.canary & present[:, last]).sum()))
    baseline = (int((~data.canary).sum()), int((~data.canary & present[:, last]).sum()))
    outcome, why = _outcome(rule, metrics, by_metric, canary, stopped=stopped, final=final)
    return Judgement(
        outcome, last + 1, rule.looks, canary, baseline, _p_value(joint) or 1.0, metrics, why
    )


def _check(data: CanaryData, rule: CanaryRule) -> None:
    vehicles, looks = data.exposure.shape
    if data.canary.shape != (vehicles,) or data.events.shape != (
        vehicles,
        looks,
        len(rule.metrics),
    ):
        raise ParameterError(
            f"canary data of shapes {data.canary.shape}, {data.events.shape} and "
            f"{data.exposure.shape} do not fit {len(rule.metrics)} metrics"
        )
    if not 1 <= looks <= rule.looks:
        raise ParameterError(f"{looks} looks, but the rule has {rule.looks}")
    if not data.canary.any() or data.canary.all():
        raise ParameterError("a canary needs vehicles with the new version and vehicles without it")
    for numbers in (data.events, data.exposure):
        if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
            raise DataError("canary data has a number that is negative, NaN or infinite")


def _draws(canary: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.float32]:
    """Draws of as many canaries, ``[count, N]``, 1 for a canary; the first is the real one."""
    draws = _random_draws(len(canary), int(canary.sum()), count, seed).copy()
    draws[0] = canary
    return draws


@lru_cache(maxsize=4)
def _random_draws(vehicles: int, chosen: int, count: int, seed: int) -> NDArray[np.float32]:
    """Half the time of a judgement, and the same at each look of a canary."""
    order = np.random.default_rng(seed).random((count, vehicles), dtype=np.float32)
    draws = np.zeros((count, vehicles), np.float32)
    np.put_along_axis(draws, np.argpartition(order, chosen, axis=1)[:, :chosen], 1, axis=1)
    return draws


def _rates(data: CanaryData, look: int) -> NDArray[np.float64]:
    """Events per frame, ``[N, M]``; 0 for a silent vehicle, which `_contrast` leaves out."""
    exposure = data.exposure[:, look, None]
    rates: NDArray[np.float64] = np.divide(
        data.events[:, look], exposure, out=np.zeros_like(data.events[:, look]), where=exposure > 0
    )
    return rates


def _statistic(
    data: CanaryData, look: int, draws: NDArray[np.float32]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """How much worse canaries are, for each draw: over everything, and by metric with silence."""
    present = data.exposure[:, look] > 0
    rates = _rates(data, look)
    by_metric = [_score(rates[:, number], present, draws) for number in range(rates.shape[1])]
    everyone = np.ones_like(present)
    by_metric.append(_contrast((~present).astype(np.float64), everyone, draws))
    return np.maximum.reduce(by_metric), by_metric


def _score(
    rates: NDArray[np.float64], present: NDArray[np.bool_], draws: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The larger contrast of the two scores of a rate, for each draw."""
    roots = np.sqrt(rates)
    capped = (
        _cut_off(values, present, share)
        for values, share in zip((rates, roots), _CUT_OFF, strict=True)
    )
    larger: NDArray[np.float64] = np.maximum.reduce(
        [_contrast(values, present, draws) for values in capped]
    )
    return larger


def _cut_off(
    values: NDArray[np.float64], present: NDArray[np.bool_], share: float
) -> NDArray[np.float64]:
    """Cap the highest ``share`` of values, at least two, at the next lower one.

    A vehicle that lies then counts no more than an honest one with many events.
    """
    known = np.sort(values[present])
    cut = max(2, int(np.ceil(share * len(known))))
    return np.minimum(values, known[-cut - 1]) if len(known) > cut else values


def _contrast(
    values: NDArray[np.float64], present: NDArray[np.bool_], draws: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean of the drawn minus mean of the others, ``[draws]``, in standard deviations over draws.

    -inf where there is nothing to compare: all values are equal, or a draw has nobody present.
    """
    weight = present.astype(np.float32)
    centred = np.where(present, values - values[present].mean(), 0.0) if present.any() else values
    spread = float(np.abs(centred).max(initial=0.0))
    if not present.any() or spread <= 0:
        return np.full(len(draws), -np.inf)
    sums = draws @ np.stack([(centred / spread), weight], axis=1).astype(np.float32)
    drawn, total = sums[:, 1].astype(np.float64), float(weight.sum())
    inside = sums[:, 0].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = inside / drawn + inside / (total - drawn)  # the others' sum is -inside
    usable = (drawn > 0) & (drawn < total)
    deviation = float(difference[usable].std()) if usable.any() else 0.0
    if deviation <= 0:
        return np.full(len(draws), -np.inf)
    contrast: NDArray[np.float64] = np.where(usable, difference / deviation, -np.inf)
    return contrast


def _first_crossing(statistics: Sequence[NDArray[np.float64]], rule: CanaryRule) -> int | None:
    """Index of the first look that stops the real draw (number 0), or None.

    At each look so many of the draws are stopped that alpha is spent as planned; the real one is
    stopped when it is among them. Ties are never stopped, so coarse counts err on the safe side.
    """
    going = np.ones(len(statistics[0]), bool)
    for look, statistic in enumerate(statistics):
        allowed = rule.alpha * ((look + 1) / rule.looks) ** _SPENDING_POWER
        budget = int(allowed * len(going) + _TIE) - int((~going).sum())
        if budget <= 0:
            continue
        remaining = np.where(going, statistic, -np.inf)
        bound = np.partition(remaining, -budget - 1)[-budget - 1]
        crossed = remaining > bound + _TIE if np.isfinite(bound) else remaining > -np.inf
        if crossed[0] and int(crossed.sum()) <= budget:
            return look
        going &= ~crossed
    return None


def _p_value(statistic: NDArray[np.float64]) -> float | None:
    """Share of draws that are at least as bad as the real one; None without a comparison."""
    if not np.isfinite(statistic[0]):
        return None
    return float((statistic >= statistic[0] - _TIE).mean())


def _within_tolerance(
    data: CanaryData, rule: CanaryRule, number: int, draws: NDArray[np.float32]
) -> bool:
    """Whether a rate of the tolerated ratio is ruled out at the last look (non-inferiority).

    If canaries had exactly that many times the events, dividing theirs by the ratio would make the
    groups alike; a draw then ranks among the lowest 5 % with that probability.
    """
    look = data.exposure.shape[1] - 1
    present = data.exposure[:, look] > 0
    rates = _rates(data, look)[:, number]
    ours = present & data.canary
    if not ours.any():
        return False
    acceptable = rule.acceptable.get(rule.metrics[number])
    if acceptable is not None and _upper_rate(data, look, number, ours) <= acceptable:
        return True
    shifted = np.where(data.canary, rates / rule.tolerated_ratio, rates)
    # Turned round, so that "better than tolerated" is large. Only the root: a mean is dominated by
    # the very vehicles that a shift of all rates moves least.
    roots = _cut_off(np.sqrt(shifted), present, _CUT_OFF[1])
    p_value = _p_value(_contrast(-roots, present, draws))
    return p_value is not None and p_value <= 0.05


def _upper_rate(data: CanaryData, look: int, number: int, ours: NDArray[np.bool_]) -> float:
    """Upper 95 % end of the canaries' rate: of vehicles' means, and of the pooled Poisson count."""
    from scipy import stats

    count = int(ours.sum())
    rates = _rates(data, look)[ours, number]
    events, exposure = data.events[ours, look, number].sum(), data.exposure[ours, look]
    # Not the sum alone: one vehicle that claims to drive a thousand times as much would decide.
    frames = min(exposure.sum(), count * np.median(exposure))
    poisson = float(stats.chi2.ppf(0.95, 2 * (events + 1)) / 2 / frames)
    if count < 2:
        return np.inf
    student = float(rates.mean() + stats.t.ppf(0.95, count - 1) * rates.std(ddof=1) / count**0.5)
    return max(poisson, student)


def _outcome(
    rule: CanaryRule,
    metrics: tuple[MetricResult, ...],
    by_metric: Sequence[NDArray[np.float64]],
    canary: tuple[int, int],
    *,
    stopped: int | None,
    final: bool,
) -> tuple[Outcome, str]:
    drawn, reporting = canary
    if stopped is not None:
        names = (*rule.metrics, SILENT)
        worst = names[int(np.argmax([statistic[0] for statistic in by_metric]))]
        return Outcome.FAILED, f"{worst}: worse than the vehicles without the new version"
    if not final:
        return Outcome.INCONCLUSIVE, "more looks to come"
    if reporting < rule.min_reporting * drawn:
        silent = drawn - reporting
        return Outcome.INCONCLUSIVE, f"{silent} of {drawn} canary vehicles are silent"
    if reporting < rule.min_vehicles:
        return Outcome.INCONCLUSIVE, f"{reporting} canary vehicles, {rule.min_vehicles} are needed"
    open_ones = [metric.name for metric in metrics if not metric.within_tolerance]
    if open_ones:
        ratio = f"{rule.tolerated_ratio:g} times the baseline"
        return Outcome.INCONCLUSIVE, f"{', '.join(open_ones)}: {ratio} cannot be ruled out"
    return Outcome.SUCCESSFUL, f"{rule.tolerated_ratio:g} times the baseline is ruled out"


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
