"""How alike two frames have to be, measured on frames of which it is known that they are alike.

Consecutive frames of a drive show the same scene a moment later. How far their vectors lie apart
and in how many bits their hashes differ is the yardstick for all others, so it follows the model,
the camera and the frame rate instead of a constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workbench.curation.hygiene.fingerprints import differing_bits
from workbench.records.frames import Frame

ENOUGH_PAIRS = 20
"""Consecutive pairs below which nothing is measured."""

CONSECUTIVE_S = 1.5
"""Frames further apart are no longer the same moment; a drive without a clock counts as closer."""

MOST_BITS = 40
"""However unlike consecutive frames are: above this, hashes speak of two pictures.

Of 300,000 pairs from different drives none is as near, neither of CamVid's drives (the nearest: 86
bits) nor of the built-in ones (52). See docs/hygiene.md.
"""

COPY_BITS = 12
"""However alike consecutive frames are: up to this, two frames are copies of one picture.

Scaled to 0.7, lit 10 % more and saved as JPEG of quality 60, none of 120 frames of either differs
in more. So few bits speak for themselves, whatever the vectors say.
"""


@dataclass(frozen=True)
class Yardstick:
    """How far consecutive frames lie apart.

    Attributes:
        distance: Cosine distance of centred vectors, None without vectors.
        bits: Differing bits of their hashes.
        pairs: How many consecutive pairs it was measured on.
        share: Which share of them is at least as alike; 0.5 is the median.
    """

    distance: float | None
    bits: int
    pairs: int
    share: float

    @property
    def measured(self) -> bool:
        return self.pairs >= ENOUGH_PAIRS

    @property
    def told(self) -> str:
        """The threshold and its source, in words."""
        if not self.measured:
            return (
                f"{self.pairs} consecutive pairs are too few to measure on ({ENOUGH_PAIRS}),"
                f" so copies alone (<= {COPY_BITS} of 256 hash bits)"
            )
        near = "" if self.distance is None else f"cosine distance <= {self.distance:.4f} and "
        return (
            f"{near}<= {self.bits} of 256 hash bits: the closest {self.share:.0%} of {self.pairs}"
            f" consecutive pairs, within {COPY_BITS} to {MOST_BITS} bits"
        )


@dataclass(frozen=True)
class Likeness:
    """What frames are compared by; rows of all three belong together.

    Attributes:
        frames: ``n`` frames.
        hashes: Uint64 ``[n, 4]``.
        directions: Float32 ``[n, d]`` unit vectors, see `neighbours.directions`; None without a
            model.
    """

    frames: tuple[Frame, ...]
    hashes: NDArray[np.uint64]
    directions: NDArray[np.float32] | None = None

    def rows(self, keep: Iterable[int]) -> Likeness:
        wanted = np.fromiter(keep, np.int64)
        return Likeness(
            tuple(self.frames[row] for row in wanted.tolist()),
            self.hashes[wanted],
            None if self.directions is None else self.directions[wanted],
        )


def consecutive(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    """Rows of frames that follow each other in one drive, and soon."""
    by_drive: dict[str, list[int]] = {}
    for row, frame in enumerate(frames):
        by_drive.setdefault(frame.drive, []).append(row)
    pairs = []
    for rows in by_drive.values():
        ordered = sorted(rows, key=lambda row: (frames[row].index, frames[row].id))
        pairs += [
            (first, second)
            for first, second in pairwise(ordered)
            if _soon(frames[first], frames[second])
        ]
    return pairs


def measure(like: Likeness, share: float) -> Yardstick:
    """The likeness that ``share`` of all consecutive pairs reach, in either sense.

    A drive counts with at most as many pairs as the middle one has, so that one long wait at a
    red light does not become the yardstick.
    """
    pairs = _balanced(like, consecutive(like.frames))
    if not pairs:
        return Yardstick(None, COPY_BITS, 0, share)
    first, second = np.array(pairs).T
    bits = differing_bits(like.hashes[first], like.hashes[second])
    limit = int(np.clip(np.quantile(bits, share, method="lower"), COPY_BITS, MOST_BITS))
    if len(pairs) < ENOUGH_PAIRS:
        return Yardstick(None, COPY_BITS, len(pairs), share)
    distance = None
    if like.directions is not None:
        apart = 1 - (like.directions[first] * like.directions[second]).sum(axis=1)
        distance = float(np.quantile(apart, share, method="lower"))
    return Yardstick(distance, limit, len(pairs), share)


def _balanced(like: Likeness, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    by_drive: dict[str, list[tuple[int, int]]] = {}
    for pair in pairs:
        by_drive.setdefault(like.frames[pair[0]].drive, []).append(pair)
    if not by_drive:
        return []
    most = max(1, int(np.median([len(theirs) for theirs in by_drive.values()])))
    kept = []
    for theirs in by_drive.values():
        steps = np.linspace(0, len(theirs) - 1, min(most, len(theirs))).astype(int)
        kept += [theirs[step] for step in steps.tolist()]
    return kept


def _soon(first: Frame, second: Frame) -> bool:
    if first.timestamp_us is None or second.timestamp_us is None:
        return True
    return abs(second.timestamp_us - first.timestamp_us) <= CONSECUTIVE_S * 1e6
