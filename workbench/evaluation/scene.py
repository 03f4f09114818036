"""Truth and predictions as arrays: checked, ordered and given numbers.

Everything below works on these arrays, in an order of its own (frames by drive and index, boxes
by content), so the order in which a caller gives frames or predictions cannot change a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.errors import DataError
from workbench.records.dataset import Dataset
from workbench.records.frames import ANY_CLASS, Frame, Label, LabelSchema
from workbench.records.types import Prediction

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
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
class Predicted:
    """A model's boxes, form as in `Truth`; ``source`` is the place in the caller's sequence."""

    frame: Ints
    cls: Ints
    box: Floats
    score: Floats
    source: Ints


@dataclass(frozen=True)
class Scene:
    """One evaluation set with one model's predictions."""

    schema: LabelSchema
    frames: tuple[Frame, ...]
    labels: tuple[Label, ...]
    truth: Truth
    predicted: Predicted

    @property
    def classes(self) -> tuple[str, ...]:
        return self.schema.classes


def build(dataset: Dataset, predictions: Sequence[Prediction]) -> Scene:
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
    truth, labels = _truth(dataset, number, classes)
    return Scene(
        dataset.label_schema, frames, labels, truth, _predicted(predictions, number, classes)
    )


def _truth(
    dataset: Dataset, number: dict[str, int], classes: dict[str, int]
) -> tuple[Truth, tuple[Label, ...]]:
    labels = tuple(sorted(dataset.labels, key=lambda label: (number[label.frame], _order(label))))
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
    truth = Truth(
        frame=np.array([row[0] for row in rows], np.int64),
        cls=np.array([row[1] for row in rows], np.int64),
        box=np.array(boxes, np.float64).reshape(-1, 4),
        crowd=np.array([row[2] for row in rows], np.bool_),
        label=np.array([row[3] for row in rows], np.int64),
    )
    return truth, labels


def _predicted(
    predictions: Sequence[Prediction], number: dict[str, int], classes: dict[str, int]
) -> Predicted:
    for position, prediction in enumerate(predictions):
        _check(prediction, position, number, classes)
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
    return Predicted(
        frame=np.array([number[each.frame] for each in ordered], np.int64),
        cls=np.array([classes[each.cls] for each in ordered], np.int64),
        box=np.array([_xywh(each) for each in ordered], np.float64).reshape(-1, 4),
        score=np.array([each.score for each in ordered], np.float64),
        source=np.array(order, np.int64),
    )


def _check(
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


def _order(label: Label) -> tuple[str, tuple[float, float, float, float], bool]:
    return (label.cls, _xywh(label), label.ignore)
