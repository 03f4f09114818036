"""Evaluation set as arrays, and COCO matching of predictions to ground truth."""

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

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GroundTruthBoxes:
    """Boxes that are there; ``box`` is [n, 4] x, y, w, h in pixels of the stored frame.

    ``crowd`` marks ignore regions: COCO's ``iscrowd``, which swallow any number of predictions.
    ``label`` points into `Scene.labels`. A region of any class stands once for every class.
    """

    frame: Ints
    cls: Ints
    box: Floats
    crowd: Bools
    label: Ints


@dataclass(frozen=True)
class PredictedBoxes:
    """A model's boxes, form as in `Truth`; ``source`` is the place in the caller's sequence."""

    frame: Ints
    cls: Ints
    box: Floats
    score: Floats
    source: Ints


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set with one model's predictions."""

    schema: LabelSchema
    frames: tuple[Frame, ...]
    labels: tuple[Label, ...]
    truth: GroundTruthBoxes
    predicted: PredictedBoxes

    @property
    def classes(self) -> tuple[str, ...]:
        return self.schema.classes


def build_evaluation_set(dataset: Dataset, predictions: Sequence[Prediction]) -> EvaluationSet:
    """Number and check everything.

    Raises:
        DataError: There are no frames; a label is a model's own or of a class that the schema
            does not know; a prediction is on another frame, of another class, or not finite.
    """
    if not dataset.frames:
        raise DataError(
            "there are no frames to evaluate on",
            where=dataset.name,
            hint="Give frames the role `safety`, or choose another role",
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
                "a model's own box cannot be the truth that a model is judged by",
                where=f"{dataset.name}, frame {label.frame[:12]}",
                hint="Have people check these labels, or leave them out",
            )
        if label.cls == ANY_CLASS and label.ignore:
            rows += [(number[label.frame], cls, True, position) for cls in classes.values()]
        elif label.cls in classes:
            rows.append((number[label.frame], classes[label.cls], label.ignore, position))
        else:
            raise DataError(
                f"label of class {label.cls!r}, which the label schema does not have",
                where=f"{dataset.name}, frame {label.frame[:12]}",
                hint=f"Its classes are {', '.join(classes)}",
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
            "prediction on a frame that is not in the evaluation set",
            where=where,
            hint="Predict on exactly the frames of the dataset given",
        )
    if prediction.cls not in classes:
        raise DataError(
            f"prediction of class {prediction.cls!r}, which the label schema does not have",
            where=where,
            hint=f"Its classes are {', '.join(classes)}",
        )
    if not all(map(math.isfinite, (*_xywh(prediction), prediction.score))):
        raise DataError(
            "prediction whose box or score is not a number",
            where=where,
            hint="The model is broken: look at its outputs before the decode",
        )


def _xywh(thing: Label | Prediction) -> tuple[float, float, float, float]:
    return (thing.box.x, thing.box.y, thing.box.w, thing.box.h)


def _label_order(label: Label) -> tuple[str, tuple[float, float, float, float], bool]:
    return (label.cls, _xywh(label), label.ignore)


# ---- COCO's matching of predictions to truth, for all frames, classes and thresholds at once.
#
# The rules are those of COCOeval (Lin et al., "Microsoft COCO", 2014): within a frame and a class,
# predictions choose in order of score the free truth they overlap most, counted truth before
# ignored truth; an ignore region may be chosen any number of times and is measured by the share of
# the prediction inside it. What matches ignored truth counts neither way. The outcome is kept for
# each drive, which is what makes resampling drives cheap.


IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS: Floats = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
"""Predictions that count for a frame and a class, best first."""

_MAX_BLOCK_CELLS = 4_000_000
"""Upper size of one padded block of overlaps."""


