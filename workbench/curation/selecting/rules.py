"""How a budget is spent: the few numbers that a team may want to change, each with its reason."""

from __future__ import annotations

from pydantic import Field

from workbench.records.base import Row


class SelectionRules(Row):
    """How a budget is spent.

    Args:
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
