"""Budgets: so many frames, or minutes of labelers' time at a pace that somebody measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workbench.errors import ParameterError
from workbench.records.base import Row


class Pace(Row):
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


class Budget(Row):
    """``frames``, or ``minutes`` of labelers' time at a ``pace``; never both."""

    frames: int | None = None
    minutes: float | None = None
    pace: Pace | None = None

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
