"""Training targets: the boxes of a frame in network pixels with class, ignore flag and weight."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError
from workbench.core.text import counted
from workbench.detection.boxes import Floats, as_boxes, box_area
from workbench.detection.preprocessing import LetterboxTransform
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset, load_dataset
from workbench.records.frames import ANY_CLASS, Label, Origin, Role
from workbench.records.held_out import refuse_held_out
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store
from workbench.training.config import LabelTrust

__all__ = ["disputed_frames", "new_frames"]

ALL_CLASSES = -1
"""Class number of an ignore region that hides objects of every class."""

_TRAINING_ROLES = (None, Role.SEED, Role.TRAIN)
_MIN_SIZE_PX = 2.0  # network pixels; smaller objects are ignored
_MIN_VISIBLE = 0.3  # share of a box that must remain after a crop


@dataclass(frozen=True)
class Targets:
    """Training targets of one frame.

    Attributes:
        boxes: float32 ``[n, 4]`` xyxy in network pixels.
        classes: int64 ``[n]``.
        ignore: bool ``[n]``, regions where the classification is not scored.
        weights: float32 ``[n]`` in [0, 1], the trust in each label; None for 1 everywhere.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    weights: NDArray[np.float32] | None = None

    def with_boxes(self, boxes: Floats, bounds: tuple[float, float, float, float]) -> Targets:
        """The same targets at other boxes, clipped to ``bounds`` (xyxy).

        Boxes of which too little remains are ignored, those outside are dropped.
        """
        boxes = boxes.astype(np.float32)
        clipped = np.clip(boxes, np.array(bounds[:2] * 2), np.array(bounds[2:] * 2))
        visible = box_area(clipped) / np.maximum(box_area(boxes), 1e-6)
        ignore = self.ignore | (visible < _MIN_VISIBLE) | _is_thin(clipped)
        inside = box_area(clipped) > 0
        weights = None if self.weights is None else self.weights[inside]
        return Targets(
            clipped[inside].astype(np.float32), self.classes[inside], ignore[inside], weights
        )


def concatenate_targets(parts: Sequence[Targets]) -> Targets:
    """The targets of several images that became one."""
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


def frame_targets(
    labels: Sequence[Label],
    classes: Sequence[str],
    placement: LetterboxTransform,
    trust: Callable[[Label], float] | None = None,
) -> Targets:
    """Targets of a frame.

    Labels of other classes count as background. A label without area does not say where anything
    is, and is left out.

    Args:
        labels: All labels of the frame, in image pixels.
        classes: Classes to learn, in the order of the model's class numbers.
        placement: How the image lies in the network's input.
        trust: Weight of a label, see `label_weighting`.
    """
    numbers = {name: number for number, name in enumerate(classes)} | {ANY_CLASS: ALL_CLASSES}
    known = [label for label in labels if label.cls in numbers and _has_area(label)]
    boxes = placement.to_network(as_boxes([label.box.xyxy for label in known]))
    numbered = np.array([numbers[label.cls] for label in known], np.int64)
    ignore = np.array([label.ignore or label.cls == ANY_CLASS for label in known], bool)
    weights = None if trust is None else np.array([trust(label) for label in known], np.float32)
    return Targets(boxes, numbered, ignore | _is_thin(boxes), weights)


def label_weighting(
    trust: LabelTrust, disputed: Collection[Digest]
) -> Callable[[Label], float] | None:
    """The weight of a label as a function of the label; None when all weights are 1.

    Args:
        trust: Weights by origin.
        disputed: Frames that labelers disagreed about.
    """
    if trust == LabelTrust():
        return None
    by_origin = {Origin.REPLAYED: trust.replayed, Origin.HUMAN_ACCEPTED: trust.accepted}
    disputed = frozenset(disputed)

    def weight_of(label: Label) -> float:
        weight = by_origin.get(label.origin, 1.0)
        return min(weight, trust.disputed) if label.frame in disputed else weight

    return weight_of


def disputed_frames(store: Store, agreement: Ref) -> tuple[Digest, ...]:
    """Ids of the frames that labelers disagree about.

    Args:
        store: Where the record is.
        agreement: An `Agreement` record.
    """
    with store.payload(agreement, "disagreements.jsonl").open("rb") as stream:
        return tuple(json.loads(line)["frame"] for line in stream)


def new_frames(store: Store, checkpoint: Ref, dataset: Dataset) -> set[Digest]:
    """Ids of the frames of ``dataset`` that a checkpoint was not trained on."""
    trained_on = load_dataset(store, store.get(checkpoint, Checkpoint).dataset)
    known = {frame.id for frame in trained_on.role(Role.SEED, Role.TRAIN).frames}
    return {frame.id for frame in dataset.frames} - known


def check_dataset(dataset: Dataset, classes: Sequence[str]) -> None:
    """Refuse data that must not be learned from.

    Raises:
        DataError: No frames, frames of another role, labels that are not ground truth, or labels of
            unknown classes.
        VerificationError: A frame is held out, whatever its role here.
    """
    if not dataset.frames:
        raise DataError(
            "no frames to learn from",
            where=dataset.name,
            hint="Choose the roles seed and train of a dataset that has labelled frames in them",
        )
    for frame in dataset.frames:
        if frame.role not in _TRAINING_ROLES:
            raise DataError(
                f"frame {frame.id[:12]} has the role {frame.role}, which is not for training",
                where=dataset.name,
                hint="Pass dataset.role(Role.SEED, Role.TRAIN)",
            )
    if dataset.workspace is not None:
        refuse_held_out(Store(dataset.workspace), dataset.frames, "training")
    for label in dataset.labels:
        if not label.origin.is_ground_truth:
            raise DataError(
                f"frame {label.frame[:12]} has a label of origin {label.origin}: "
                "a model's own boxes are not ground truth",
                where=dataset.name,
                hint="Have people accept or edit it first",
            )
    unknown = {label.cls for label in dataset.labels} - {ANY_CLASS}
    unknown -= {*dataset.label_schema.classes, *classes}
    if unknown:
        raise DataError(
            f"labels of unknown classes: {', '.join(sorted(unknown))}",
            where=dataset.name,
            hint=f"The schema has {', '.join(dataset.label_schema.classes)}",
        )


def label_warnings(dataset: Dataset, classes: Sequence[str]) -> tuple[str, ...]:
    """Problems of the labels that do not prevent training; a checkpoint records them."""
    learned = Counter(
        label.cls for label in dataset.labels if not label.ignore and _has_area(label)
    )
    warnings = []
    if missing := [name for name in classes if learned[name] == 0]:
        warnings.append(
            f"no frame has a label of {', '.join(missing)}: the model cannot learn that"
        )
    if flat := [label for label in dataset.labels if not _has_area(label)]:
        frames = ", ".join(sorted({label.frame[:12] for label in flat})[:3])
        verb = "is" if len(flat) == 1 else "are"
        warnings.append(
            f"{counted(len(flat), 'label')} without area {verb} left out, such as on {frames}"
        )
    return tuple(warnings)


def _has_area(label: Label) -> bool:
    return label.box.w > 0 and label.box.h > 0


def _is_thin(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) < _MIN_SIZE_PX)
