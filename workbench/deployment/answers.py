"""Answers to frames, the fallback rule, and fusion of boxes from several models."""

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


class AnswerStatus(StrEnum):
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

    ``by`` names what the boxes come from: bundles, or the rule. ``age`` counts the frames since a
    model last answered in time, 0 for its own answer. ``ms`` is what preprocessing, network and
    decoding took, None where the model was not asked. ``why`` explains anything but ``ok``.
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


# ---- The rule that answers when the model does not.
#
# The last boxes that a model gave in time are given again, where they were, with scores that fall by
# a fifth a frame, and for a quarter of a second of video at most. Then the answer is empty and says
# so: nothing is known, which a planner must treat as such and not as a free road. The rule is
# deterministic and invents nothing; it does not move boxes, for at 30 frames a second a box of a
# vehicle ahead moves less than the rule would guess wrong.


RULE_LAST_BOXES = "rule: last known boxes"
RULE_NO_BOXES = "rule: nothing is known"


@dataclass(frozen=True)
class FallbackRule:
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


class FallbackMemory:
    """The last answer of a model in each sequence of frames."""

    def __init__(self, rule: FallbackRule | None = None) -> None:
        self.rule = rule or FallbackRule()
        self._last: dict[str, tuple[tuple[AnswerBox, ...], int]] = {}

    def keep(self, sequence: str, boxes: tuple[AnswerBox, ...]) -> None:
        """A model answered in time."""
        self._last[sequence] = (boxes, 0)

    def recall(self, sequence: str) -> tuple[tuple[AnswerBox, ...], str, int]:
        """The rule's answer to the next frame of a sequence: boxes, its name, and their age."""
        boxes, age = self._last.get(sequence, ((), self.rule.most_frames))
        age += 1
        self._last[sequence] = (boxes, age)
        if age > self.rule.most_frames:
            return (), RULE_NO_BOXES, age
        factor = self.rule.decay**age
        held = tuple(
            AnswerBox(cls=box.cls, score=round(box.score * factor, 6), xyxy=box.xyxy)
            for box in boxes
            if box.score * factor >= self.rule.floor
        )
        return held, RULE_LAST_BOXES, age


# ---- One set of boxes from several models: weighted boxes fusion (Solovyev et al., 2021).
#
# Boxes of one class that overlap are averaged with their scores as weights, instead of all but the
# best being dropped. A box that few models saw loses score. Everything is taken in a fixed order, so
# equal inputs give equal outputs, whichever model was asked first.


_BoxRows = NDArray[np.float64]


def fuse_boxes(members: Sequence[Detections], *, iou: float = 0.55, limit: int = 100) -> Detections:
    """The detections of several models on one frame as one, best first.

    Args:
        members: One entry a model, in any order; boxes in pixels of the frame.
        iou: Overlap with a fused box from which a box joins it.
        limit: Most boxes given.

    Raises:
        ParameterError: There are no models.
    """
    if not members:
        raise ParameterError("no models to fuse the boxes of")
    rows = np.concatenate([_box_rows(found) for found in members])
    # By class, then falling score, then place: ties never fall to the order of the models.
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


def _box_rows(found: Detections) -> _BoxRows:
    """Box, score, class: ``[n, 6]``."""
    columns = (found.boxes, found.scores[:, None], found.classes[:, None])
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
