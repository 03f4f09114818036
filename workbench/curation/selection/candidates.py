"""What a selection is made from: candidates, the labeling budget and the selection rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workbench.core.errors import DataError, ParameterError
from workbench.records.base import FrozenModel

__all__ = ["Budget", "LabelingPace", "SelectionRules"]


class LabelingPace(FrozenModel):
    """Labeling time of a frame: seconds per frame plus seconds per box.

    Attributes:
        seconds_per_frame: Fixed time of a frame.
        seconds_per_box: Time of each box.
        source: Where the numbers come from, such as ``measured over 120 answers``, or ``given``.
    """

    seconds_per_frame: float = Field(ge=0)
    seconds_per_box: float = Field(default=0.0, ge=0)
    source: str = "given"

    def seconds(self, boxes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Expected seconds of frames with so many boxes, float64 ``[n]``."""
        return self.seconds_per_frame + self.seconds_per_box * boxes.astype(np.float64)

    def __str__(self) -> str:
        each = f"{self.seconds_per_frame:.1f} s a frame and {self.seconds_per_box:.1f} s a box"
        return f"{each}, {self.source}"


class Budget(FrozenModel):
    """A labeling budget: either a number of frames, or minutes of labelers' time.

    Attributes:
        frames: Number of frames.
        minutes: Minutes of labeling time; needs ``pace``.
        pace: Converts boxes to time.
    """

    frames: int | None = None
    minutes: float | None = None
    pace: LabelingPace | None = None

    def costs(self, boxes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Cost of each frame in units of the budget, float64 ``[n]``: one, or minutes.

        Args:
            boxes: ``[n]`` expected boxes per frame.

        Raises:
            ParameterError: Not exactly one kind is given, or minutes have no usable pace.
        """
        if (self.frames is None) == (self.minutes is None):
            raise ParameterError("invalid budget: give either frames or minutes")
        if self.minutes is None:
            return np.ones(len(boxes))
        if self.pace is None:
            raise ParameterError(
                "labeling time was not measured yet, so minutes cannot be converted to frames",
                where=f"minutes={self.minutes:g}",
                hint="Give --seconds-per-frame (and --seconds-per-box), or a budget in frames;"
                " `workbench label effort` shows measured times",
            )
        minutes = self.pace.seconds(boxes) / 60
        if not (minutes > 0).all():
            raise ParameterError("invalid pace: a frame takes no time", where=str(self.pace))
        return minutes

    def check(self) -> None:
        """Raise what `costs` and `amount` would, before any work is done."""
        self.costs(np.zeros(1, np.int64))
        _ = self.amount

    @property
    def amount(self) -> float:
        """Size of the budget, in the unit of `costs`; raises `ParameterError` when not positive."""
        if self.frames is not None and self.frames < 1:
            raise ParameterError("budget must be ≥ 1 frame", where=f"budget={self.frames}")
        if self.minutes is not None and not self.minutes > 0:
            raise ParameterError("budget must be > 0 minutes", where=f"minutes={self.minutes:g}")
        return float(self.frames if self.minutes is None else self.minutes)  # type: ignore[arg-type]


class SelectionRules(FrozenModel):
    """How a budget is spent.

    Attributes:
        random_share: Share of the budget drawn at random.
        drive_share: Largest share of the mined frames from one drive; at least two frames, and an
            equal share where there are few drives.
        gap_s: Seconds between mined frames of one drive; high-scoring frames that follow each other
            more closely are one event.
        gap_frames: The same in frames, for drives without timestamps.
        event_s: Longest event, seconds; longer ones are split.
        event_frames: The same in frames, for drives without timestamps.
        event_likeness: Cosine similarity of neighbouring frames below which a new event begins.
            Measured with a detector's vectors: 95 % of neighbours are above 0.5 in simulated drives
            (0.5 s apart) and above 0.28 in CamVid (1 s apart); the median of frames from different
            drives is below 0.
        diversity: Weight in [0, 1] of being unlike the frames chosen so far, against rank, among
            the best four times as many frames as the budget pays for.
        quotas: Minimum number of mined frames by condition, such as ``{"night": 20}``. A condition
            is named in full, as ``night, rain``, or by one part.
        control: Draw a random control arm of the same size first, to compare the mined arm with. It
            replaces the random share.
        typical_below: With fewer labelled frames than this, typical frames are chosen instead of
            rare ones.
    """

    random_share: float = Field(default=0.15, ge=0, le=1)
    drive_share: float = Field(default=0.08, gt=0, le=1)
    gap_s: float = Field(default=2.0, ge=0)
    gap_frames: int = Field(default=5, ge=0)
    event_s: float = Field(default=10.0, gt=0)
    event_frames: int = Field(default=25, gt=0)
    event_likeness: float = Field(default=0.3, ge=-1, le=1)
    diversity: float = Field(default=0.3, ge=0, le=1)
    quotas: dict[str, int] = {}
    control: bool = False
    typical_below: int = Field(default=10, ge=0)


@dataclass(frozen=True)
class Candidates:
    """``n`` frames to choose from, in columns, so that a million of them fit in memory.

    Attributes:
        frames: Digests.
        drives: Drive of each frame.
        index: Int64 ``[n]``: index of each frame in its drive.
        time_s: Float64 ``[n]``, NaN without timestamps.
        conditions: Condition of each frame, in words.
        score: Float64 ``[n]`` in [0, 1], 1 is best.
        faults: Verdict of the quality gate, empty for usable frames.
        boxes: Int64 ``[n]``: expected boxes per frame.
        reasons: Reasons for the frame in a row; called for chosen rows only.
        signals: Ranks by signal of the frame in a row; called for chosen rows only.
        lead: First reason, a template with ``percent`` and ``condition``.
        groups: Group that each frame was ranked in; by default its condition.
        vectors: ``[n, d]``, any float; None disables diversity by content.
        box: The part of the frame in a row that it was ranked for, pixels; None is the whole.

    Raises:
        DataError: A score is not finite.
    """

    frames: Sequence[str]
    drives: Sequence[str]
    index: NDArray[np.int64]
    time_s: NDArray[np.float64]
    conditions: Sequence[str]
    score: NDArray[np.float64]
    faults: Sequence[str]
    boxes: NDArray[np.int64]
    reasons: Callable[[int], tuple[str, ...]]
    signals: Callable[[int], Mapping[str, float]]
    lead: str = "rarest {percent} % among {condition} frames"
    groups: Sequence[str] = ()
    vectors: NDArray[np.floating] | None = None
    box: Callable[[int], tuple[float, float, float, float] | None] = lambda row: None

    def __post_init__(self) -> None:
        if not np.isfinite(self.score).all():
            bad = int(np.flatnonzero(~np.isfinite(self.score))[0])
            raise DataError("score is not finite", where=self.frames[bad])

    def __len__(self) -> int:
        return len(self.frames)

    def usable_rows(self) -> NDArray[np.int64]:
        """Rows without a fault, ordered by digest, so that the given order has no influence.

        Raises:
            DataError: There are none.
        """
        usable = np.flatnonzero(np.array([not fault for fault in self.faults], bool))
        if not len(usable):
            faults = sorted(set(self.faults))
            raise DataError(
                f"none of {len(self.frames)} frames is usable",
                where=f"quality gate: {', '.join(faults)}" if faults else "the pool",
                hint="Ingest drives whose frames get the role pool, or widen the quality gate",
            )
        names = np.array([self.frames[row].encode() for row in usable.tolist()])
        ordered: NDArray[np.int64] = usable[np.argsort(names, kind="stable")]
        return ordered
