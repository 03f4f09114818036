"""How far labelers agree, with each other and with frames whose labels are trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.labeling.consensus import RULE, SAME_OBJECT_IOU
from workbench.perception import boxes
from workbench.perception.matching import match_optimal
from workbench.records.base import Digest
from workbench.records.frames import Label
from workbench.records.types import Rate

RESAMPLES = 1000
_SEED = 0
_INTERVAL = (2.5, 97.5)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two answers to one frame. ``matched`` are (class, other class, overlap); the rest classes.

    ``extra`` are boxes of ``who`` that ``other`` lacks, ``lacking`` the other way round. Boxes are
    matched one to one with the largest total overlap, at least 0.5, whatever their class; ignore
    areas take no part.
    """

    frame: Digest
    who: str
    other: str
    matched: tuple[tuple[str, str, float], ...]
    extra: tuple[str, ...]
    lacking: tuple[str, ...]

    def reversed(self) -> Comparison:
        matched = tuple((theirs, ours, overlap) for ours, theirs, overlap in self.matched)
        return Comparison(self.frame, self.other, self.who, matched, self.lacking, self.extra)

    def of_class(self, cls: str) -> Comparison:
        """Only what either called ``cls``."""
        return Comparison(
            self.frame,
            self.who,
            self.other,
            tuple(pair for pair in self.matched if cls in pair[:2]),
            tuple(name for name in self.extra if name == cls),
            tuple(name for name in self.lacking if name == cls),
        )


def compare(
    frame: Digest, who: str, ours: Iterable[Label], other: str, theirs: Iterable[Label]
) -> Comparison:
    left = [label for label in ours if not label.ignore]
    right = [label for label in theirs if not label.ignore]
    first = boxes.from_records(label.box for label in left)
    second = boxes.from_records(label.box for label in right)
    pairs = match_optimal(first, second, iou=SAME_OBJECT_IOU)
    overlap = boxes.iou_matrix(first, second)
    seen, known = {int(i) for i, _ in pairs}, {int(j) for _, j in pairs}
    return Comparison(
        frame,
        who,
        other,
        tuple((left[i].cls, right[j].cls, float(overlap[i, j])) for i, j in pairs),
        tuple(label.cls for i, label in enumerate(left) if i not in seen),
        tuple(label.cls for j, label in enumerate(right) if j not in known),
    )


def compare_all(
    answers: Mapping[Digest, Mapping[str, Sequence[Label]]],
) -> list[Comparison]:
    """Every pair of labelers on every frame that more than one answered."""
    return [
        compare(frame, first, by_person[first], second, by_person[second])
        for frame, by_person in answers.items()
        for first, second in combinations(sorted(by_person), 2)
    ]


def measure(answers: Mapping[Digest, Mapping[str, Sequence[Label]]]) -> dict[str, Any]:
    """Agreement over frames that more than one labeler answered, skips left out, in short.

    Returns:
        ``frames`` and ``boxes`` compared, ``mean_iou`` of matched boxes, ``missed_rate`` (the
        share of boxes that the other labeler has no match for), ``class_agreement`` among matched
        boxes, and the consensus ``rule``. Rates are None where nothing could be compared.
    """
    compared = compare_all(answers)
    matched = [pair for one in compared for pair in one.matched]
    alone = sum(len(one.extra) + len(one.lacking) for one in compared)
    total = 2 * len(matched) + alone
    same = sum(ours == theirs for ours, theirs, _ in matched)
    overlap = [value for _, _, value in matched]
    return {
        "frames": sum(len(by_person) > 1 for by_person in answers.values()),
        "boxes": total,
        "mean_iou": round(float(np.mean(overlap)), 6) if matched else None,
        "missed_rate": round(alone / total, 6) if total else None,
        "class_agreement": round(same / len(matched), 6) if matched else None,
        "rule": RULE,
    }


def rate(
    compared: Sequence[Comparison],
    subject: Literal["all", "class", "slice", "labeler"],
    name: str,
    against: Literal["labelers", "gold"] = "labelers",
) -> Rate:
    """One row of figures with their intervals, by resampling frames.

    ``missed`` is the share of boxes that one of the two has no match for; for a labeler, the
    share of the other side's boxes that they lack. ``kappa`` is Cohen's, of classes among
    matched boxes; for a class, of that class against all others.
    """
    one_sided = subject == "labeler" or against == "gold"
    frames = sorted({one.frame for one in compared})
    place = {frame: number for number, frame in enumerate(frames)}
    classes = sorted({cls for one in compared for pair in one.matched for cls in pair[:2]})
    if subject == "class" or not classes:
        classes = [name, ""]
    table = np.zeros((len(frames), 4 + len(classes) ** 2))
    for one in compared:
        _count(table[place[one.frame]], one, classes, one_sided)
    iou, missed, kappa = _figures(table.sum(axis=0, keepdims=True), len(classes))
    # One frame says nothing of how much frames differ.
    spread = _figures(_resampled(table), len(classes)) if len(frames) > 1 else (None,) * 3
    return Rate(
        subject=subject,
        name=name,
        against=against,
        frames=len(frames),
        n=int(table[:, 3].sum()),
        iou=_value(iou),
        iou_interval=_interval(spread[0]),
        missed=_value(missed),
        missed_interval=_interval(spread[1]),
        kappa=_value(kappa),
        kappa_interval=_interval(spread[2]),
    )


def _resampled(table: Floats) -> Floats:
    """Sums over as many frames as there are, drawn with replacement, again and again."""
    count = len(table)
    draws = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    sums: Floats = draws @ table
    return sums


def _count(row: Floats, one: Comparison, classes: list[str], one_sided: bool) -> None:
    """Add a comparison to its frame's sums: overlap, pairs, missed, boxes, then class by class."""
    row[0] += sum(overlap for _, _, overlap in one.matched)
    row[1] += len(one.matched)
    sides = 1 if one_sided else 2
    alone = len(one.lacking) + (0 if one_sided else len(one.extra))
    row[2] += alone
    row[3] += sides * len(one.matched) + alone
    for ours, theirs, _ in one.matched:
        i, j = _position(classes, ours), _position(classes, theirs)
        row[4 + i * len(classes) + j] += 1
        if not one_sided:  # neither is the first
            row[4 + j * len(classes) + i] += 1


def _position(classes: list[str], cls: str) -> int:
    return classes.index(cls) if cls in classes else classes.index("")


def _figures(sums: Floats, classes: int) -> tuple[Floats, Floats, Floats]:
    """Mean overlap, missed rate and kappa of each row of sums; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = sums[:, 0] / sums[:, 1]
        missed = sums[:, 2] / sums[:, 3]
        confusion = sums[:, 4:].reshape(-1, classes, classes)
        total = confusion.sum(axis=(1, 2))
        seen = np.trace(confusion, axis1=1, axis2=2) / total
        chance = (confusion.sum(axis=1) * confusion.sum(axis=2)).sum(axis=1) / total**2
        kappa = (seen - chance) / (1 - chance)
    # With one class only there is nothing to confuse, and kappa says nothing.
    return iou, missed, np.where(chance >= 1 - 1e-12, np.nan, kappa)


def _value(figures: Floats) -> float | None:
    return None if np.isnan(figures[0]) else round(float(figures[0]), 6)


def _interval(figures: Floats | None) -> tuple[float, float] | None:
    known = figures[~np.isnan(figures)] if figures is not None else np.zeros(0)
    if not len(known):
        return None
    low, high = np.percentile(known, _INTERVAL)
    return (round(float(low), 6), round(float(high), 6))
