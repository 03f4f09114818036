"""Label errors: labels that look missing, misplaced, misclassified or duplicated.

A model trained on labels with errors still contradicts most of them, because an error is
inconsistent with the other labels (confident learning, Northcutt et al. 2021, here for boxes). How
much a prediction counts is measured: by the precision of predictions of its class and score on
these labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.detection import boxes
from workbench.detection.boxes import UNMATCHED, match_greedy
from workbench.records.base import Digest, FrozenModel
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, Label, Role
from workbench.records.types import Prediction

__all__ = ["LabelError", "find_label_errors"]

_LabelErrorKind = Literal["missed", "placed", "class", "twice", "nothing"]

_SAME_OBJECT_IOU = 0.7
"""IoU from which a label is well placed."""
_TOUCHING_IOU = 0.3
"""IoU below which two boxes belong to different objects."""
_DUPLICATE_IOU = 0.8
"""IoU from which two labels of one class are duplicates."""
_MIN_SCORE = 0.1
"""Predictions with a lower score are ignored."""

_MIN_WEIGHT = 0.25
"""Label errors with a lower weight are left out: models contradict every label a little."""

_BINS = 10
_PRIOR_PREDICTIONS = 5.0
_MAX_UNDETECTED_WEIGHT = 0.5


class LabelError(FrozenModel):
    """A label, or a missing label, to review.

    Attributes:
        frame: Digest of the frame.
        kind: ``missed`` (no label), ``placed`` (misplaced box), ``class`` (other class), ``twice``
            (duplicate) or ``nothing`` (not detected by the model).
        box: Box of the label; of the prediction where the label is missing.
        cls: Class of the label; of the prediction where the label is missing.
        weight: In [0, 1]; how likely an error, for ranking.
        why: Explanation for a labeler.
    """

    frame: Digest
    kind: _LabelErrorKind
    box: Box
    cls: str
    weight: float
    why: str


def find_label_errors(dataset: Dataset, predictions: Iterable[Prediction]) -> list[LabelError]:
    """Find likely label errors, by falling weight.

    Frames of role ``pool``, which are not labelled, and ignore regions are left out.

    Args:
        dataset: With the labels to check.
        predictions: On the dataset's frames, with scores down to `_MIN_SCORE`; best of a model
            trained on other frames, or on these for a short time.
    """
    by_frame: dict[Digest, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.score >= _MIN_SCORE:
            by_frame.setdefault(prediction.frame, []).append(prediction)
    frames = [
        _FrameComparison(dataset, frame, by_frame.get(frame.id, ()))
        for frame in labelled_frames(dataset)
    ]
    precision = _CalibratedPrecision(frames)
    errors = [e for f in frames for e in _errors_of_frame(f, precision) if e.weight >= _MIN_WEIGHT]
    return sorted(errors, key=lambda e: (-e.weight, e.frame, e.kind, e.box.xyxy))


def labelled_frames(dataset: Dataset) -> tuple[Frame, ...]:
    """Frames with labels, or labelled as empty: all but pool, and blind ones, which nobody sees."""
    return tuple(f for f in dataset.frames if f.role not in (Role.POOL, Role.BLIND))


class _FrameComparison:
    """Labels and predictions of one frame, each prediction with the label it overlaps most."""

    def __init__(self, dataset: Dataset, frame: Frame, predictions: Sequence[Prediction]) -> None:
        labels = [x for x in dataset.labels_by_frame[frame.id] if x.origin.is_ground_truth]
        ignored = boxes.boxes_to_array(label.box for label in labels if label.ignore)
        self.frame = frame.id
        self.labels = [label for label in labels if not label.ignore]
        self.label_boxes = boxes.boxes_to_array(label.box for label in self.labels)
        self.predictions = [one for one in predictions if not _is_ignored(one.box, ignored)]
        self.predicted_boxes = boxes.boxes_to_array(one.box for one in self.predictions)
        self.iou = boxes.iou_matrix(self.predicted_boxes, self.label_boxes)
        scores = np.array([one.score for one in self.predictions], np.float32)
        # One to one, so that two predictions never share a label; classes may differ.
        self.label_of = match_greedy(
            self.predicted_boxes, scores, self.label_boxes, iou=_TOUCHING_IOU
        )

    def best_iou(self, row: int) -> float:
        """Largest IoU of a prediction with any label."""
        return float(self.iou[row].max()) if len(self.labels) else 0.0

    def is_correct(self, row: int) -> bool:
        label = int(self.label_of[row])
        return (
            label != UNMATCHED
            and self.iou[row, label] >= 0.5
            and self.labels[label].cls == self.predictions[row].cls
        )


class _CalibratedPrecision:
    """Precision of predictions by class and score bin, on these labels.

    Shrunk to the precision of all classes in the bin by `_PRIOR_PREDICTIONS`, and made
    non-decreasing in the score by a running maximum.
    """

    def __init__(self, frames: Sequence[_FrameComparison]) -> None:
        rows = [
            (one.cls, one.score, frame.is_correct(row))
            for frame in frames
            for row, one in enumerate(frame.predictions)
        ]
        overall = _bin_counts([(score, right) for _, score, right in rows])
        base = np.maximum.accumulate(overall[1] / (overall[0] + 1))
        self._by_class: dict[str, NDArray[np.float64]] = {}
        for cls in {cls for cls, _, _ in rows}:
            total, right = _bin_counts([(s, r) for c, s, r in rows if c == cls])
            share = (right + _PRIOR_PREDICTIONS * base) / (total + _PRIOR_PREDICTIONS)
            self._by_class[cls] = np.maximum.accumulate(share)

    def of(self, prediction: Prediction) -> float:
        return float(self._by_class[prediction.cls][_score_bin(prediction.score)])


def _errors_of_frame(
    frame: _FrameComparison, precision: _CalibratedPrecision
) -> Iterator[LabelError]:
    yield from _duplicate_labels(frame)
    yield from _undetected_labels(frame)
    for row, prediction in enumerate(frame.predictions):
        error = _error_from_prediction(frame, row, prediction, precision.of(prediction))
        if error is not None:
            yield error


def _error_from_prediction(
    frame: _FrameComparison, row: int, prediction: Prediction, precision: float
) -> LabelError | None:
    """The label error that a prediction points to, if it contradicts the labels."""
    number = int(frame.label_of[row])
    detected = f"model detects {_class_text(prediction.cls)} (score {prediction.score:.0%})"
    if number == UNMATCHED:
        iou = frame.best_iou(row)
        if iou >= _TOUCHING_IOU:
            return None  # a second box on a labelled object
        why = f"{detected} without a label"
        return _label_error(frame, "missed", prediction, precision * (1 - iou), why)
    label, iou = frame.labels[number], float(frame.iou[row, number])
    if label.cls != prediction.cls and iou >= 0.5:
        why = f"{detected}, label says {_class_text(label.cls)}"
        return _label_error(frame, "class", label, precision * iou, why)
    if label.cls == prediction.cls and iou < _SAME_OBJECT_IOU:
        why = f"{detected}, IoU with the label is only {iou:.0%}"
        return _label_error(frame, "placed", label, precision * (1 - iou), why)
    return None


def _duplicate_labels(frame: _FrameComparison) -> Iterator[LabelError]:
    overlap = boxes.iou_matrix(frame.label_boxes, frame.label_boxes)
    for first, second in zip(*np.nonzero(np.triu(overlap, 1) >= _DUPLICATE_IOU), strict=True):
        label, other = frame.labels[int(first)], frame.labels[int(second)]
        if label.cls == other.cls:
            iou = float(overlap[first, second])
            why = f"two {_class_text(label.cls)} labels with an IoU of {iou:.0%}: duplicate?"
            yield _label_error(frame, "twice", other, iou, why)


def _undetected_labels(frame: _FrameComparison) -> Iterator[LabelError]:
    """Visible labels without any prediction: weak evidence, as models miss many objects."""
    for number, label in enumerate(frame.labels):
        iou = float(frame.iou[:, number].max()) if len(frame.predictions) else 0.0
        if iou < _MIN_SCORE and not _is_hidden(label):
            why = f"model detects nothing at the label {_class_text(label.cls)}"
            yield _label_error(frame, "nothing", label, _undetected_weight(label), why)


def _label_error(
    frame: _FrameComparison,
    kind: _LabelErrorKind,
    source: Label | Prediction,
    weight: float,
    why: str,
) -> LabelError:
    return LabelError(
        frame=frame.frame,
        kind=kind,
        box=source.box,
        cls=source.cls,
        weight=round(weight, 6),
        why=why,
    )


def _is_hidden(label: Label) -> bool:
    return (label.occluded or 0) >= 0.5 or (label.truncated or 0) >= 0.5


def _undetected_weight(label: Label) -> float:
    """Below one half, and lower for small boxes, which models miss most."""
    side = float(np.sqrt(label.box.w * label.box.h))
    return _MAX_UNDETECTED_WEIGHT * side / (side + 48.0)


def _is_ignored(box: Box, ignored: NDArray[np.float32]) -> bool:
    if not len(ignored):
        return False
    common = boxes.intersection_matrix(boxes.boxes_to_array([box]), ignored)
    return bool(common.max() >= 0.5 * box.w * box.h)


def _bin_counts(
    rows: Sequence[tuple[float, bool]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    bins = np.array([_score_bin(score) for score, _ in rows], np.int64)
    right = np.array([right for _, right in rows], np.float64)
    total = np.bincount(bins, minlength=_BINS).astype(np.float64)
    return total, np.bincount(bins, weights=right, minlength=_BINS).astype(np.float64)


def _score_bin(score: float) -> int:
    return min(_BINS - 1, int(score * _BINS))


def _class_text(cls: str) -> str:
    return cls.replace("_", " ")