@dataclass(frozen=True)
class MatchTable:
    """How a model's predictions fared on one slice.

    Attributes:
        classes: Names of the classes that count, in the schema's order.
        score: [n] float64, and the following in the same order: by class, then falling score.
        cls: [n] position in ``classes``.
        frame: [n] position in ``Scene.frames``.
        source: [n] place in the caller's sequence of predictions.
        hit: [t, n] matched to counted truth at `IOU_THRESHOLDS`.
        ignored: [t, n] counts neither way.
        frames: Positions of the slice's frames in ``Scene.frames``.
        truth_frame: [m] frame of each counted truth.
        truth_cls: [m] position in ``classes``.
        truth_label: [m] position in ``Scene.labels``.
        found_by: [m] row of the prediction that found it at IoU 0.5, or -1.
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
    found_by: Ints


def match_slice(scene: EvaluationSet, part: Slice) -> MatchTable:
    """Match all predictions of ``scene`` on the frames and classes of one slice."""
    truth, predicted = scene.truth, scene.predicted
    names = part.class_names(scene.schema)
    in_frame = np.array([part.frame is None or part.frame(frame) for frame in scene.frames])
    in_class = np.array([name in names for name in scene.classes])
    rows = _top_detections(
        scene, np.flatnonzero(in_frame[predicted.frame] & in_class[predicted.cls])
    )
    kept = np.flatnonzero(in_frame[truth.frame] & in_class[truth.cls])
    kept = kept[np.lexsort((truth.cls[kept], truth.frame[kept]))]
    counted = counted_truth(scene, part)[kept]

    hit = np.zeros((len(IOU_THRESHOLDS), len(rows)), np.bool_)
    ignored = np.zeros_like(hit)
    found_by = np.full(len(kept), -1, np.int64)
    for block in _blocks(scene, rows, kept):
        _match_block(scene, rows, kept, counted, block, (hit, ignored, found_by))
    outside = _outside_area(predicted.box[rows], part.area)
    ignored |= ~hit & outside

    order = np.lexsort((np.arange(len(rows)), -predicted.score[rows], predicted.cls[rows]))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    number = np.cumsum(in_class) - 1
    found = found_by[counted]
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
        found_by=np.where(found >= 0, place[found], -1) if len(rows) else found,
    )


def counted_truth(scene: EvaluationSet, part: Slice) -> Bools:
    """[m] which rows of ``scene.truth`` count in a slice, its frames and classes aside."""
    truth = scene.truth
    chosen = ~truth.crowd & ~_outside_area(truth.box, part.area)
    if part.label is not None:
        wanted = np.array([part.label(label) for label in scene.labels], np.bool_)
        chosen &= wanted[truth.label]
    return chosen


def _outside_area(box: Floats, area: tuple[float, float]) -> Bools:
    size = box[:, 2] * box[:, 3]
    return np.asarray((size < area[0]) | (size > area[1]), np.bool_)


def _top_detections(scene: EvaluationSet, rows: Ints) -> Ints:
    """The first `MAX_DETECTIONS` of every frame and class; rows lie in order of falling score."""
    pair = scene.predicted.frame[rows] * len(scene.classes) + scene.predicted.cls[rows]
    starts = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]]) if len(pair) else pair
    lengths = np.diff(np.r_[starts, len(pair)])
    rank = np.arange(len(pair)) - np.repeat(starts, lengths)
    return rows[rank < MAX_DETECTIONS]


@dataclass(frozen=True)
class _Block:
    """Frame-class pairs of like size: rows of predictions and of truth, padded with -1."""

    predictions: Ints
    truths: Ints


def _blocks(scene: EvaluationSet, rows: Ints, kept: Ints) -> Iterator[_Block]:
    """Pairs that have both predictions and truth, in blocks that waste little on padding."""
    width = len(scene.classes)
    ours = scene.predicted.frame[rows] * width + scene.predicted.cls[rows]
    theirs = scene.truth.frame[kept] * width + scene.truth.cls[kept]
    pairs, first, many = np.unique(ours, return_index=True, return_counts=True)
    low = np.asarray(np.searchsorted(theirs, pairs, side="left"))
    truths = np.asarray(np.searchsorted(theirs, pairs, side="right")) - low
    both = truths > 0
    first, many, low, truths = first[both], many[both], low[both], truths[both]
    size = np.ceil(np.log2(truths))
    for bucket in np.unique(size).tolist():
        members: Ints = np.flatnonzero(size == bucket)
        members = members[np.argsort(-many[members], kind="stable")]
        wide = int(truths[members].max())
        while len(members):
            deep = int(many[members[0]])
            step = max(1, _MAX_BLOCK_CELLS // (deep * wide))
            chosen, members = members[:step], members[step:]
            yield _Block(
                _padded(first[chosen], many[chosen], deep),
                _padded(low[chosen], truths[chosen], wide),
            )


def _padded(first: Ints, many: Ints, width: int) -> Ints:
    steps = np.arange(width)
    return np.where(steps < many[:, None], first[:, None] + steps, -1)


def _match_block(
    scene: EvaluationSet,
    rows: Ints,
    kept: Ints,
    counted: Bools,
    block: _Block,
    out: tuple[Bools, Bools, Ints],
) -> None:
    """Let the predictions of all pairs choose, one rank of score after the other."""
    hit, ignored, found_by = out
    real = block.truths >= 0
    crowd = real & scene.truth.crowd[kept[block.truths]]
    open_to_all = real & counted[block.truths]
    overlap = _coco_overlaps(
        scene.predicted.box[rows[block.predictions]], scene.truth.box[kept[block.truths]], crowd
    )
    limit = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.repeat(real[:, None, :], len(IOU_THRESHOLDS), axis=1)
    for rank in range(block.predictions.shape[1]):
        active = int((block.predictions[:, rank] >= 0).sum())  # pairs lie longest first
        iou = overlap[:active, None, rank, :]
        open_now = (free[:active] | crowd[:active, None, :]) & (iou >= limit)
        value = np.where(open_now, iou, -1.0)
        first = _last_argmax(np.where(open_to_all[:active, None, :], value, -1.0))
        second = _last_argmax(np.where(open_to_all[:active, None, :], -1.0, value))
        chosen = np.where(first >= 0, first, second)
        row = block.predictions[:active, rank]
        hit[:, row] = (first >= 0).T
        ignored[:, row] = ((first < 0) & (second >= 0)).T
        pair, threshold = np.nonzero(chosen >= 0)
        free[pair, threshold, chosen[pair, threshold]] = False
        loosest = first[:, 0]
        found = np.flatnonzero(loosest >= 0)
        found_by[block.truths[found, loosest[found]]] = row[found]


def _last_argmax(value: Floats) -> Ints:
    """Position of the largest value, the last one on a tie as in COCOeval; -1 if none is >= 0."""
    width = value.shape[-1]
    best = width - 1 - np.argmax(value[..., ::-1], axis=-1)
    top = np.take_along_axis(value, best[..., None], axis=-1)[..., 0]
    return np.where(top >= 0, best, -1)


def _coco_overlaps(predicted: Floats, truth: Floats, crowd: Bools) -> Floats:
    """[p, d, g] IoU of x, y, w, h boxes; for ignore regions the prediction's share inside."""
    left, right = predicted[:, :, None, :], truth[:, None, :, :]
    low = np.maximum(left[..., :2], right[..., :2])
    high = np.minimum(left[..., :2] + left[..., 2:], right[..., :2] + right[..., 2:])
    sides = high - low
    inside = np.where((sides > 0).all(axis=-1), sides[..., 0] * sides[..., 1], 0.0)
    ours = left[..., 2] * left[..., 3]
    union = np.where(crowd[:, None, :], ours, ours + right[..., 2] * right[..., 3] - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
