"""Frames on which a model missed the most, and why an object was missed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.text import short_repr
from workbench.detection.boxes import iou_matrix
from workbench.evaluation.matching import EvaluationSet
from workbench.records.base import Digest
from workbench.records.frames import Box, Frame, Label
from workbench.records.types import Prediction

if TYPE_CHECKING:
    from workbench.evaluation.metrics import Evaluation

__all__ = ["FrameMisses", "explain_misses", "worst_frames"]

_FOUND_IOU = 0.5
_NEAR_IOU = 0.1
"""From this overlap on a box is about the object, as in TIDE's localisation error (Bolya et al.,
"TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020)."""
_SMALL_PX = 32
"""COCO's limit of small objects: the root of the area in pixels."""

_VULNERABLE_WEIGHT = 3
"""Weight of a missed vulnerable road user; other missed objects weigh 1."""


@dataclass(frozen=True)
class FalsePositive:
    """A prediction at the operating point that matches no ground truth."""

    cls: str
    box: Box
    score: float


@short_repr
@dataclass(frozen=True)
class FrameMisses:
    """Labels and false positives of one frame at the operating point.

    Attributes:
        missed: Labels without a matching prediction.
        hit: Labels with a matching prediction.
        ignored: Labels that do not count in the slice.
        weight: For ranking, see `worst_frames`.
    """

    frame: Frame
    missed: tuple[Label, ...]
    hit: tuple[Label, ...]
    ignored: tuple[Label, ...]
    false_positives: tuple[FalsePositive, ...]
    weight: float


def worst_frames(
    evaluation: Evaluation, count: int = 6, *, part: str = "all", per_drive: int = 1
) -> tuple[FrameMisses, ...]:
    """Frames with the most misses at the operating point, the worst first.

    A missed vulnerable road user weighs as much as three other misses; at equal weight the frame
    with the largest missed box comes first.

    Args:
        evaluation: Of the model.
        count: Maximum number of frames.
        part: Name of the slice.
        per_drive: Maximum number of frames of one drive, since these resemble each other.
    """
    frames = [each for each in _misses_by_frame(evaluation, part) if each.missed]
    frames.sort(key=lambda each: (-each.weight, each.frame.drive, each.frame.index))
    shown: Counter[str] = Counter()
    chosen: list[FrameMisses] = []
    for each in frames:
        if shown[each.frame.drive] < per_drive and len(chosen) < count:
            shown[each.frame.drive] += 1
            chosen.append(each)
    return tuple(chosen)


def _misses_by_frame(evaluation: Evaluation, part: str) -> list[FrameMisses]:
    table, data = evaluation.tables[part], evaluation.data
    above = table.score >= evaluation.metrics.settings.threshold
    missed: dict[int, list[Label]] = defaultdict(list)
    hit: dict[int, list[Label]] = defaultdict(list)
    for frame, label, row in zip(
        table.truth_frame.tolist(), table.truth_label, table.matched_by, strict=True
    ):
        group = hit if row >= 0 and above[row] else missed
        group[frame].append(data.labels[label])
    counted = set(table.truth_label.tolist())
    ignored: dict[int, list[Label]] = defaultdict(list)
    for frame, label in {*zip(data.truth.frame.tolist(), data.truth.label.tolist(), strict=True)}:
        if label not in counted:
            ignored[frame].append(data.labels[label])
    false_positives = _false_positives(evaluation, part)
    return [
        FrameMisses(
            frame=data.frames[frame],
            missed=tuple(missed[frame]),
            hit=tuple(hit[frame]),
            ignored=tuple(ignored[frame]),
            false_positives=tuple(false_positives[frame]),
            weight=_miss_weight(data, missed[frame]),
        )
        for frame in table.frames.tolist()
    ]


def _false_positives(evaluation: Evaluation, part: str) -> dict[int, list[FalsePositive]]:
    table, predicted = evaluation.tables[part], evaluation.data.predicted
    threshold = evaluation.metrics.settings.threshold
    boxes = dict(zip(predicted.source.tolist(), predicted.box.tolist(), strict=True))
    wrong = (table.score >= threshold) & ~table.ignored[0] & ~table.hit[0]
    by_frame: dict[int, list[FalsePositive]] = defaultdict(list)
    for row in wrong.nonzero()[0].tolist():
        x, y, w, h = boxes[int(table.source[row])]
        box, score = Box(x=x, y=y, w=w, h=h), float(table.score[row])
        by_frame[int(table.frame[row])].append(
            FalsePositive(table.classes[table.cls[row]], box, score)
        )
    return by_frame


def _miss_weight(data: EvaluationSet, missed: list[Label]) -> float:
    if not missed:
        return 0.0
    vulnerable = data.schema.vulnerable
    weight = sum(_VULNERABLE_WEIGHT if label.cls in vulnerable else 1 for label in missed)
    largest = max(label.box.w * label.box.h for label in missed)
    return weight + largest / (1 + max(frame.width * frame.height for frame in data.frames))


