"""Resample drives: the cluster bootstrap behind all intervals.

Frames of a drive resemble each other and are not independent, so drives are drawn with replacement
(Davison and Hinkley, "Bootstrap Methods and their Application", 1997, 3.8). With few clusters the
percentile interval is too narrow; its percentiles are widened as in Hesterberg, "What Teachers
Should Know About the Bootstrap", 2015 ("expanded percentile interval"). With fewer than
`MIN_DRIVES` drives, blocks of time are drawn instead, and the result describes these drives only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.core.text import short_repr
from workbench.records.frames import Frame

_Floats = NDArray[np.float64]

__all__ = ()

MIN_DRIVES = 10
_BLOCK_S = 10.0
_BLOCKS_WITHOUT_TIME = 10


@short_repr
@dataclass(frozen=True)
class ResamplingUnits:
    """What is resampled: drives, or blocks of time.

    Attributes:
        of: Number of each frame's unit, int64 ``[frames]``.
        count: Number of units.
        drives: Number of drives.
        name: Description, such as ``12 drives``.
    """

    of: NDArray[np.int64]
    count: int
    drives: int
    name: str

    @property
    def speaks_for_others(self) -> bool:
        """Whether an interval also holds for other drives."""
        return self.drives >= MIN_DRIVES


def resampling_units(frames: Sequence[Frame]) -> ResamplingUnits:
    """The drives of the frames, or blocks of 10 s if there are too few drives."""
    names = [frame.drive for frame in frames]
    drives = len(set(names))
    if drives >= MIN_DRIVES:
        keys: list[tuple[str, int]] = [(name, 0) for name in names]
    else:
        keys = list(zip(names, time_blocks(frames), strict=True))
    number = {key: position for position, key in enumerate(sorted(set(keys)))}
    name = f"{drives} drive{'s' * (drives != 1)}"
    if drives < MIN_DRIVES:
        name = f"{len(number)} blocks of {_BLOCK_S:.0f} s of {name}"
    return ResamplingUnits(
        np.array([number[key] for key in keys], np.int64), len(number), drives, name
    )


def time_blocks(frames: Sequence[Frame]) -> list[int]:
    """Each frame's block of 10 s within its drive; tenths of the drive without timestamps."""
    by_drive: dict[str, list[Frame]] = {}
    for frame in frames:
        by_drive.setdefault(frame.drive, []).append(frame)
    block: dict[str, int] = {}
    for members in by_drive.values():
        times = [frame.timestamp_us for frame in members if frame.timestamp_us is not None]
        if len(times) == len(members):
            start = min(times)
            block |= {
                frame.id: int((time - start) / (_BLOCK_S * 1e6))
                for frame, time in zip(members, times, strict=True)
            }
        else:
            ordered = sorted(members, key=lambda frame: frame.index)
            block |= {
                frame.id: position * _BLOCKS_WITHOUT_TIME // len(ordered)
                for position, frame in enumerate(ordered)
            }
    return [block[frame.id] for frame in frames]


def draw_resamples(count: int, resamples: int, seed: int) -> _Floats:
    """How often each unit is drawn in each resample.

    The same count and seed give the same draws, so two quantities can be compared row by row.

    Args:
        count: Number of units.

    Returns:
        float64 ``[1 + resamples, count]``; row 0 is the sample itself. Only row 0 for one unit.
    """
    first = np.ones((1, count))
    if count < 2:
        return first
    random = np.random.default_rng([seed, count])
    drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate([first, drawn.astype(np.float64)])


@lru_cache
def expanded_tail(drawn: int, confidence: float) -> float:
    """Fraction of the resamples below (and above) an interval.

    Args:
        drawn: Number of units per resample.
        confidence: Of the interval, such as 0.95.
    """
    from scipy import stats

    t = stats.t.ppf((1 - confidence) / 2, drawn - 1)
    return float(stats.norm.cdf(t * np.sqrt(drawn / (drawn - 1))))
