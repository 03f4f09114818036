"""The figures of `benchmarks.mining`: what was counted pool by pool, as rows with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from benchmarks.common import Row, row

OURS, CORRECTED = "ours", "corrected uniqueness"
GOALS: Mapping[int, float | None] = {25: 20.0, 200: 10.0}
"""Frames looked at of a search by one exemplar, and how many times random is hoped for."""


@dataclass
class Tally:
    """Ratios to random and recalls, pool by pool."""

    ratio: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    recall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, recall: float, expected: float) -> None:
        self.recall[name].append(recall)
        self.ratio[name].append(recall / expected)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, and its 95 % interval by Student's t; no interval of fewer than two."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def _in_words(values: list[float], most: float = float("inf")) -> str:
    """An interval, cut where no value can be: below zero and above ``most``."""
    if len(values) < 2:
        return "one value"
    _, low, high = interval(values)
    return f"{max(low, 0.0):.1f} to {min(high, most):.1f}"


def headlines(tally: Tally, *, judged: bool) -> list[Row]:
    """The goals, each on the mean over the pools."""
    frames, events = tally.ratio[f"{OURS}, frames at 1 %"], tally.ratio[f"{OURS}, events at 5 %"]
    other = tally.ratio[f"{CORRECTED}, frames at 1 %"]
    mean, peer = float(np.mean(frames)), float(np.mean(other))
    return [
        row(
            "rare frames at 1 % of the frames",
            mean,
            f"x random ({_in_words(frames)})",
            goal=">= 5",
            met=mean >= 5 if judged else None,
        ),
        row(
            "rare events at 5 % of the frames",
            float(np.mean(events)),
            f"x random ({_in_words(events)})",
            goal=">= 2.5",
            met=float(np.mean(events)) >= 2.5 if judged else None,
        ),
        row(
            "rare frames at 1 %, beside uniqueness",
            mean,
            "x random",
            peer=peer,
            peer_name=f"{CORRECTED}: {_in_words(other)}",
            goal=">= 2 x",
            met=mean >= 2 * peer if judged else None,
        ),
    ]


def arm_rows(tally: Tally) -> list[Row]:
    rows = []
    for name, recalls in tally.recall.items():
        percent = [100 * value for value in recalls]
        rows.append(
            row(
                name,
                float(np.mean(percent)),
                f"% found ({_in_words(percent, 100.0)}); {np.mean(tally.ratio[name]):.1f} x random",
            )
        )
    return rows


def exemplar_rows(
    tally: Tally, *, judged: bool, goals: Mapping[int, float | None] = GOALS
) -> list[Row]:
    rows = []
    for top, goal in goals.items():
        name = f"top {top}"
        ratios, precision = tally.ratio[name], float(np.mean(tally.recall[name]))
        mean = float(np.mean(ratios))
        prevalence = float(np.mean(np.divide(tally.recall[name], np.maximum(ratios, 1e-9))))
        rows.append(
            row(
                f"one boxed exemplar, {name}",
                mean,
                f"x random ({_in_words(ratios)}); precision {precision:.2%}, "
                f"prevalence {prevalence:.3%}",
                goal="" if goal is None else f">= {goal:g}",
                met=mean >= goal if judged and goal is not None else None,
            )
        )
    return rows


def slice_rows(slices: dict[str, list[float]]) -> list[Row]:
    """What of each kind ours finds at 5 %: chance finds about 14 %."""
    return [
        row(f"{kind}: events found at 5 %", 100 * float(np.mean(found)), f"% of {len(found)}")
        for kind, found in sorted(slices.items(), key=lambda pair: -float(np.mean(pair[1])))
    ]


def cost_rows(costs: dict[str, list[float]], peaks: dict[str, float], frames: int) -> list[Row]:
    return [
        row(
            f"{name}: order {frames:,} frames",
            float(np.mean(seconds)),
            f"CPU-s, peak {peaks[name]:,.0f} MB",
        )
        for name, seconds in costs.items()
    ]
