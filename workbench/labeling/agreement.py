"""How far two labelers of one frame agree, and whose boxes are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from workbench import digest
from workbench.perception import boxes
from workbench.perception.matching import match_optimal
from workbench.records.base import Digest
from workbench.records.frames import Label

SAME_OBJECT_IOU = 0.5

RULE = "one labeler's boxes a frame, drawn by the digest of frame and labeler"
"""How a frame with several answers becomes one set of labels: at random, but always the same."""


def preferred(frame: Digest, annotators: Sequence[str]) -> str:
    """The labeler whose boxes are taken, see `RULE`. Neither speed nor diligence is favoured."""
    return min(annotators, key=lambda person: digest.of_bytes(f"{frame} {person}".encode()))


def measure(answers: Mapping[Digest, Mapping[str, Sequence[Label]]]) -> dict[str, Any]:
    """Agreement over frames that more than one labeler answered, skips left out.

    Boxes of two labelers are matched one to one with the largest total overlap, at least 0.5,
    regardless of class; ignore regions take no part.

    Args:
        answers: Frame to labeler to their labels.

    Returns:
        ``frames`` and ``boxes`` compared, ``mean_iou`` of matched boxes, ``missed_rate`` (the
        share of boxes that the other labeler has no match for), ``class_agreement`` among matched
        boxes, and the consensus ``rule``. Rates are None where nothing could be compared.
    """
    overlaps: list[float] = []
    same_class = total = frames = 0
    for by_person in answers.values():
        for first, second in combinations(sorted(by_person), 2):
            left = [label for label in by_person[first] if not label.ignore]
            right = [label for label in by_person[second] if not label.ignore]
            ours = boxes.from_records(label.box for label in left)
            theirs = boxes.from_records(label.box for label in right)
            pairs = match_optimal(ours, theirs, iou=SAME_OBJECT_IOU)
            overlap = boxes.iou_matrix(ours, theirs)
            overlaps += [float(overlap[i, j]) for i, j in pairs]
            same_class += sum(left[i].cls == right[j].cls for i, j in pairs)
            total += len(left) + len(right)
        frames += len(by_person) > 1
    matched = len(overlaps)
    return {
        "frames": frames,
        "boxes": total,
        "mean_iou": round(float(np.mean(overlaps)), 6) if matched else None,
        "missed_rate": round(1 - 2 * matched / total, 6) if total else None,
        "class_agreement": round(same_class / matched, 6) if matched else None,
        "rule": RULE,
    }
