"""Answers to frames, the fallback rule, and fusion of boxes from several models.

There is an answer for every frame, with its status:

    ok          boxes of the model, in time
    late        the model exceeded the time budget; boxes of the fallback rule
    fallback    the model failed; boxes of the fallback rule
    unreadable  the image could not be decoded; boxes of the fallback rule
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.detection.boxes import iou_matrix
from workbench.detection.families import Detections
from workbench.records.base import FrozenModel

__all__ = ()


class AnswerStatus(StrEnum):
    """Where the boxes of an answer come from, see the module."""

    OK = "ok"
    LATE = "late"
    FALLBACK = "fallback"
    UNREADABLE = "unreadable"


class AnswerBox(FrozenModel):
    """One box: ``xyxy`` in pixels of the frame, ``score`` in [0, 1]."""

    cls: str
    score: float
    xyxy: tuple[float, float, float, float]


class Answer(FrozenModel):
    """The answer to one frame.

    Attributes:
        by: Source of the boxes: bundles, or the fallback rule.
        age: Frames since a model last answered in time; 0 for its own answer.
        ms: Time of preprocessing, network and decoding; None where no model ran.
        why: Reason for any status but ``ok``, or what to know about the image.
        frame: Digest of the frame, if it is in a dataset.
    """

    file: str
    sequence: str
    status: AnswerStatus
    boxes: tuple[AnswerBox, ...]
    by: str
    age: int = 0
    ms: float | None = None
    why: str = ""
    frame: str | None = None


# The fallback rule repeats the last boxes that a model gave in time, with falling scores, for a
# quarter of a second of video at most. After that the answer is empty and says so: nothing is
# known, which is not the same as a free road. The rule is deterministic. It does not move boxes: at
# 30 frames per second a vehicle ahead moves less than the error of a predicted motion.

RULE_LAST_BOXES = "rule: last known boxes"
RULE_NO_BOXES = "rule: nothing is known"


@dataclass(frozen=True)
class FallbackRule:
    """Parameters of the fallback rule.

    Attributes:
        decay: Factor of the scores for each frame without an answer of a model, in (0, 1].
        max_frames: Frames after which no boxes are repeated.
        min_score: Boxes with a lower score are dropped, in [0, 1].

    Raises:
        ParameterError: A value is out of range.
    """

    decay: float = 0.8
    max_frames: int = 8
    min_score: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or self.max_frames < 0 or not 0 <= self.min_score <= 1:
            raise ParameterError(
                "invalid fallback rule",
                where=f"decay {self.decay}, max_frames {self.max_frames}, "
                f"min_score {self.min_score}",
                hint="decay must be in (0, 1], max_frames at least 0, min_score in [0, 1]",
            )


class FallbackMemory:
    """Last answer of a model in each sequence of frames."""

    def __init__(self, rule: FallbackRule | None = None) -> None:
        self.rule = rule or FallbackRule()
        self._last: dict[str, tuple[tuple[AnswerBox, ...], int]] = {}

    def remember(self, sequence: str, boxes: tuple[AnswerBox, ...]) -> None:
        """Store the boxes that a model gave in time."""
        self._last[sequence] = (boxes, 0)

    def recall(self, sequence: str) -> tuple[tuple[AnswerBox, ...], str, int]:
        """Boxes of the rule for the next frame of a sequence, name of the rule, age in frames."""
        boxes, age = self._last.get(sequence, ((), self.rule.max_frames))
        age += 1
        self._last[sequence] = (boxes, age)
        if age > self.rule.max_frames:
            return (), RULE_NO_BOXES, age
        factor = self.rule.decay**age
        repeated = tuple(
            AnswerBox(cls=box.cls, score=round(box.score * factor, 6), xyxy=box.xyxy)
            for box in boxes
            if box.score * factor >= self.rule.min_score
        )
        return repeated, RULE_LAST_BOXES, age


_BoxRows = NDArray[np.float64]


def fuse_boxes(members: Sequence[Detections], *, iou: float = 0.55, limit: int = 100) -> Detections:
    """Fuse the detections of several models on one frame (Solovyev et al., 2021).

    Weighted boxes fusion averages overlapping boxes of a class with their scores as weights, and
    lowers the score of a box that few models detect. The result does not depend on the order of the
    models.

    Args:
        members: Detections of each model, in pixels of the frame.
        iou: IoU with a fused box above which a box is merged into it.
        limit: Maximum number of boxes.

    Raises:
        ParameterError: There are no models.
    """
    if not members:
        raise ParameterError("no models to fuse")
    rows = np.concatenate([_box_rows(detections) for detections in members])
    # By class, falling score and position, so that ties do not depend on the order of models.
    order = np.lexsort((*(rows[:, column] for column in (3, 2, 1, 0)), -rows[:, 4], rows[:, 5]))
    fused: list[_BoxRows] = []
    for cls in np.unique(rows[:, 5]):
        fused += _fuse_class(rows[order][rows[order][:, 5] == cls], iou, len(members))
    table = np.array(fused, np.float64).reshape(-1, 6)
    best = np.lexsort((table[:, 0], table[:, 1], table[:, 5], -table[:, 4]))[:limit]
    table = table[best]
    return Detections(
        table[:, :4].astype(np.float32),
        table[:, 4].astype(np.float32),
        table[:, 5].astype(np.int64),
    )


def _box_rows(detections: Detections) -> _BoxRows:
    """``[n, 6]``: box, score, class."""
    columns = (detections.boxes, detections.scores[:, None], detections.classes[:, None])
    return np.concatenate([column.astype(np.float64) for column in columns], axis=1)


def _fuse_class(rows: _BoxRows, iou: float, models: int) -> list[_BoxRows]:
    clusters: list[list[_BoxRows]] = []
    fused: list[_BoxRows] = []
    for row in rows:
        joined = -1
        if fused:
            overlap = iou_matrix(row[None, :4], np.array(fused)[:, :4])[0]
            best = int(overlap.argmax())
            joined = best if overlap[best] > iou else -1
        if joined < 0:
            clusters.append([row])
            fused.append(row.copy())
        else:
            clusters[joined].append(row)
            fused[joined] = _average_boxes(clusters[joined])
    for cluster, box in zip(clusters, fused, strict=True):
        box[4] *= min(len(cluster), models) / models
    return fused


def _average_boxes(cluster: list[_BoxRows]) -> _BoxRows:
    table = np.array(cluster)
    weights = table[:, 4] / table[:, 4].sum()
    box: _BoxRows = table[0].copy()
    box[:4] = weights @ table[:, :4]
    box[4] = table[:, 4].mean()
    return box
