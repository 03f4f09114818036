"""Label errors: labels that look missing, misplaced, misclassified or duplicated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.detection import boxes
from workbench.detection.boxes import UNMATCHED, match_greedy
from workbench.records.base import Digest, FrozenModel
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, Label, Role
from workbench.records.types import Prediction

LabelErrorKind = Literal["missed", "placed", "class", "twice", "nothing"]

SAME_OBJECT_IOU = 0.7
"""From this overlap on, a box sits well."""
TOUCHING_IOU = 0.3
"""Below this overlap, two boxes are of two objects."""
DUPLICATE_IOU = 0.8
"""Two labels of one class that overlap this much are one object drawn twice."""
MIN_SCORE = 0.1
"""Predictions below this score are not looked at."""

MIN_WEIGHT = 0.25
"""What is less likely a mistake than this is left out: models contradict every label a little."""

_BINS = 10
_PRIOR_PREDICTIONS = 5.0
_MAX_UNDETECTED_WEIGHT = 0.5


class LabelError(FrozenModel):
    """One box that deserves a second look.

    Attributes:
        box: Where to look: the label's box, or the model's where no label is.
        cls: Class of the label; of the prediction where no label is.
        weight: In [0, 1], how likely a mistake, for ranking.
        why: In words a labeler can read.
    """

    frame: Digest
    kind: LabelErrorKind
    box: Box
    cls: str
    weight: float
    why: str


def find_label_errors(dataset: Dataset, predictions: Iterable[Prediction]) -> list[LabelError]:
    """What looks wrong, most likely first.

    Frames of role ``pool``, which nobody labelled, and ignore regions take no part.

    Args:
        predictions: Of the dataset's frames, with scores from `FAINT` up. Of a model that was
            trained on other frames, or on these for not too long.
    """
    by_frame: dict[Digest, list[Prediction]] = {}
    for one in predictions:
        if one.score >= MIN_SCORE:
            by_frame.setdefault(one.frame, []).append(one)
    frames = [
        _FrameComparison(dataset, f, by_frame.get(f.id, ())) for f in labelled_frames(dataset)
    ]
    trust = _CalibratedPrecision(frames)
    found = [e for f in frames for e in _errors_of_frame(f, trust) if e.weight >= MIN_WEIGHT]
    return sorted(found, key=lambda one: (-one.weight, one.frame, one.kind, one.box.xyxy))


def labelled_frames(dataset: Dataset) -> tuple[Frame, ...]:
    """Frames that somebody has labelled, or has found empty."""
    return tuple(frame for frame in dataset.frames if frame.role is not Role.POOL)


class _FrameComparison:
    """Labels and predictions of one frame, each prediction with the label it overlaps most."""

    def __init__(self, dataset: Dataset, frame: Frame, found: Sequence[Prediction]) -> None:
        labels = [x for x in dataset.labels_by_frame[frame.id] if x.origin.is_ground_truth]
        ignored = boxes.boxes_to_array(label.box for label in labels if label.ignore)
        self.frame = frame.id
        self.labels = [label for label in labels if not label.ignore]
        self.drawn = boxes.boxes_to_array(label.box for label in self.labels)
        self.found = [one for one in found if not _is_ignored(one.box, ignored)]
        self.seen = boxes.boxes_to_array(one.box for one in self.found)
        self.overlap = boxes.iou_matrix(self.seen, self.drawn)
        scores = np.array([one.score for one in self.found], np.float32)
        # One to one, so that two predictions never share a label; classes may differ.
        self.label_of = match_greedy(self.seen, scores, self.drawn, iou=TOUCHING_IOU)

    def best(self, row: int) -> float:
        """How far a prediction overlaps the label nearest to it."""
        return float(self.overlap[row].max()) if len(self.labels) else 0.0

    def right(self, row: int) -> bool:
        label = int(self.label_of[row])
        return (
            label != UNMATCHED
            and self.overlap[row, label] >= 0.5
            and self.labels[label].cls == self.found[row].cls
        )


class _CalibratedPrecision:
    """The share of predictions of a class and score that these labels bear out.

    A class with few predictions in a bin leans on the share of all classes there (``_PRIOR``
    predictions' worth), and that never falls as scores rise (isotonic by a running maximum).
    """

    def __init__(self, frames: Sequence[_FrameComparison]) -> None:
        rows = [
            (one.cls, one.score, frame.right(row))
            for frame in frames
            for row, one in enumerate(frame.found)
        ]
        overall = _bin_counts([(score, right) for _, score, right in rows])
        base = np.maximum.accumulate(overall[1] / (overall[0] + 1))
        self._by_class: dict[str, NDArray[np.float64]] = {}
        for cls in {cls for cls, _, _ in rows}:
            total, right = _bin_counts([(s, r) for c, s, r in rows if c == cls])
            share = (right + _PRIOR_PREDICTIONS * base) / (total + _PRIOR_PREDICTIONS)
            self._by_class[cls] = np.maximum.accumulate(share)

    def of(self, one: Prediction) -> float:
        return float(self._by_class[one.cls][_score_bin(one.score)])


def _errors_of_frame(frame: _FrameComparison, trust: _CalibratedPrecision) -> list[LabelError]:
    found = [*_duplicate_labels(frame), *_undetected_labels(frame)]
    for row, one in enumerate(frame.found):
        error = _error_from_prediction(frame, row, one, trust.of(one))
        if error is not None:
            found.append(error)
    return found


def _error_from_prediction(
    frame: _FrameComparison, row: int, one: Prediction, believed: float
) -> LabelError | None:
    """What a prediction says against the labels, if anything."""
    number = int(frame.label_of[row])
    said = f"the model is {one.score:.0%} sure of a {_class_text(one.cls)}"
    if number == UNMATCHED:
        if frame.best(row) >= TOUCHING_IOU:
            return None  # a second box on an object that has one
        weight = believed * (1 - frame.best(row))
        why = f"{said} where nobody drew one"
        return _label_error(frame, "missed", one, weight, why)
    label, overlap = frame.labels[number], float(frame.overlap[row, number])
    if label.cls != one.cls and overlap >= 0.5:
        why = f"{said} where the label says {_class_text(label.cls)}"
        weight = believed * overlap
        return _label_error(frame, "class", label, weight, why)
    if label.cls == one.cls and overlap < SAME_OBJECT_IOU:
        why = f"{said}, and its box shares {overlap:.0%} with the one drawn"
        weight = believed * (1 - overlap)
        return _label_error(frame, "placed", label, weight, why)
    return None


def _duplicate_labels(frame: _FrameComparison) -> list[LabelError]:
    if len(frame.labels) < 2:
        return []
    overlap = boxes.iou_matrix(frame.drawn, frame.drawn)
    errors = []
    for first, second in zip(*np.nonzero(np.triu(overlap, 1) >= DUPLICATE_IOU), strict=True):
        one, other = frame.labels[int(first)], frame.labels[int(second)]
        if one.cls != other.cls:
            continue
        share = float(overlap[first, second])
        why = f"two {_class_text(one.cls)} boxes share {share:.0%}: one object drawn twice?"
        errors.append(_label_error(frame, "twice", other, share, why))
    return errors


def _undetected_labels(frame: _FrameComparison) -> list[LabelError]:
    """Labels on which the model sees nothing at all: weak evidence, as models miss much."""
    errors = []
    for number, label in enumerate(frame.labels):
        nearest = float(frame.overlap[:, number].max()) if len(frame.found) else 0.0
        if nearest < MIN_SCORE and not _is_hidden(label):
            why = f"the model sees nothing where a {_class_text(label.cls)} is drawn"
            errors.append(_label_error(frame, "nothing", label, _undetected_weight(label), why))
    return errors


def _label_error(
    frame: _FrameComparison,
    kind: LabelErrorKind,
    where: Label | Prediction,
    weight: float,
    why: str,
) -> LabelError:
    return LabelError(
        frame=frame.frame,
        kind=kind,
        box=where.box,
        cls=where.cls,
        weight=round(weight, 6),
        why=why,
    )


def _is_hidden(label: Label) -> bool:
    return (label.occluded or 0) >= 0.5 or (label.truncated or 0) >= 0.5


def _undetected_weight(label: Label) -> float:
    """Below one half, less for small boxes: those a model misses most, rightly labelled."""
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
