"""The boxes that labelers start from: none where the model is wrong too often.

A tenth of the frames gets none in any case, drawn by digest. That these frames are drawn at random
is what makes `review.labeling_effort` able to say whether the boxes save time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.text import counted, short_repr
from workbench.core.types import Progress
from workbench.detection.boxes import UNMATCHED, iou_matrix, match_greedy
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.records.types import Prediction

if TYPE_CHECKING:
    from workbench.detection.model import Model

__all__ = ["predict_first_boxes"]

_LEAST_JUDGED = 20
"""Fewer boxes on labeled frames do not measure a precision."""

_ON_IGNORED_IOU = 0.5
_HELD_OUT = 0.1
"""Share of the frames that start empty, so that the time which boxes save can be measured."""


@short_repr
@dataclass(frozen=True)
class FirstBoxes:
    """Boxes that labelers start from, and why these.

    Attributes:
        boxes: Their score is the precision measured at the model's score.
        score: Lowest score of a box; None if labelers get none.
        precision: Share of right boxes from that score on; the best there is if they get none.
        judged: Number of boxes that it was measured on.
        held_out: Number of frames that start empty to measure the time which boxes save.
    """

    boxes: tuple[Prediction, ...]
    score: float | None
    precision: float | None
    judged: int
    held_out: int = 0

    def __str__(self) -> str:
        boxes = counted(self.judged, "box", "boxes")
        if self.precision is None:
            return f"no first boxes: too few to measure the model's precision ({boxes})"
        measured = f"precision {self.precision:.2f} of {boxes} on labeled frames"
        if self.score is None:
            return f"no first boxes: at best {measured}"
        text = f"{len(self.boxes)} first boxes, score ≥ {self.score:.2f}: {measured}"
        if self.held_out:
            frames = counted(self.held_out, "frame")
            text += f"; {frames} without boxes, to measure the time that they save"
        return text


def predict_first_boxes(
    model: Model,
    dataset: Dataset,
    frames: Iterable[Digest],
    *,
    precision: float = 0.5,
    per_frame: int = 20,
    progress: Progress | None = None,
) -> FirstBoxes:
    """A model's boxes on some frames, as far as it is right often enough on the ``val`` frames.

    Args:
        model: Predicts on these frames and on the labeled ones.
        dataset: Has both.
        frames: Digests of the frames to label.
        precision: See `choose_first_boxes`.
        per_frame: See `choose_first_boxes`.
        progress: Called with the frames to label that are done and their total.
    """
    wanted, val = set(frames), dataset.role("val")
    return choose_first_boxes(
        model.predict(dataset.where(lambda frame: frame.id in wanted), progress=progress),
        model.predict(val) if val.labels else (),
        val,
        precision=precision,
        per_frame=per_frame,
    )


def choose_first_boxes(
    predictions: Iterable[Prediction],
    judged: Iterable[Prediction],
    truth: Dataset,
    *,
    precision: float = 0.5,
    per_frame: int = 20,
) -> FirstBoxes:
    """The boxes worth correcting: from the score on at which the model is right often enough.

    A bad model's boxes cost more time than they save, however high their scores are. The score is
    therefore chosen by what the model gets right on labeled frames that it did not learn from, and
    labelers see that share instead of the score: isotonic regression, as in Zadrozny and Elkan,
    "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", KDD 2002.

    Args:
        predictions: Boxes on the frames to label.
        judged: Boxes on ``truth``, down to low scores.
        truth: Labeled frames that the model did not learn from, such as ``dataset.role("val")``.
        precision: Smallest share of boxes that match a label of their class with IoU ≥ 0.5; boxes
            on ignore regions do not count.
        per_frame: Most boxes of one frame, those with the highest scores.
    """
    scores, right = _judge_boxes(judged, truth)
    order = np.argsort(-scores, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Fewer boxes measure nothing.
    usable = np.flatnonzero(np.arange(1, len(order) + 1) >= _LEAST_JUDGED)
    if not len(usable):
        return FirstBoxes((), None, None, len(order))
    good = usable[share[usable] >= precision]
    if not len(good):
        best = usable[share[usable].argmax()]
        return FirstBoxes((), None, float(share[best]), int(best) + 1)
    last = good.max()
    lowest = float(scores[order[last]])
    calibrated = _isotonic(scores, right)
    kept: dict[Digest, list[Prediction]] = {}
    held_out = set()
    for box in sorted(predictions, key=lambda one: -one.score):
        of_frame = kept.setdefault(box.frame, [])
        if box.score < lowest or len(of_frame) == per_frame:
            continue
        if starts_empty(box.frame):
            held_out.add(box.frame)
        else:
            share_right = round(float(calibrated(box.score)), 4)
            of_frame.append(box.model_copy(update={"score": share_right}))
    boxes = tuple(box for of_frame in kept.values() for box in of_frame)
    return FirstBoxes(boxes, lowest, float(share[last]), int(last) + 1, len(held_out))


def starts_empty(frame: Digest) -> bool:
    """Whether labelers start this frame without boxes, whatever a model finds on it."""
    return int(digest.of_bytes(f"no first boxes {frame}".encode())[:8], 16) < _HELD_OUT * 2**32


def _isotonic(
    scores: NDArray[np.float64], right: NDArray[np.bool_]
) -> Callable[[float], np.float64]:
    """Share of right boxes as a function of the score that never falls."""
    from scipy.optimize import isotonic_regression

    levels, which = np.unique(scores, return_inverse=True)
    count = np.bincount(which)
    fitted = isotonic_regression(np.bincount(which, right) / count, weights=count).x
    return lambda score: np.interp(score, levels, fitted)


def _judge_boxes(
    predictions: Iterable[Prediction], truth: Dataset
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Score of each box, and whether it matches a label; those on ignore regions are left out."""
    by_frame: dict[Digest, list[Prediction]] = {}
    for one in predictions:
        by_frame.setdefault(one.frame, []).append(one)
    scores: list[float] = []
    right: list[bool] = []
    for frame, found in by_frame.items():
        labels = truth.labels_by_frame[frame]
        objects = [label for label in labels if not label.ignore]
        regions = [label for label in labels if label.ignore]
        corners = np.array([one.box.xyxy for one in found], np.float32)
        classes = {one.cls for one in found} | {one.cls for one in objects}
        names = {cls: number for number, cls in enumerate(sorted(classes))}
        matched = match_greedy(
            corners,
            np.array([one.score for one in found], np.float32),
            np.array([one.box.xyxy for one in objects], np.float32).reshape(-1, 4),
            classes=np.array([names[one.cls] for one in found]),
            truth_classes=np.array([names[one.cls] for one in objects], np.int64),
        )
        ignored = np.zeros(len(found), np.bool_)
        if regions:
            areas = np.array([one.box.xyxy for one in regions], np.float32)
            ignored = iou_matrix(corners, areas).max(axis=1) >= _ON_IGNORED_IOU
        for one, match, left_out in zip(found, matched, ignored, strict=True):
            if match != UNMATCHED or not left_out:
                scores.append(one.score)
                right.append(match != UNMATCHED)
    return np.array(scores, np.float64), np.array(right, np.bool_)
