"""Confidence intervals by resampling whole drives (cluster bootstrap)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.data.resampling import MIN_DRIVES, expanded_tail, time_blocks
from workbench.evaluation.matching import Floats, Ints
from workbench.records.frames import Frame

__all__ = [
    "MIN_DEFINED_SHARE",
    "MIN_DRIVES",
    "Clusters",
    "cluster_frames",
    "percentile_interval",
]

MIN_DEFINED_SHARE = 0.5
"""Share of resamples in which a figure must exist for its interval to be shown."""


@dataclass(frozen=True)
class Clusters:
    """What is resampled: ``of`` gives every frame of the scene its cluster, or -1."""

    of: Ints
    count: int
    drives: int
    method: str

    @property
    def usable(self) -> bool:
        """Whether intervals may decide a gate; otherwise they only describe."""
        return self.drives >= MIN_DRIVES


def cluster_frames(frames: Sequence[Frame], chosen: Ints) -> Clusters:
    """Drives of the chosen frames, or blocks of time where there are too few drives."""
    of = np.full(len(frames), -1, np.int64)
    names = [frames[position].drive for position in chosen]
    drives = len(set(names))
    if drives >= MIN_DRIVES:
        keys: list[tuple[str, int]] = [(name, 0) for name in names]
        method = f"cluster bootstrap over {drives} drives"
    else:
        blocks = time_blocks([frames[position] for position in chosen])
        keys = list(zip(names, blocks, strict=True))
        method = (
            f"descriptive: bootstrap over {len(set(keys))} time blocks of {drives} drives, "
            f"fewer than the {MIN_DRIVES} that a gate needs"
        )
    number = {key: position for position, key in enumerate(sorted(set(keys)))}
    of[chosen] = [number[key] for key in keys]
    return Clusters(of, len(number), drives, method)


def percentile_interval(
    samples: Floats, clusters_drawn: int, confidence: float
) -> tuple[float, float] | None:
    """Two-sided expanded percentile interval of resampled values; None where there is none.

    Args:
        samples: [r] values without the sample itself; NaN where a resample had no truth.
        clusters_drawn: How many clusters each resample drew.
    """
    there = samples[np.isfinite(samples)]
    if (
        clusters_drawn < 2
        or len(there) < MIN_DEFINED_SHARE * max(len(samples), 1)
        or not len(there)
    ):
        return None
    tail = expanded_tail(clusters_drawn, confidence)
    low, high = np.quantile(there, [tail, 1 - tail])
    return float(low), float(high)
