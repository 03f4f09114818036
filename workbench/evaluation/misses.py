"""Frames on which a model missed the most."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.evaluation.matching import EvaluationSet
from workbench.evaluation.metrics import Evaluation
from workbench.records.frames import Box, Frame, Label

_VULNERABLE_WEIGHT = 3
"""A missed vulnerable road user weighs as much as this many other misses."""


@dataclass(frozen=True)
class ReportedBox:
    """A prediction that was acted on; ``right`` says whether it matched counted truth."""

    cls: str
    box: Box
    score: float
    right: bool


@dataclass(frozen=True)
class FrameMisses:
    """One frame: what was missed, what was there and found, and what was reported."""

    frame: Frame
    missed: tuple[Label, ...]
    hit: tuple[Label, ...]
    ignored: tuple[Label, ...]
    found: tuple[ReportedBox, ...]
    weight: float


def worst_frames(
    evaluated: Evaluation, count: int = 6, *, part: str = "all", a_drive: int = 1
) -> tuple[FrameMisses, ...]:
    """Frames with the gravest misses at the operating point, the worst first.

    Vulnerable road users weigh `VULNERABLE_WEIGHT`; a larger missed box breaks a tie.

    Args:
        a_drive: Frames of one drive to show at most, since its frames resemble each other.
    """
    frames = _misses_by_frame(evaluated, part)
    frames.sort(key=lambda each: (-each.weight, each.frame.drive, each.frame.index))
    shown: dict[str, int] = {}
    chosen: list[FrameMisses] = []
    for each in frames:
        if each.missed and shown.get(each.frame.drive, 0) < a_drive and len(chosen) < count:
            shown[each.frame.drive] = shown.get(each.frame.drive, 0) + 1
            chosen.append(each)
    return tuple(chosen)


def _misses_by_frame(evaluated: Evaluation, part: str) -> list[FrameMisses]:
    table, whole = evaluated.tables[part], evaluated.scene
    acted = table.score >= evaluated.metrics.settings.threshold
    missed: dict[int, list[Label]] = {}
    hit: dict[int, list[Label]] = {}
    counted: set[int] = set()
    truths = zip(table.truth_frame, table.truth_label, table.found_by, strict=True)
    for frame, label, row in truths:
        there = hit if row >= 0 and acted[row] else missed
        there.setdefault(int(frame), []).append(whole.labels[label])
        counted.add(int(label))
    ignored: dict[int, list[Label]] = {}
    for frame, label in {*zip(whole.truth.frame.tolist(), whole.truth.label.tolist(), strict=True)}:
        if label not in counted:
            ignored.setdefault(frame, []).append(whole.labels[label])
    found = _reported_boxes(evaluated, part)
    return [
        FrameMisses(
            frame=whole.frames[frame],
            missed=tuple(missed.get(frame, ())),
            hit=tuple(hit.get(frame, ())),
            ignored=tuple(ignored.get(frame, ())),
            found=tuple(found.get(frame, ())),
            weight=_miss_weight(whole, missed.get(frame, [])),
        )
        for frame in table.frames.tolist()
    ]


def _reported_boxes(evaluated: Evaluation, part: str) -> dict[int, list[ReportedBox]]:
    table, predicted = evaluated.tables[part], evaluated.scene.predicted
    box = dict(zip(predicted.source.tolist(), predicted.box.tolist(), strict=True))
    found: dict[int, list[ReportedBox]] = {}
    for row in range(len(table.score)):
        score = float(table.score[row])
        if score < evaluated.metrics.settings.threshold or table.ignored[0, row]:
            continue
        x, y, w, h = box[int(table.source[row])]
        found.setdefault(int(table.frame[row]), []).append(
            ReportedBox(
                table.classes[table.cls[row]],
                Box(x=x, y=y, w=w, h=h),
                score,
                bool(table.hit[0, row]),
            )
        )
    return found


def _miss_weight(whole: EvaluationSet, missed: list[Label]) -> float:
    if not missed:
        return 0.0
    vulnerable = whole.schema.vulnerable
    each = sum(_VULNERABLE_WEIGHT if label.cls in vulnerable else 1 for label in missed)
    largest = max(label.box.w * label.box.h for label in missed)
    return each + largest / (1 + max(frame.width * frame.height for frame in whole.frames))
