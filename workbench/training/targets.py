"""Training targets: the boxes of each frame in network pixels, with class, ignore flag and weight."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError
from workbench.detection.boxes import Floats, as_boxes, box_area
from workbench.detection.preprocessing import LetterboxTransform
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import ANY_CLASS, Label, Origin, Role
from workbench.records.store import Store
from workbench.training.config import LabelTrust

ALL_CLASSES = -1
"""Class number of an ignore region that hides objects of every class."""

_TRAINING_ROLES = (None, Role.SEED, Role.TRAIN)
_MIN_SIZE_PX = 2.0  # network pixels; smaller objects are neither right nor wrong
_MIN_VISIBLE = 0.3  # share of a box that must be left in the picture after a crop


@dataclass(frozen=True)
class Targets:
    """What stands in one frame.

    ``boxes`` float32 ``[n, 4]`` xyxy, ``classes`` int64 ``[n]``, ``ignore`` bool ``[n]``: regions
    where the classification is not judged. ``weights`` float32 ``[n]`` in [0, 1]: how far each
    label is trusted, None for fully.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    weights: NDArray[np.float32] | None = None

    def moved(self, boxes: Floats, inside: tuple[float, float, float, float]) -> Targets:
        """With new boxes, cut at the edges ``inside`` (xyxy); cut too far they become ignored."""
        boxes = boxes.astype(np.float32)
        low, high = np.array(inside[:2] * 2), np.array(inside[2:] * 2)
        cut = np.clip(boxes, low, high)
        left = box_area(cut) / np.maximum(box_area(boxes), 1e-6)
        thin = (cut[:, 2:] - cut[:, :2]).min(axis=1, initial=np.inf) < _MIN_SIZE_PX
        ignore = self.ignore | (left < _MIN_VISIBLE) | thin
        kept = box_area(cut) > 0
        weights = None if self.weights is None else self.weights[kept]
        return Targets(cut[kept].astype(np.float32), self.classes[kept], ignore[kept], weights)


def concatenate_targets(parts: Sequence[Targets]) -> Targets:
    """Several pictures' targets as those of one."""
    weights = None
    if any(part.weights is not None for part in parts):
        weights = np.concatenate(
            [np.ones(len(p.boxes), np.float32) if p.weights is None else p.weights for p in parts]
        )
    return Targets(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.ignore for part in parts]),
        weights,
    )


def check_dataset(dataset: Dataset, classes: Sequence[str]) -> None:
    """Refuse what must not be learned from; raises `DataError`."""
    if not dataset.frames:
        raise DataError(
            "there are no frames to learn from",
            where=dataset.name,
            hint="Choose the roles seed and train of a dataset that has labelled frames in them",
        )
    for frame in dataset.frames:
        if frame.role not in _TRAINING_ROLES:
            raise DataError(
                f"frame {frame.id[:12]} has the role {frame.role}, which is not for learning",
                where=dataset.name,
                hint="Pass dataset.role(Role.SEED, Role.TRAIN)",
            )
    for label in dataset.labels:
        if not label.origin.is_ground_truth:
            raise DataError(
                f"frame {label.frame[:12]} has a label of origin {label.origin}: "
                "a model's own boxes are not ground truth",
                where=dataset.name,
                hint="Have people accept or edit it first",
            )
    strange = {label.cls for label in dataset.labels} - {ANY_CLASS}
    strange -= {*dataset.label_schema.classes, *classes}
    if strange:
        raise DataError(
            f"labels of unknown classes: {', '.join(sorted(strange))}",
            where=dataset.name,
            hint=f"The schema has {', '.join(dataset.label_schema.classes)}",
        )


def label_warnings(dataset: Dataset, classes: Sequence[str]) -> tuple[str, ...]:
    """What people should know of the labels, though it can be learned from."""
    learned = Counter(
        label.cls for label in dataset.labels if not label.ignore and _has_area(label)
    )
    empty = [name for name in classes if learned[name] == 0]
    found = []
    if empty:
        found.append(f"no frame has a label of {', '.join(empty)}: the model cannot learn that")
    flat = [label for label in dataset.labels if not _has_area(label)]
    if flat:
        frames = ", ".join(sorted({label.frame[:12] for label in flat})[:3])
        found.append(f"{len(flat)} labels without area are left out, such as on {frames}")
    return tuple(found)


def frame_targets(
    labels: Sequence[Label],
    classes: Sequence[str],
    placement: LetterboxTransform,
    trust: Callable[[Label], float] | None = None,
) -> Targets:
    """Targets of a frame. Labels of classes that are not learned count as background.

    A label without area says nothing about where anything is, and is left out.
    """
    numbers = {name: number for number, name in enumerate(classes)} | {ANY_CLASS: ALL_CLASSES}
    known = [label for label in labels if label.cls in numbers and _has_area(label)]
    boxes = placement.to_network(as_boxes([label.box.xyxy for label in known]))
    numbered = np.array([numbers[label.cls] for label in known], np.int64)
    ignore = np.array([label.ignore or label.cls == ANY_CLASS for label in known], bool)
    thin = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) < _MIN_SIZE_PX
    weights = None if trust is None else np.array([trust(label) for label in known], np.float32)
    return Targets(boxes, numbered, ignore | thin, weights)


def label_weighting(
    how: LabelTrust, disputed: Collection[Digest]
) -> Callable[[Label], float] | None:
    """How far a label is trusted; None when all are trusted fully."""
    if how == LabelTrust():
        return None
    by_origin = {Origin.REPLAYED: how.replayed, Origin.HUMAN_ACCEPTED: how.accepted}
    doubted = frozenset(disputed)

    def trust(label: Label) -> float:
        weight = by_origin.get(label.origin, 1.0)
        return min(weight, how.disputed) if label.frame in doubted else weight

    return trust


def disputed_frames(store: Store, agreement: Ref) -> tuple[Digest, ...]:
    """Frames that the labelers of an `Agreement` record disagree about."""
    with store.payload(agreement, "disagreements.jsonl").open("rb") as stream:
        return tuple(json.loads(line)["frame"] for line in stream)


def _has_area(label: Label) -> bool:
    return label.box.w > 0 and label.box.h > 0
