"""What a frame is answered with. There is an answer for every frame, and it says what it rests on.

ok          the model's, in time
late        the model was not done within the budget; the answer is the rule's
fallback    the model failed; the answer is the rule's
unreadable  the image could not be read; the answer is the rule's
"""

from __future__ import annotations

from enum import StrEnum

from workbench.records.base import Row


class Status(StrEnum):
    OK = "ok"
    LATE = "late"
    FALLBACK = "fallback"
    UNREADABLE = "unreadable"


class Found(Row):
    """One box: ``xyxy`` in pixels of the frame, ``score`` in [0, 1]."""

    cls: str
    score: float
    xyxy: tuple[float, float, float, float]


class Answer(Row):
    """The answer to one frame.

    ``by`` names what the boxes come from: bundles, or the rule. ``age`` counts the frames since a
    model last answered in time, 0 for its own answer. ``ms`` is what preprocessing, network and
    decoding took, None where the model was not asked. ``why`` explains anything but ``ok``.
    """

    file: str
    sequence: str
    status: Status
    boxes: tuple[Found, ...]
    by: str
    age: int = 0
    ms: float | None = None
    why: str = ""
    frame: str | None = None
