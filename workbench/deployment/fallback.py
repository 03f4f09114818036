"""The rule that answers when the model does not.

The last boxes that a model gave in time are given again, where they were, with scores that fall by
a fifth a frame, and for a quarter of a second of video at most. Then the answer is empty and says
so: nothing is known, which a planner must treat as such and not as a free road. The rule is
deterministic and invents nothing; it does not move boxes, for at 30 frames a second a box of a
vehicle ahead moves less than the rule would guess wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.deployment.answers import Found
from workbench.errors import ParameterError

RULE = "rule: last known boxes"
NOTHING = "rule: nothing is known"


@dataclass(frozen=True)
class Rule:
    """How long and how firmly old boxes are held.

    Args:
        decay: Factor of the score for each frame without an answer of the model.
        most_frames: Frames after which nothing is known any more; 8 at 30 frames a second.
        floor: Boxes whose score fell below are dropped.
    """

    decay: float = 0.8
    most_frames: int = 8
    floor: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or self.most_frames < 0 or not 0 <= self.floor <= 1:
            raise ParameterError(
                "fallback rule cannot hold",
                where=f"decay {self.decay}, most_frames {self.most_frames}, floor {self.floor}",
                hint="decay lies in (0, 1], floor in [0, 1]",
            )


class Memory:
    """The last answer of a model in each sequence of frames."""

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule or Rule()
        self._last: dict[str, tuple[tuple[Found, ...], int]] = {}

    def keep(self, sequence: str, boxes: tuple[Found, ...]) -> None:
        """A model answered in time."""
        self._last[sequence] = (boxes, 0)

    def recall(self, sequence: str) -> tuple[tuple[Found, ...], str, int]:
        """The rule's answer to the next frame of a sequence: boxes, its name, and their age."""
        boxes, age = self._last.get(sequence, ((), self.rule.most_frames))
        age += 1
        self._last[sequence] = (boxes, age)
        if age > self.rule.most_frames:
            return (), NOTHING, age
        factor = self.rule.decay**age
        held = tuple(
            Found(cls=box.cls, score=round(box.score * factor, 6), xyxy=box.xyxy)
            for box in boxes
            if box.score * factor >= self.rule.floor
        )
        return held, RULE, age
