"""Frames on which a model missed the most."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.core.text import short_repr
from workbench.evaluation.matching import EvaluationSet
from workbench.records.frames import Box, Frame, Label

if TYPE_CHECKING:
    from workbench.evaluation.metrics import Evaluation

__all__ = ["FrameMisses", "worst_frames"]

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
