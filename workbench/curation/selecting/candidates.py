"""Candidates: the frames a budget may be spent on, as columns, so that a million of them fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError


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


def _no_words(_: int) -> tuple[str, ...]:
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
    why: Callable[[int], tuple[str, ...]] = field(default=_no_words)
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
