"""Evaluation set as arrays, and COCO matching of predictions to ground truth.

Arrays have an order of their own (frames by drive and index, boxes by content), so results do not
depend on the order of the arguments. Matching follows COCOeval (Lin et al., "Microsoft COCO",
2014), for all frames, classes and thresholds at once: within a frame and class, predictions take by
falling score the free ground truth they overlap most, counted truth before ignored truth. An ignore
region can be matched any number of times, and its overlap is the share of the prediction inside it.
A prediction that matches ignored truth counts neither way. Results are kept by frame, which makes
resampling of drives cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.core.errors import DataError
from workbench.data.slices import Slice
from workbench.records.dataset import Dataset
from workbench.records.frames import ANY_CLASS, Frame, Label, LabelSchema
from workbench.records.types import Prediction

__all__ = ()

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GroundTruthBoxes:
    """Ground-truth boxes of an evaluation set, one row each.

    Attributes:
        frame: ``[n]`` index into `EvaluationSet.frames`.
        cls: ``[n]`` class index.
        box: ``[n, 4]`` x, y, w, h in pixels of the stored frame.
        crowd: ``[n]`` ignore regions (COCO's ``iscrowd``); one of any class has a row per class.
        label: ``[n]`` index into `EvaluationSet.labels`.
    """

    frame: Ints
    cls: Ints
    box: Floats
    crowd: Bools
    label: Ints


@dataclass(frozen=True)
class PredictedBoxes:
    """Predicted boxes, as in `GroundTruthBoxes`; ``source`` is the index in the given sequence."""

    frame: Ints
    cls: Ints
    box: Floats
    score: Floats
    source: Ints


@dataclass(frozen=True)
class EvaluationSet:
    """Frames and ground truth with the predictions of one model."""

    schema: LabelSchema
    frames: tuple[Frame, ...]
    labels: tuple[Label, ...]
    truth: GroundTruthBoxes
    predicted: PredictedBoxes

    @property
    def classes(self) -> tuple[str, ...]:
        return self.schema.classes


def build_evaluation_set(dataset: Dataset, predictions: Sequence[Prediction]) -> EvaluationSet:
    """Check and convert a dataset and predictions to arrays.

    Raises:
        DataError: There are no frames, a label was made by a model or has an unknown class, or a
            prediction has an unknown frame or class or is not finite.
    """
    if not dataset.frames:
        raise DataError(
            "no frames to evaluate on",
            where=dataset.name,
            hint="Assign the role `safety` to frames, or choose another role",
        )
    frames = tuple(sorted(dataset.frames, key=lambda frame: (frame.drive, frame.index, frame.id)))
    number = {frame.id: position for position, frame in enumerate(frames)}
    classes = {name: position for position, name in enumerate(dataset.label_schema.classes)}
    truth, labels = _ground_truth_boxes(dataset, number, classes)
    return EvaluationSet(
        dataset.label_schema, frames, labels, truth, _predicted_boxes(predictions, number, classes)
    )


def _ground_truth_boxes(
    dataset: Dataset, number: dict[str, int], classes: dict[str, int]
) -> tuple[GroundTruthBoxes, tuple[Label, ...]]:
    labels = tuple(
        sorted(dataset.labels, key=lambda label: (number[label.frame], _label_order(label)))
    )
    rows: list[tuple[int, int, bool, int]] = []
    for position, label in enumerate(labels):
        if not label.origin.is_ground_truth:
            raise DataError(
                "label made by a model cannot be ground truth",
                where=f"{dataset.name}, frame {label.frame[:12]}",
                hint="Have these labels reviewed by people, or remove them",
            )
        if label.cls == ANY_CLASS and label.ignore:
            rows += [(number[label.frame], cls, True, position) for cls in classes.values()]
        elif label.cls in classes:
            rows.append((number[label.frame], classes[label.cls], label.ignore, position))
        else:
            raise DataError(
                f"label has class {label.cls!r}, which is not in the label schema",
                where=f"{dataset.name}, frame {label.frame[:12]}",
                hint=f"Classes: {', '.join(classes)}",
            )
    boxes = [_xywh(labels[position]) for *_, position in rows]
    truth = GroundTruthBoxes(
        frame=np.array([row[0] for row in rows], np.int64),
        cls=np.array([row[1] for row in rows], np.int64),
        box=np.array(boxes, np.float64).reshape(-1, 4),
        crowd=np.array([row[2] for row in rows], np.bool_),
        label=np.array([row[3] for row in rows], np.int64),
    )
    return truth, labels


def _predicted_boxes(
    predictions: Sequence[Prediction], number: dict[str, int], classes: dict[str, int]
) -> PredictedBoxes:
    for position, prediction in enumerate(predictions):
        _check_prediction(prediction, position, number, classes)
    order = sorted(
        range(len(predictions)),
        key=lambda position: (
            number[predictions[position].frame],
            classes[predictions[position].cls],
            -predictions[position].score,
            _xywh(predictions[position]),
        ),
    )
    ordered = [predictions[position] for position in order]
    return PredictedBoxes(
        frame=np.array([number[each.frame] for each in ordered], np.int64),
        cls=np.array([classes[each.cls] for each in ordered], np.int64),
        box=np.array([_xywh(each) for each in ordered], np.float64).reshape(-1, 4),
        score=np.array([each.score for each in ordered], np.float64),
        source=np.array(order, np.int64),
    )


def _check_prediction(
    prediction: Prediction, position: int, number: dict[str, int], classes: dict[str, int]
) -> None:
    where = f"prediction {position}, frame {prediction.frame[:12]}"
    if prediction.frame not in number:
        raise DataError(
            "prediction is on a frame outside the evaluation set",
            where=where,
            hint="Predict on exactly the frames of the dataset",
        )
    if prediction.cls not in classes:
        raise DataError(
            f"prediction has class {prediction.cls!r}, which is not in the label schema",
            where=where,
            hint=f"Classes: {', '.join(classes)}",
        )
    if not all(map(math.isfinite, (*_xywh(prediction), prediction.score))):
        raise DataError(
            "prediction has a box or score that is NaN or infinite",
            where=where,
            hint="Check the raw outputs of the model",
        )


def _xywh(item: Label | Prediction) -> tuple[float, float, float, float]:
    return (item.box.x, item.box.y, item.box.w, item.box.h)


def _label_order(label: Label) -> tuple[str, tuple[float, float, float, float], bool]:
    return (label.cls, _xywh(label), label.ignore)


IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS: Floats = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
"""Maximum number of predictions of a frame and class."""

_MAX_BLOCK_CELLS = 4_000_000
"""Maximum number of cells of a padded block of overlaps."""


@dataclass(frozen=True)
class MatchTable:
    """Matches of a model's predictions on one slice.

    Predictions are ordered by class, then falling score.

    Attributes:
        slice: Name of the slice.
        classes: Names of the classes in the slice, in the schema's order.
        score: ``[n]`` of each prediction.
        cls: ``[n]`` index into ``classes``.
        frame: ``[n]`` index into `EvaluationSet.frames`.
        source: ``[n]`` index in the given sequence of predictions.
        hit: ``[t, n]`` matched to counted truth at each of `IOU_THRESHOLDS`.
        ignored: ``[t, n]`` counts neither way.
        frames: Indices of the slice's frames in `EvaluationSet.frames`.
        truth_frame: ``[m]`` frame of each counted ground-truth box.
        truth_cls: ``[m]`` index into ``classes``.
        truth_label: ``[m]`` index into `EvaluationSet.labels`.
        matched_by: ``[m]`` row of the prediction matched at IoU 0.5, or -1.
    """

    slice: str
    classes: tuple[str, ...]
    score: Floats
    cls: Ints
    frame: Ints
    source: Ints
    hit: Bools
    ignored: Bools
    frames: Ints
    truth_frame: Ints
    truth_cls: Ints
    truth_label: Ints
    matched_by: Ints


def match_slice(data: EvaluationSet, part: Slice) -> MatchTable:
    """Match all predictions on the frames and classes of one slice."""
    truth, predicted = data.truth, data.predicted
    names = part.class_names(data.schema)
    in_frame = np.array([part.frame is None or part.frame(frame) for frame in data.frames])
    in_class = np.array([name in names for name in data.classes])
    rows = _top_detections(
        data, np.flatnonzero(in_frame[predicted.frame] & in_class[predicted.cls])
    )
    kept = np.flatnonzero(in_frame[truth.frame] & in_class[truth.cls])
    kept = kept[np.lexsort((truth.cls[kept], truth.frame[kept]))]
    counted = counted_truth(data, part)[kept]

    hit = np.zeros((len(IOU_THRESHOLDS), len(rows)), np.bool_)
    ignored = np.zeros_like(hit)
    matched_by = np.full(len(kept), -1, np.int64)
    for block in _blocks(data, rows, kept):
        _match_block(data, rows, kept, counted, block, (hit, ignored, matched_by))
    outside = _outside_area(predicted.box[rows], part.area)
    ignored |= ~hit & outside

    order = np.lexsort((np.arange(len(rows)), -predicted.score[rows], predicted.cls[rows]))
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    number = np.cumsum(in_class) - 1
    matched = matched_by[counted]
    return MatchTable(
        slice=part.name,
        classes=names,
        score=predicted.score[rows][order],
        cls=number[predicted.cls[rows][order]],
        frame=predicted.frame[rows][order],
        source=predicted.source[rows][order],
        hit=hit[:, order],
        ignored=ignored[:, order],
        frames=np.flatnonzero(in_frame),
        truth_frame=truth.frame[kept][counted],
        truth_cls=number[truth.cls[kept][counted]],
        truth_label=truth.label[kept][counted],
        matched_by=np.where(matched >= 0, position[matched], -1) if len(rows) else matched,
    )


def counted_truth(data: EvaluationSet, part: Slice) -> Bools:
    """``[m]`` rows of ``data.truth`` that count in a slice, regardless of frame and class."""
    truth = data.truth
    counted = ~truth.crowd & ~_outside_area(truth.box, part.area)
    if part.label is not None:
        chosen = np.array([part.label(label) for label in data.labels], np.bool_)
        counted &= chosen[truth.label]
    return counted


def _outside_area(box: Floats, area: tuple[float, float]) -> Bools:
    size = box[:, 2] * box[:, 3]
    return np.asarray((size < area[0]) | (size > area[1]), np.bool_)


def _top_detections(data: EvaluationSet, rows: Ints) -> Ints:
    """The first `MAX_DETECTIONS` rows of every frame and class; rows have falling scores."""
    pair = data.predicted.frame[rows] * len(data.classes) + data.predicted.cls[rows]
    starts = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]]) if len(pair) else pair
    lengths = np.diff(np.r_[starts, len(pair)])
    rank = np.arange(len(pair)) - np.repeat(starts, lengths)
    return rows[rank < MAX_DETECTIONS]


@dataclass(frozen=True)
class _Block:
    """Frame-class pairs of similar size: rows of predictions and of truth, padded with -1."""

    predictions: Ints
    truths: Ints


def _blocks(data: EvaluationSet, rows: Ints, kept: Ints) -> Iterator[_Block]:
    """Frame-class pairs with both predictions and truth, in blocks with little padding."""
    width = len(data.classes)
    predicted_pairs = data.predicted.frame[rows] * width + data.predicted.cls[rows]
    truth_pairs = data.truth.frame[kept] * width + data.truth.cls[kept]
    pairs, first, count = np.unique(predicted_pairs, return_index=True, return_counts=True)
    low = np.asarray(np.searchsorted(truth_pairs, pairs, side="left"))
    truths = np.asarray(np.searchsorted(truth_pairs, pairs, side="right")) - low
    both = truths > 0
    first, count, low, truths = first[both], count[both], low[both], truths[both]
    size = np.ceil(np.log2(truths))
    for bucket in np.unique(size).tolist():
        members: Ints = np.flatnonzero(size == bucket)
        members = members[np.argsort(-count[members], kind="stable")]
        columns = int(truths[members].max())
        while len(members):
            depth = int(count[members[0]])
            step = max(1, _MAX_BLOCK_CELLS // (depth * columns))
            chosen, members = members[:step], members[step:]
            yield _Block(
                _padded(first[chosen], count[chosen], depth),
                _padded(low[chosen], truths[chosen], columns),
            )


def _padded(first: Ints, count: Ints, width: int) -> Ints:
    steps = np.arange(width)
    return np.where(steps < count[:, None], first[:, None] + steps, -1)


def _match_block(
    data: EvaluationSet,
    rows: Ints,
    kept: Ints,
    counted: Bools,
    block: _Block,
    out: tuple[Bools, Bools, Ints],
) -> None:
    """Match the predictions of all pairs, one rank of score after the other."""
    hit, ignored, matched_by = out
    real = block.truths >= 0
    crowd = real & data.truth.crowd[kept[block.truths]]
    counts = real & counted[block.truths]
    overlap = _coco_overlaps(
        data.predicted.box[rows[block.predictions]], data.truth.box[kept[block.truths]], crowd
    )
    limit = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.repeat(real[:, None, :], len(IOU_THRESHOLDS), axis=1)
    for rank in range(block.predictions.shape[1]):
        active = int((block.predictions[:, rank] >= 0).sum())  # pairs are ordered by falling length
        iou = overlap[:active, None, rank, :]
        available = (free[:active] | crowd[:active, None, :]) & (iou >= limit)
        value = np.where(available, iou, -1.0)
        first = _last_argmax(np.where(counts[:active, None, :], value, -1.0))
        second = _last_argmax(np.where(counts[:active, None, :], -1.0, value))
        chosen = np.where(first >= 0, first, second)
        row = block.predictions[:active, rank]
        hit[:, row] = (first >= 0).T
        ignored[:, row] = ((first < 0) & (second >= 0)).T
        pair, threshold = np.nonzero(chosen >= 0)
        free[pair, threshold, chosen[pair, threshold]] = False
        lowest = first[:, 0]
        matched = np.flatnonzero(lowest >= 0)
        matched_by[block.truths[matched, lowest[matched]]] = row[matched]


def _last_argmax(value: Floats) -> Ints:
    """Index of the largest value, the last on a tie as in COCOeval; -1 if none is >= 0."""
    width = value.shape[-1]
    best = width - 1 - np.argmax(value[..., ::-1], axis=-1)
    top = np.take_along_axis(value, best[..., None], axis=-1)[..., 0]
    return np.where(top >= 0, best, -1)


def _coco_overlaps(predicted: Floats, truth: Floats, crowd: Bools) -> Floats:
    """``[p, d, g]`` IoU of xywh boxes; for ignore regions the share of the prediction inside."""
    left, right = predicted[:, :, None, :], truth[:, None, :, :]
    low = np.maximum(left[..., :2], right[..., :2])
    high = np.minimum(left[..., :2] + left[..., 2:], right[..., :2] + right[..., 2:])
    sides = high - low
    inside = np.where((sides > 0).all(axis=-1), sides[..., 0] * sides[..., 1], 0.0)
    area = left[..., 2] * left[..., 3]
    union = np.where(crowd[:, None, :], area, area + right[..., 2] * right[..., 3] - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