@short_repr
@dataclass(frozen=True)
class Miss:
    """A label without a matching box at the operating point, and the likeliest cause.

    Attributes:
        kind: ``below threshold`` (the right box scored too low), ``class`` (found as another
            class), ``place`` (a box of its class overlaps too little), ``taken`` (its box was
            matched to another label) or ``nothing``.
        nearest: The box with the largest overlap, of any class and score; None below an IoU of 0.1.
        iou: Of the nearest box; 0 without one.
        circumstances: What makes it hard, as far as labels say: occluded, truncated, small.
        other: The best box of its class that another model has there (IoU ≥ 0.5), if any.
    """

    label: Label
    kind: str
    nearest: Prediction | None
    iou: float
    circumstances: tuple[str, ...]
    other: Prediction | None = None

    def __str__(self) -> str:
        box = self.label.box
        place = f"{box.w:.0f}x{box.h:.0f} px at ({box.x:.0f}, {box.y:.0f})"
        return f"{self.label.cls} {place} of {self.label.frame[:12]}: {self.why}"

    @property
    def why(self) -> str:
        """The cause in words."""
        near = self.nearest
        box = "" if near is None else f"{near.cls} {near.score:.2f} at IoU {self.iou:.2f}"
        text = {
            "below threshold": f"found, but scored too low: {box}",
            "class": f"found as another class: {box}",
            "place": f"found in the wrong place: {box}",
            "taken": f"its box belongs to another label: {box}",
            "nothing": "no box near it",
        }[self.kind]
        if self.circumstances:
            text += f" ({', '.join(self.circumstances)})"
        if self.other is not None:
            text += f"; the other model finds it with {self.other.score:.2f}"
        return text


def explain_misses(
    frames: Iterable[FrameMisses],
    predictions: Iterable[Prediction],
    *,
    threshold: float,
    other: Iterable[Prediction] = (),
) -> tuple[Miss, ...]:
    """Why each missed label of these frames was missed.

    Args:
        frames: From `worst_frames`.
        predictions: All boxes of the model, down to low scores.
        threshold: Score of the operating point.
        other: Boxes of another model, such as the float file beside INT8, down to low scores.

    Returns:
        The misses in the order of ``frames``, largest objects of a frame first.
    """
    own, others = _by_frame(predictions), _by_frame(other)
    misses = []
    for one in frames:
        boxes = own.get(one.frame.id, [])
        for label in sorted(one.missed, key=lambda each: -each.box.w * each.box.h):
            overlaps = _overlaps(label, boxes)
            kind, at = _cause(label, boxes, overlaps, threshold)
            others_here = others.get(one.frame.id, [])
            there = [
                box
                for box, iou in zip(others_here, _overlaps(label, others_here), strict=True)
                if iou >= _FOUND_IOU and box.cls == label.cls
            ]
            misses.append(
                Miss(
                    label=label,
                    kind=kind,
                    nearest=None if at is None else boxes[at],
                    iou=0.0 if at is None else round(overlaps[at], 4),
                    circumstances=_circumstances(label),
                    other=max(there, key=lambda box: box.score, default=None),
                )
            )
    return tuple(misses)


def _cause(
    label: Label, boxes: list[Prediction], overlaps: list[float], threshold: float
) -> tuple[str, int | None]:
    """The likeliest cause, and the position of the box that shows it."""
    rows = [at for at, iou in enumerate(overlaps) if iou >= _NEAR_IOU]
    found = [at for at in rows if overlaps[at] >= _FOUND_IOU]
    same = [at for at in found if boxes[at].cls == label.cls]
    if same:
        at = max(same, key=lambda row: boxes[row].score)
        return ("taken" if boxes[at].score >= threshold else "below threshold"), at
    above = [at for at in found if boxes[at].score >= threshold]
    if above:
        return "class", max(above, key=lambda row: boxes[row].score)
    near = [at for at in rows if boxes[at].cls == label.cls and boxes[at].score >= threshold]
    if near:
        return "place", max(near, key=lambda row: overlaps[row])
    return "nothing", max(rows, key=lambda row: overlaps[row], default=None)


def _circumstances(label: Label) -> tuple[str, ...]:
    size = (label.box.w * label.box.h) ** 0.5
    parts = [
        f"{share:.0%} {word}"
        for share, word in ((label.occluded, "occluded"), (label.truncated, "truncated"))
        if share
    ]
    parts += [f"small: {label.box.w:.0f}x{label.box.h:.0f} px"] if size < _SMALL_PX else []
    return tuple(parts)


def _by_frame(predictions: Iterable[Prediction]) -> dict[Digest, list[Prediction]]:
    boxes: dict[Digest, list[Prediction]] = defaultdict(list)
    for one in predictions:
        boxes[one.frame].append(one)
    return boxes


def _overlaps(label: Label, boxes: list[Prediction]) -> list[float]:
    if not boxes:
        return []
    corners = np.array([one.box.xyxy for one in boxes], np.float32)
    return [float(v) for v in iou_matrix(np.array([label.box.xyxy], np.float32), corners)[0]]
