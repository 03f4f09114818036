"""From a dataset's labels to what the loss compares with: boxes in network pixels, by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError
from workbench.perception.boxes import Floats, area, as_boxes, clip
from workbench.perception.preprocessing import Placement
from workbench.records.dataset import Dataset
from workbench.records.frames import ANY_CLASS, Label, Role

ALL_CLASSES = -1
"""Class number of an ignore region that hides objects of every class."""

_LEARNABLE = (None, Role.SEED, Role.TRAIN)
_SMALLEST = 2.0  # network pixels; smaller objects are neither right nor wrong
_VISIBLE = 0.3  # share of a box that must be left in the picture after a crop


@dataclass(frozen=True)
class Targets:
    """What stands in one frame.

    ``boxes`` float32 ``[n, 4]`` xyxy, ``classes`` int64 ``[n]``, ``ignore`` bool ``[n]``: regions
    where the classification is not judged.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]

    def moved(self, boxes: Floats, width: int, height: int) -> Targets:
        """With new boxes, cut at the picture's edges; what is cut too far becomes ignored."""
        boxes = boxes.astype(np.float32)
        cut = clip(boxes, width, height)
        left = area(cut) / np.maximum(area(boxes), 1e-6)
        thin = (cut[:, 2:] - cut[:, :2]).min(axis=1, initial=np.inf) < _SMALLEST
        ignore = self.ignore | (left < _VISIBLE) | thin
        inside = area(cut) > 0
        return Targets(cut[inside].astype(np.float32), self.classes[inside], ignore[inside])


def check(dataset: Dataset, classes: Sequence[str]) -> None:
    """Refuse what must not be learned from; raises `DataError`."""
    if not dataset.frames:
        raise DataError(
            "there are no frames to learn from",
            where=dataset.name,
            hint="Choose the roles seed and train of a dataset that has labelled frames in them",
        )
    for frame in dataset.frames:
        if frame.role not in _LEARNABLE:
            raise DataError(
                f"frame {frame.id[:12]} has the role {frame.role}, which is not for learning",
                where=dataset.name,
                hint="Pass dataset.with_roles(Role.SEED, Role.TRAIN)",
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


def of_frame(labels: Sequence[Label], classes: Sequence[str], placement: Placement) -> Targets:
    """Targets of a frame. Labels of classes that are not learned count as background."""
    numbers = {name: number for number, name in enumerate(classes)} | {ANY_CLASS: ALL_CLASSES}
    known = [label for label in labels if label.cls in numbers]
    boxes = placement.to_network(as_boxes([label.box.xyxy for label in known]))
    numbered = np.array([numbers[label.cls] for label in known], np.int64)
    ignore = np.array([label.ignore or label.cls == ANY_CLASS for label in known], bool)
    thin = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) < _SMALLEST
    return Targets(boxes, numbered, ignore | thin)
