"""Chance: a mined arm against a control arm, paired by the drives that both came from.

Both arms are drawn from the same drives, and some drives hold much and some nothing. Drawing the
drives again, each with what both arms found in it and the time both took, cancels that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.data import resampling
from workbench.records.types import Beaten, Verdict

Floats = NDArray[np.float64]

RESAMPLES = 4000
CONFIDENCE = 0.95

ENOUGH_FINDS = 6
"""Drives with finds below which two arms cannot be told apart at 95 %: were arms exchanged drive by
drive, five drives would all favour the same one in 2 of 32 cases, which is 6 %."""

_SETTLED = 0.5
"""Share of resamples in which a figure must exist for its interval to be shown."""


@dataclass(frozen=True)
class Yield:
    """What each of ``u`` units gave one arm and took of it: float64 ``[u]`` each."""

    found: Floats
    taken: Floats


def beaten(
    figure: str, mined: Yield, control: Yield, drawn_again: resampling.Units, *, seed: int = 0
) -> Beaten:
    """How many times as much the mined arm found per what it took, with a paired interval.

    An arm that found none decides nothing: the ratio is none, or has no upper end. Nor do finds in
    fewer than `ENOUGH_FINDS` units, for which a bootstrap promises too much, nor fewer than ten
    drives: the interval is then of their blocks of time, and describes just these drives.
    """
    weights = resampling.draw(drawn_again.count, RESAMPLES, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [weights @ arm.found / (weights @ arm.taken) for arm in (mined, control)]
        ratio = rates[0] / rates[1]
    none = [
        arm for arm, part in (("mined", mined), ("control", control)) if not part.found.sum() > 0
    ]
    low, high = interval(ratio[1:], drawn_again.count)
    with_finds = int((mined.found + control.found > 0).sum())
    if none:
        why = f"the {' and the '.join(none)} arm found none"
    elif not drawn_again.speaks_for_others:
        why = f"{drawn_again.drives} drives are too few to speak of others"
    elif with_finds < ENOUGH_FINDS:
        why = f"found in {with_finds} drives only; below {ENOUGH_FINDS} chance cannot be ruled out"
    else:
        why = ""
    verdict = Verdict.INSUFFICIENT if why else verdict_of(low, high, 1.0)
    if verdict is Verdict.INSUFFICIENT and not why:
        why = "the interval holds 1: it may as well be chance"
    return Beaten(
        figure=figure,
        change="ratio",
        mined=_finite(rates[0][0]),
        control=_finite(rates[1][0]),
        value=None if none else _finite(ratio[0]),
        low=None if none else low,
        high=None if none else high,
        verdict=verdict,
        drives=drawn_again.drives,
        unit=drawn_again.name,
        why=why,
    )


def share(
    found: Floats, frames: Floats, drawn_again: resampling.Units
) -> tuple[float, float] | None:
    """Interval of the share of rare frames in the pool, from frames drawn at random."""
    weights = resampling.draw(drawn_again.count, RESAMPLES, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = interval((weights @ found / (weights @ frames))[1:], drawn_again.count)
    return None if low is None or high is None else (low, high)


def interval(resampled: Floats, units: int) -> tuple[float | None, float | None]:
    """Both ends of the expanded percentile interval; None where there is no such end.

    Args:
        resampled: Values, infinite where a resample's control arm found none, NaN where both did.
        units: How many each resample drew.
    """
    there = resampled[~np.isnan(resampled)]
    if units < 2 or len(there) < _SETTLED * max(1, len(resampled)):
        return None, None
    tail = resampling.expanded_tail(units, CONFIDENCE)
    # To the next value outwards: between a number and infinity there is nothing to interpolate.
    low = float(np.quantile(there, tail, method="lower"))
    high = float(np.quantile(there, 1 - tail, method="higher"))
    return _finite(low), _finite(high)


def verdict_of(low: float | None, high: float | None, even: float) -> Verdict:
    """PASS or FAIL where the whole interval lies on one side of ``even``."""
    if low is not None and low > even:
        return Verdict.PASS
    if high is not None and high < even:
        return Verdict.FAIL
    return Verdict.INSUFFICIENT


def _finite(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
