"""Drawing drives again: the unit in which evidence about frames comes.

Frames of one drive resemble each other, so they are not independent evidence: the drive is drawn
again, with replacement (cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and their
Application", 1997, 3.8). With few clusters the plain percentile interval is too narrow; its
percentiles are widened as Hesterberg advises ("What Teachers Should Know About the Bootstrap",
2015, "expanded percentile interval"). Below `ENOUGH_DRIVES` drives, blocks of time are drawn
instead, and what comes of it only describes these drives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.records.frames import Frame

Floats = NDArray[np.float64]

MIN_DRIVES = 10
BLOCK_S = 10.0
_BLOCKS_WITHOUT_TIME = 10


@dataclass(frozen=True)
class ResamplingUnits:
    """What is drawn again: ``of`` gives each frame its unit's number; ``name`` says what they are.

    ``speaks_for_others`` tells whether an interval says something of drives not seen.
    """

    of: NDArray[np.int64]
    count: int
    drives: int
    name: str

    @property
    def speaks_for_others(self) -> bool:
        return self.drives >= MIN_DRIVES


def resampling_units(frames: Sequence[Frame]) -> ResamplingUnits:
    """Drives of the frames, or blocks of time where there are too few drives."""
    names = [frame.drive for frame in frames]
    drives = len(set(names))
    if drives >= MIN_DRIVES:
        keys: list[tuple[str, int]] = [(name, 0) for name in names]
    else:
        keys = list(zip(names, time_blocks(frames), strict=True))
    number = {key: position for position, key in enumerate(sorted(set(keys)))}
    what = f"{drives} drives"
    if drives < MIN_DRIVES:
        what = f"{len(number)} blocks of {BLOCK_S:.0f} s of {drives} drives"
    return ResamplingUnits(
        np.array([number[key] for key in keys], np.int64), len(number), drives, what
    )


def time_blocks(frames: Sequence[Frame]) -> list[int]:
    """Block of each frame within its drive; without times, tenths of the drive by index."""
    by_drive: dict[str, list[Frame]] = {}
    for frame in frames:
        by_drive.setdefault(frame.drive, []).append(frame)
    block: dict[str, int] = {}
    for members in by_drive.values():
        times = [frame.timestamp_us for frame in members if frame.timestamp_us is not None]
        if len(times) == len(members):
            start = min(times)
            block |= {
                frame.id: int((time - start) / (BLOCK_S * 1e6))
                for frame, time in zip(members, times, strict=True)
            }
        else:
            ordered = sorted(members, key=lambda frame: frame.index)
            block |= {
                frame.id: position * _BLOCKS_WITHOUT_TIME // len(ordered)
                for position, frame in enumerate(ordered)
            }
    return [block[frame.id] for frame in frames]


def draw_resamples(count: int, resamples: int, seed: int) -> Floats:
    """[1 + resamples, count] how often each unit is drawn; row 0 is the sample itself.

    The same count and seed give the same draws, so two things are paired row by row.
    """
    first = np.ones((1, count))
    if count < 2:
        return first
    random = np.random.default_rng([seed, count])
    drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate([first, drawn.astype(np.float64)])


@lru_cache
def expanded_tail(drawn: int, confidence: float) -> float:
    """Share of resamples to leave out at each end of an interval, of ``drawn`` units each."""
    from scipy import stats

    t = stats.t.ppf((1 - confidence) / 2, drawn - 1)
    return float(stats.norm.cdf(t * np.sqrt(drawn / (drawn - 1))))
