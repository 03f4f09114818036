"""What a selection is made from: candidates, the labeling budget and the selection rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workbench.core.errors import DataError, ParameterError
from workbench.records.base import FrozenModel


class LabelingPace(FrozenModel):
    """How long labelers take: a frame with n boxes takes the sum of both, in seconds.

    ``source`` says where the numbers come from, such as ``measured over 120 answers``; a pace that
    was given and not measured says ``given``.
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
    """``frames``, or ``minutes`` of labelers' time at a ``pace``; never both."""

    frames: int | None = None
    minutes: float | None = None
    pace: LabelingPace | None = None

    def costs(self, boxes: NDArray[np.integer]) -> NDArray[np.float64]:
        """What each frame takes of the budget, float64 ``[n]``: one, or minutes.

        Args:
            boxes: ``[n]`` boxes that a labeler will probably meet on each frame.

        Raises:
            ParameterError: Neither or both kinds are given, none of it is left to spend, or
                minutes come without a pace.
        """
        if (self.frames is None) == (self.minutes is None):
            raise ParameterError("a budget is so many frames or so many minutes, one of both")
        if self.minutes is None:
            return np.ones(len(boxes))
        if self.pace is None:
            raise ParameterError(
                "nobody measured yet how long a frame takes: minutes cannot become frames",
                where=f"minutes={self.minutes:g}",
                hint="Give --seconds-per-frame (and --seconds-per-box), or a budget in frames;"
                " `workbench label effort` shows what was measured",
            )
        taken = self.pace.seconds(boxes) / 60
        if not (taken > 0).all():
            raise ParameterError("at this pace a frame takes no time at all", where=str(self.pace))
        return taken

    def check(self) -> None:
        """Raise what `costs` and `amount` would, before anybody has worked for it."""
        self.costs(np.zeros(1, np.int64))
        _ = self.amount

    @property
    def amount(self) -> float:
        """How much there is to spend, in the unit of `costs`; raises `ParameterError` on none."""
        if self.frames is not None and self.frames < 1:
            raise ParameterError(
                "a budget must be at least one frame", where=f"budget={self.frames}"
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ParameterError(
                "a budget must be some minutes of time", where=f"minutes={self.minutes:g}"
            )
        return float(self.frames if self.minutes is None else self.minutes)  # type: ignore[arg-type]


# ---- How a budget is spent: the few numbers that a team may want to change, each with its reason.


class SelectionRules(FrozenModel):
    """How a budget is spent.

    Attributes:
        random_share: Of the budget, drawn at random.
        drive_share: Of the mined part, at most from one drive; at least two frames, and an
            equal share where drives are few.
        gap_s: Seconds between mined frames of one drive. High-scoring frames of a drive that
            follow each other more closely are one event.
        gap_frames: The same, for drives without time.
        event_s: Longest event in seconds; what goes on for longer is several.
        event_frames: The same, for drives without time.
        event_likeness: Cosine likeness of neighbouring frames below which the scene has changed
            and another event begins. Measured with a detector's vectors: 95 % of neighbours are
            above 0.5 in simulated drives (0.5 s apart) and 0.28 in CamVid (1 s apart); frames of
            different drives have a median below 0.
        diversity: Weight in [0, 1] of being unlike what is chosen already, against rank, among
            the best four times as many frames as the budget pays for.
        quotas: At least so many mined frames of a condition, such as ``{"night": 20}``. A
            condition is named whole, as ``night, rain``, or by a part of it.
        control: Draw a random arm of the same size first, to compare the mined one with. The
            random share is then left out, for the control arm counts rare frames as well.
        typical_below: With fewer labelled frames than this, nothing can be told rare: typical
            frames of the pool are chosen instead.
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


# ---- Candidates: the frames a budget may be spent on, as columns, so that a million of them fit.


@dataclass(frozen=True)
class Candidate:
    """A frame that may be chosen: ``score`` is its rarity in [0, 1], ``why`` the words for it.

    ``fault`` is the quality gate's verdict; with one, the frame is never chosen.
    """

    frame: str
    drive: str
    index: int
    time_s: float | None
    condition: str
    score: float
    why: tuple[str, ...] = ()
    fault: str = ""


def _no_reasons(_: int) -> tuple[str, ...]:
    return ()


def _no_signals(_: int) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Candidates:
    """``n`` frames that may be chosen.

    Attributes:
        frames: Digests.
        drives: The drive of each.
        index: Int64 ``[n]``, place in its drive.
        time_s: Float64 ``[n]``, NaN where a drive has no times.
        conditions: Light, weather and so on of each, in words.
        score: Float64 ``[n]`` in [0, 1], 1 first.
        faults: The quality gate's verdict, empty where a frame is usable.
        boxes: Int64 ``[n]`` boxes that a labeler will probably meet.
        lead: The first reason, with places for ``percent`` and ``condition``.
        groups: What each was ranked among, for the reason; by default its condition.
        vectors: ``[n, d]`` of any float, or None where choices cannot be held apart by content.
        why: Row to the words that speak for the frame; asked of chosen rows only.
        signals: Row to the frame's ranks by signal; asked of chosen rows only.
    """

    frames: Sequence[str]
    drives: Sequence[str]
    index: NDArray[np.int64]
    time_s: NDArray[np.float64]
    conditions: Sequence[str]
    score: NDArray[np.float64]
    faults: Sequence[str]
    boxes: NDArray[np.int64]
    lead: str = "rarest {percent} % among {condition} frames"
    groups: Sequence[str] = ()
    vectors: NDArray[np.floating] | None = None
    why: Callable[[int], tuple[str, ...]] = field(default=_no_reasons)
    signals: Callable[[int], Mapping[str, float]] = field(default=_no_signals)

    def __post_init__(self) -> None:
        if not np.isfinite(self.score).all():
            bad = int(np.flatnonzero(~np.isfinite(self.score))[0])
            raise DataError("a score is not a number", where=self.frames[bad])

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def of(cls, rows: Sequence[Candidate]) -> Candidates:
        """The same frames given one by one."""
        nan = float("nan")
        return cls(
            frames=[one.frame for one in rows],
            drives=[one.drive for one in rows],
            index=np.array([one.index for one in rows], np.int64),
            time_s=np.array([nan if one.time_s is None else one.time_s for one in rows], float),
            conditions=[one.condition for one in rows],
            score=np.array([one.score for one in rows], float),
            faults=[one.fault for one in rows],
            boxes=np.zeros(len(rows), np.int64),
            why=lambda row: rows[row].why,
        )

    def usable(self) -> NDArray[np.int64]:
        """Rows without a fault, in order of their frames' digests: the order given says nothing.

        Raises:
            DataError: There are none.
        """
        fit = np.flatnonzero(np.array([not fault for fault in self.faults], bool))
        if not len(fit):
            faults = sorted(set(self.faults))
            raise DataError(
                f"none of {len(self.frames)} frames can be chosen",
                where=f"quality gate: {', '.join(faults)}" if faults else "the pool",
                hint="Ingest drives whose frames get the role pool, or widen the quality gate",
            )
        names = np.array([self.frames[row].encode() for row in fit.tolist()])
        ordered: NDArray[np.int64] = fit[np.argsort(names, kind="stable")]
        return ordered
