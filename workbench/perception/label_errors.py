"""Label errors: boxes that look missed, misplaced, misnamed or drawn twice, for a second look.

A model that learned from labels with mistakes still mostly contradicts the mistakes, because they
agree with nothing else (as in confident learning, Northcutt et al. 2021, here for boxes). How far
to believe it is measured, not assumed: a score counts as much as predictions of its class and
score have proved right on these very labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.perception import boxes
from workbench.perception.matching import UNMATCHED, match
from workbench.records.base import Digest, Row
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, Label, Role
from workbench.records.types import Prediction

Kind = Literal["missed", "placed", "class", "twice", "nothing"]

SAME_OBJECT_IOU = 0.7
"""From this overlap on, a box sits well."""
TOUCHING_IOU = 0.3
"""Below this overlap, two boxes are of two objects."""
TWICE_IOU = 0.8
"""Two labels of one class that overlap this much are one object drawn twice."""
FAINT = 0.1
"""Predictions below this score are not looked at."""

LEAST_WEIGHT = 0.25
"""What is less likely a mistake than this is left out: models contradict every label a little."""

_BINS = 10
_PRIOR = 5.0
_NOTHING = 0.5


class LabelError(Row):
    """One box that deserves a second look.

    Attributes:
        box: Where to look: the label's box, or the model's where no label is.
        cls: Class of the label; of the prediction where no label is.
        weight: In [0, 1], how likely a mistake, for ranking.
        why: In words a labeler can read.
    """

    frame: Digest
    kind: Kind
    box: Box
    cls: str
    weight: float
    why: str


def find(dataset: Dataset, predictions: Iterable[Prediction]) -> list[LabelError]:
    """What looks wrong, most likely first.

    Frames of role ``pool``, which nobody labelled, and ignore regions take no part.

    Args:
        predictions: Of the dataset's frames, with scores from `FAINT` up. Of a model that was
            trained on other frames, or on these for not too long.
    """
    by_frame: dict[Digest, list[Prediction]] = {}
    for one in predictions:
        if one.score >= FAINT:
            by_frame.setdefault(one.frame, []).append(one)
    frames = [_Compared(dataset, f, by_frame.get(f.id, ())) for f in labelled(dataset)]
    trust = _Trust(frames)
    found = [e for f in frames for e in _errors(f, trust) if e.weight >= LEAST_WEIGHT]
    return sorted(found, key=lambda one: (-one.weight, one.frame, one.kind, one.box.xyxy))


def labelled(dataset: Dataset) -> tuple[Frame, ...]:
    """Frames that somebody has labelled, or has found empty."""
    return tuple(frame for frame in dataset.frames if frame.role is not Role.POOL)


class _Compared:
    """Labels and predictions of one frame, each prediction with the label it overlaps most."""

    def __init__(self, dataset: Dataset, frame: Frame, found: Sequence[Prediction]) -> None:
        labels = [x for x in dataset.labels_by_frame[frame.id] if x.origin.is_ground_truth]
        ignored = boxes.from_records(label.box for label in labels if label.ignore)
        self.frame = frame.id
        self.labels = [label for label in labels if not label.ignore]
        self.drawn = boxes.from_records(label.box for label in self.labels)
        self.found = [one for one in found if not _inside(one.box, ignored)]
        self.seen = boxes.from_records(one.box for one in self.found)
        self.overlap = boxes.iou_matrix(self.seen, self.drawn)
        scores = np.array([one.score for one in self.found], np.float32)
        # One to one, so that two predictions never share a label; classes may differ.
        self.label_of = match(self.seen, scores, self.drawn, iou=TOUCHING_IOU)

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


class _Trust:
    """The share of predictions of a class and score that these labels bear out.

    A class with few predictions in a bin leans on the share of all classes there (``_PRIOR``
    predictions' worth), and that never falls as scores rise (isotonic by a running maximum).
    """

    def __init__(self, frames: Sequence[_Compared]) -> None:
        rows = [
            (one.cls, one.score, frame.right(row))
            for frame in frames
            for row, one in enumerate(frame.found)
        ]
        overall = _counts([(score, right) for _, score, right in rows])
        base = np.maximum.accumulate(overall[1] / (overall[0] + 1))
        self._by_class: dict[str, NDArray[np.float64]] = {}
        for cls in {cls for cls, _, _ in rows}:
            total, right = _counts([(s, r) for c, s, r in rows if c == cls])
            share = (right + _PRIOR * base) / (total + _PRIOR)
            self._by_class[cls] = np.maximum.accumulate(share)

    def of(self, one: Prediction) -> float:
        return float(self._by_class[one.cls][_bin(one.score)])


def _errors(frame: _Compared, trust: _Trust) -> list[LabelError]:
    found = [*_twice(frame), *_nothing(frame)]
    for row, one in enumerate(frame.found):
        error = _contradiction(frame, row, one, trust.of(one))
        if error is not None:
            found.append(error)
    return found


def _contradiction(
    frame: _Compared, row: int, one: Prediction, believed: float
) -> LabelError | None:
    """What a prediction says against the labels, if anything."""
    number = int(frame.label_of[row])
    said = f"the model is {one.score:.0%} sure of a {_word(one.cls)}"
    if number == UNMATCHED:
        if frame.best(row) >= TOUCHING_IOU:
            return None  # a second box on an object that has one
        weight = believed * (1 - frame.best(row))
        why = f"{said} where nobody drew one"
        return _error(frame, "missed", one, weight, why)
    label, overlap = frame.labels[number], float(frame.overlap[row, number])
    if label.cls != one.cls and overlap >= 0.5:
        why = f"{said} where the label says {_word(label.cls)}"
        weight = believed * overlap
        return _error(frame, "class", label, weight, why)
    if label.cls == one.cls and overlap < SAME_OBJECT_IOU:
        why = f"{said}, and its box shares {overlap:.0%} with the one drawn"
        weight = believed * (1 - overlap)
        return _error(frame, "placed", label, weight, why)
    return None


def _twice(frame: _Compared) -> list[LabelError]:
    if len(frame.labels) < 2:
        return []
    overlap = boxes.iou_matrix(frame.drawn, frame.drawn)
    errors = []
    for first, second in zip(*np.nonzero(np.triu(overlap, 1) >= TWICE_IOU), strict=True):
        one, other = frame.labels[int(first)], frame.labels[int(second)]
        if one.cls != other.cls:
            continue
        share = float(overlap[first, second])
        why = f"two {_word(one.cls)} boxes share {share:.0%}: one object drawn twice?"
        errors.append(_error(frame, "twice", other, share, why))
    return errors


def _nothing(frame: _Compared) -> list[LabelError]:
    """Labels on which the model sees nothing at all: weak evidence, as models miss much."""
    errors = []
    for number, label in enumerate(frame.labels):
        nearest = float(frame.overlap[:, number].max()) if len(frame.found) else 0.0
        if nearest < FAINT and not _hidden(label):
            why = f"the model sees nothing where a {_word(label.cls)} is drawn"
            errors.append(_error(frame, "nothing", label, _size(label), why))
    return errors


def _error(
    frame: _Compared, kind: Kind, where: Label | Prediction, weight: float, why: str
) -> LabelError:
    return LabelError(
        frame=frame.frame,
        kind=kind,
        box=where.box,
        cls=where.cls,
        weight=round(weight, 6),
        why=why,
    )


def _hidden(label: Label) -> bool:
    return (label.occluded or 0) >= 0.5 or (label.truncated or 0) >= 0.5


def _size(label: Label) -> float:
    """Below one half, less for small boxes: those a model misses most, rightly labelled."""
    side = float(np.sqrt(label.box.w * label.box.h))
    return _NOTHING * side / (side + 48.0)


def _inside(box: Box, ignored: NDArray[np.float32]) -> bool:
    if not len(ignored):
        return False
    common = boxes.intersection_matrix(boxes.from_records([box]), ignored)
    return bool(common.max() >= 0.5 * box.w * box.h)


def _counts(
    rows: Sequence[tuple[float, bool]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    bins = np.array([_bin(score) for score, _ in rows], np.int64)
    right = np.array([right for _, right in rows], np.float64)
    total = np.bincount(bins, minlength=_BINS).astype(np.float64)
    return total, np.bincount(bins, weights=right, minlength=_BINS).astype(np.float64)


def _bin(score: float) -> int:
    return min(_BINS - 1, int(score * _BINS))


def _word(cls: str) -> str:
    return cls.replace("_", " ")
