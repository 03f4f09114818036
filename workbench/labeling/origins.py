"""Where a labeler's boxes came from: their own hand, or a box they were shown, and what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from workbench.labeling.answers import Answer, AnswerRow, is_replay
from workbench.labeling.geometry import corners
from workbench.labeling.regions import Drawn
from workbench.perception import boxes
from workbench.records.base import Ref
from workbench.records.frames import Edit, Label, Origin, Point, Turned
from workbench.records.types import Prediction

Predictions = Mapping[str, Prediction]
"""Those sent for one frame, by `answers.region_id`."""

Change = Literal["class", "position"]

_UNCHANGED_PX = 1e-3


def answer_row(answer: Answer, predictions: Predictions) -> AnswerRow:
    """An answer as a label set keeps it."""
    left = {_began_as(drawn, predictions) for drawn in answer.drawn}
    return AnswerRow(
        frame=answer.frame,
        annotator=answer.annotator,
        boxes=len(answer.drawn),
        skipped=answer.skipped,
        minutes=answer.minutes,
        removed=0 if answer.skipped else len(predictions.keys() - left),
        choices=dict(answer.choices),
        comment=answer.comment,
    )


def to_labels(
    answer: Answer,
    predictions: Predictions,
    batch: Ref,
    start: Literal["model", "people"] = "model",
) -> tuple[Label, ...]:
    """An answer's boxes as labels that say how they came to be.

    A box whose class and position are still those of a prediction is ``human_accepted``, one that
    began as a prediction ``human_edited`` (and ``edit`` says what changed), any other ``human``; a
    replay's are ``replayed``.

    Args:
        start: Whose boxes they are. What began as other people's, in an adjudication or a review,
            is ``human`` throughout.
    """
    began = predictions if start == "model" else {}
    return tuple(_label(answer, drawn, began, batch) for drawn in answer.drawn)


def _label(answer: Answer, drawn: Drawn, predictions: Predictions, batch: Ref) -> Label:
    origin, edit = _origin(drawn, answer.annotator, predictions)
    return Label(
        frame=answer.frame,
        cls=drawn.cls,
        box=drawn.box,
        origin=origin,
        annotator=answer.annotator,
        occluded=drawn.occluded,
        truncated=drawn.truncated,
        ignore=drawn.ignore,
        track=drawn.track,
        source=batch,
        labeled_at=answer.at,
        turned=drawn.turned,
        polygon=drawn.polygon,
        attributes=dict(drawn.attributes),
        edit=edit,
    )


def _origin(drawn: Drawn, annotator: str, predictions: Predictions) -> tuple[Origin, Edit | None]:
    if is_replay(annotator):
        return Origin.REPLAYED, None
    began = _began_as(drawn, predictions)
    if began is None:
        return Origin.HUMAN, None
    started = predictions[began]
    changed = _changed(drawn, started)
    if not changed:
        return Origin.HUMAN_ACCEPTED, None
    pair = np.array([drawn.box.xyxy, started.box.xyxy])
    overlap = float(boxes.iou_matrix(pair[:1], pair[1:])[0, 0])
    return Origin.HUMAN_EDITED, Edit(
        cls=started.cls,
        box=started.box,
        score=started.score,
        iou=round(overlap, 6),
        changed=changed,
    )


def _began_as(drawn: Drawn, predictions: Predictions) -> str | None:
    """Name of the prediction that a box began as; None for a box of one's own."""
    if drawn.region in predictions:
        return drawn.region
    # Copying an annotation in the editor renames its regions; what lies exactly on a prediction
    # was still not drawn by hand.
    exact = (name for name, one in predictions.items() if not _changed(drawn, one))
    return next(exact, None)


def _changed(drawn: Drawn, started: Prediction) -> tuple[Change, ...]:
    changed: list[Change] = []
    if drawn.cls != started.cls:
        changed.append("class")
    if not (
        _same(drawn.box.xyxy, started.box.xyxy)
        and _same(_turned(drawn.turned), _turned(started.turned))
        and _same(_axes(drawn.polygon), _axes(started.polygon))
    ):
        changed.append("position")
    return tuple(changed)


def _same(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and all(
        abs(one - other) <= _UNCHANGED_PX for one, other in zip(first, second, strict=True)
    )


def _turned(turned: Turned | None) -> Sequence[float]:
    return () if turned is None else [axis for point in corners(turned) for axis in point]


def _axes(polygon: Sequence[Point] | None) -> Sequence[float]:
    return [axis for point in polygon or () for axis in point]
