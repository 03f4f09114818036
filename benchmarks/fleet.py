"""How often the canary judge is wrong: ``python -m benchmarks.fleet``.

Everything here is simulated: each vehicle has a rate of its own (gamma with a coefficient of
variation, log-normal, or Pareto with infinite variance), and its events are Poisson counts.
20 vehicles are canaries, 200 the baseline, the judge looks 5 times. An A/A canary changes nothing:
stopping it is a false stop. The peer counts all vehicles' events together and compares the two
rates with a z-test at each look, as a dashboard does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.common import Row, main, note, row
from workbench.fleet.canary import CanaryData, CanaryRule, Outcome, judge

CANARY, BASELINE, LOOKS = 20, 200, 5
RULE = CanaryRule(metrics=("fallbacks",), looks=LOOKS)
KINDS = {
    "CV 0.5": ("gamma", 0.5),
    "CV 1": ("gamma", 1.0),
    "CV 2": ("gamma", 2.0),
    "heavy tail, log-normal, CV 2": ("lognormal", 2.0),
    "heavy tail, Pareto 1.5": ("pareto", 1.5),
}
_EVENTS_A_LOOK = 4.0
_FRAMES_A_LOOK = 10_000.0
_SAME_DRAWS = 20  # canaries that share their draws: half the time goes into those


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` simulates 400 canaries of each kind instead of 10,000."""
    trials = 400 if quick else 10_000
    rows = []
    for name, (kind, shape) in KINDS.items():
        rng = np.random.default_rng(18)
        note(f"{trials} A/A canaries, {name}")
        same, naive = _run(kind, shape, 1.0, trials, rng)
        _, high = _interval(same[Outcome.FAILED], trials)
        low, _ = _interval(same[Outcome.FAILED], trials)
        rows.append(
            row(
                f"false stops of {trials:,} A/A canaries, {name} (95 %: {low:.3f} to {high:.3f})",
                same[Outcome.FAILED] / trials,
                "share",
                peer=naive / trials,
                peer_name="pooled z-test at each look",
                goal="upper end <= 0.05",
                met=high <= 0.05,
            )
        )
        rows.append(row(f"  judged successful, {name}", same[Outcome.SUCCESSFUL] / trials, "share"))
        fewer = max(trials // 5, 200)
        doubled, _ = _run(kind, shape, 2.0, fewer, rng)
        judged = name in {"CV 0.5", "CV 1"}
        power = doubled[Outcome.FAILED] / fewer
        rows.append(
            row(
                f"stopped at a doubled rate, {name}",
                power,
                f"of {fewer:,}",
                goal=">= 0.85" if judged else "",
                met=power >= 0.85 if judged else None,
            )
        )
        passed = doubled[Outcome.SUCCESSFUL] / fewer
        rows.append(
            row(f"  a doubled rate judged successful, {name}", passed, f"of {fewer:,}",
                goal="<= 0.05", met=passed <= 0.05)
        )  # fmt: skip
    rng = np.random.default_rng(18)
    fewer = max(trials // 5, 200)
    lying, _ = _run("gamma", 1.0, 1.0, fewer, rng, lie=1e9)
    name = "false stops when one of the 20 canaries reports 1e9 events, CV 1"
    return [*rows, row(name, lying[Outcome.FAILED] / fewer, f"of {fewer:,}")]


def simulate(
    kind: str, shape: float, ratio: float, trials: int, rng: np.random.Generator
) -> Iterator[CanaryData]:
    """Canaries whose rates are ``ratio`` times what they would be without the new version."""
    vehicles = CANARY + BASELINE
    canary = np.arange(vehicles) < CANARY
    exposure = np.tile(np.arange(1.0, LOOKS + 1) * _FRAMES_A_LOOK, (vehicles, 1))
    for _ in range(trials):
        rates = _EVENTS_A_LOOK * _vehicles(kind, shape, vehicles, rng)
        rates[canary] *= ratio
        counts = rng.poisson(rates[:, None], (vehicles, LOOKS)).cumsum(axis=1)
        yield CanaryData(canary, counts[..., None].astype(float), exposure)


def _run(
    kind: str,
    shape: float,
    ratio: float,
    trials: int,
    rng: np.random.Generator,
    *,
    lie: float | None = None,
) -> tuple[Counter[Outcome], int]:
    """Answers of the judge, and stops by the peer; with ``lie``, vehicle 0 reports that number."""
    answers: Counter[Outcome] = Counter()
    naive = 0
    for number, data in enumerate(simulate(kind, shape, ratio, trials, rng)):
        if lie is not None:
            data.events[0] = lie
        answers[judge(data, RULE, seed=number // _SAME_DRAWS).outcome] += 1
        naive += _pooled_z_stops(data)
    return answers, naive


def _vehicles(kind: str, shape: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Rates of vehicles with mean 1."""
    if kind == "gamma":
        return rng.gamma(shape**-2, shape**2, count)
    if kind == "lognormal":
        variance = np.log(1 + shape**2)
        return rng.lognormal(-variance / 2, variance**0.5, count)
    return (1 + rng.pareto(shape, count)) * (shape - 1) / shape


def _pooled_z_stops(data: CanaryData) -> bool:
    ours = data.events[data.canary, :, 0].sum(axis=0)
    theirs = data.events[~data.canary, :, 0].sum(axis=0)
    share = CANARY / (CANARY + BASELINE)
    total = ours + theirs
    z = (ours - total * share) / np.sqrt(np.maximum(total * share * (1 - share), 1e-12))
    return bool((z > 1.645).any())


def _interval(count: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Clopper and Pearson)."""
    found = stats.binomtest(count, trials).proportion_ci(0.95)
    return float(found.low), float(found.high)


if __name__ == "__main__":
    main(measure)
