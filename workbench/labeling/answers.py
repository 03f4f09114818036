"""Labelers' answers, read from Label Studio's export, as labels with their origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from workbench.core import digest
from workbench.detection import boxes
from workbench.labeling.regions import DrawnObject, InvalidRegion, read_result, turned_corners
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.frames import (
    Frame,
    Label,
    LabelEdit,
    LabelSchema,
    Origin,
    Point,
    RotatedBox,
    optional_field,
)
from workbench.records.types import Annotator, LabelBatch, Prediction

REPLAY_DOMAIN = "replay.workbench.invalid"
"""Nobody can own an address below ``.invalid`` (RFC 2606): who has one is a replay."""


class AnswerRow(FrozenModel):
    """One labeler's answer to one frame, as kept in a label set's ``answers.jsonl``.

    ``removed`` counts the boxes to start from that the labeler deleted; ``choices`` answer the
    schema's questions about the frame.
    """

    frame: Digest
    annotator: str
    boxes: int
    skipped: bool = False
    minutes: float | None = None
    removed: int = optional_field(0)
    choices: dict[str, str] = optional_field({})
    comment: str | None = optional_field(None)


class AnnotationRow(FrozenModel):
    """One annotation as the server kept it, in a label set's ``annotations.jsonl``.

    ``result`` is the server's JSON as text. ``counts`` is False where the same labeler answered
    the frame again later. What differs from one replay to the next is left out of a replay's.
    """

    frame: Digest
    annotator: str
    annotation: int | None
    skipped: bool
    counts: bool
    minutes: float | None
    created_at: str | None
    updated_at: str | None
    result: str


@dataclass(frozen=True)
class Answer:
    """``minutes`` is what the server measured, None for a replay; ``at`` is its UTC time."""

    frame: Digest
    annotator: str
    task: int
    order: int
    skipped: bool
    drawn: tuple[DrawnObject, ...]
    refused: tuple[InvalidRegion, ...]
    minutes: float | None
    at: str | None
    choices: Mapping[str, str] = field(default_factory=dict)
    comment: str | None = None


def is_replay(annotator: str) -> bool:
    return annotator.endswith(f"@{REPLAY_DOMAIN}")


def region_id(prediction: Prediction) -> str:
    """The name under which a prediction is sent, so that what became of it can be told."""
    box = prediction.box
    # Ten thousand names a send: canonical JSON would take longer than reading the batch.
    numbers = f"{box.x!r} {box.y!r} {box.w!r} {box.h!r} {prediction.score!r}"
    if prediction.turned is not None:
        numbers += f" {prediction.turned.model_dump_json()}"
    if prediction.polygon is not None:
        numbers += f" {prediction.polygon!r}"
    return digest.of_bytes(f"{prediction.frame} {prediction.cls} {numbers}".encode())[:10]


def labelers_needed(batch: LabelBatch) -> dict[Digest, int]:
    """How many labelers each frame of a batch needs.

    Two for a share of ``overlap``, else one, and more where the batch's ``needs`` say so. Which
    frames are doubled follows from their digests, so it repeats and favours none.
    """
    doubled = sorted(batch.frames, key=lambda frame: digest.of_bytes(frame.encode()))
    twice = set(doubled[: round(batch.overlap * len(doubled))])
    needed = {frame: 2 if frame in twice else 1 for frame in batch.frames}
    for need in batch.needs:
        needed[need.frame] = max(needed[need.frame], need.labelers)
    return needed


def read_task_answers(
    annotations: Sequence[Mapping[str, Any]],
    task: int,
    frame: Frame,
    schema: LabelSchema,
    people: Mapping[int, str],
) -> tuple[list[Answer], list[AnnotationRow]]:
    """Every labeler's latest answer to one frame in order of their names, and all annotations.

    Args:
        annotations: Those of the frame's task, as exported.
        people: E-mail addresses by Label Studio's user ids.
    """
    latest: dict[str, Answer] = {}
    for annotation in annotations:
        answer = _read_answer(annotation, task, frame, schema, people)
        known = latest.get(answer.annotator)
        if known is None or (answer.at or "", answer.order) > (known.at or "", known.order):
            latest[answer.annotator] = answer
    counting = {answer.order for answer in latest.values()}
    rows = [_annotation_row(one, frame, people, int(one["id"]) in counting) for one in annotations]
    # A replay's time is the machine's, and would make equal replays unequal records.
    answers = [
        replace(answer, at=None) if is_replay(answer.annotator) else answer
        for _, answer in sorted(latest.items())
    ]
    return answers, sorted(rows, key=lambda row: (row.annotator, row.annotation or 0, row.result))


class AnnotatorTally:
    """Who answered how much, counted while answers pass by."""

    def __init__(self) -> None:
        self._work: dict[str, tuple[int, int, float | None]] = {}

    def add(self, answer: AnswerRow) -> None:
        frames, boxes, minutes = self._work.get(answer.annotator, (0, 0, None))
        if answer.minutes is not None:
            minutes = (minutes or 0.0) + answer.minutes
        self._work[answer.annotator] = (frames + 1, boxes + answer.boxes, minutes)

    def annotators(self) -> tuple[Annotator, ...]:
        """By name."""
        return tuple(
            Annotator(
                id=person,
                frames=frames,
                boxes=boxes,
                minutes=None if minutes is None else round(minutes, 3),
                simulated=is_replay(person),
            )
            for person, (frames, boxes, minutes) in sorted(self._work.items())
        )


def _annotator_of(annotation: Mapping[str, Any], people: Mapping[int, str]) -> str:
    author = annotation.get("completed_by")
    number = author["id"] if isinstance(author, Mapping) else author
    return people.get(int(number or 0), f"user {number}")


def _minutes_of(annotation: Mapping[str, Any], person: str) -> float | None:
    seconds = None if is_replay(person) else annotation.get("lead_time")
    return None if seconds is None else float(seconds) / 60


def _read_answer(
    annotation: Mapping[str, Any],
    task: int,
    frame: Frame,
    schema: LabelSchema,
    people: Mapping[int, str],
) -> Answer:
    person = _annotator_of(annotation, people)
    skipped = bool(annotation.get("was_cancelled"))
    result = [] if skipped else annotation.get("result") or []
    read = read_result(result, frame.width, frame.height, schema)
    return Answer(
        frame=frame.id,
        annotator=person,
        task=task,
        order=int(annotation["id"]),
        skipped=skipped,
        drawn=read.drawn,
        refused=read.refused,
        minutes=_minutes_of(annotation, person),
        at=annotation.get("updated_at") or annotation.get("created_at"),
        choices=read.choices,
        comment=read.comment,
    )


def _annotation_row(
    annotation: Mapping[str, Any], frame: Frame, people: Mapping[int, str], counts: bool
) -> AnnotationRow:
    person = _annotator_of(annotation, people)
    timeless = is_replay(person)
    return AnnotationRow(
        frame=frame.id,
        annotator=person,
        annotation=None if timeless else int(annotation["id"]),
        skipped=bool(annotation.get("was_cancelled")),
        counts=counts,
        minutes=_minutes_of(annotation, person),
        created_at=None if timeless else annotation.get("created_at"),
        updated_at=None if timeless else annotation.get("updated_at"),
        result=json.dumps(annotation.get("result") or [], sort_keys=True),
    )


# ---- Where a labeler's boxes came from: their own hand, or a box they were shown, and what changed.


PredictionsByName = Mapping[str, Prediction]
"""Those sent for one frame, by `answers.region_id`."""

EditKind = Literal["class", "position"]

_SAME_POSITION_PX = 1e-3


def answer_row(answer: Answer, predictions: PredictionsByName) -> AnswerRow:
    """An answer as a label set keeps it."""
    left = {_source_prediction(drawn, predictions) for drawn in answer.drawn}
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
    predictions: PredictionsByName,
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
    return tuple(_to_label(answer, drawn, began, batch) for drawn in answer.drawn)


def _to_label(
    answer: Answer, drawn: DrawnObject, predictions: PredictionsByName, batch: Ref
) -> Label:
    origin, edit = _origin_of(drawn, answer.annotator, predictions)
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


def _origin_of(
    drawn: DrawnObject, annotator: str, predictions: PredictionsByName
) -> tuple[Origin, LabelEdit | None]:
    if is_replay(annotator):
        return Origin.REPLAYED, None
    began = _source_prediction(drawn, predictions)
    if began is None:
        return Origin.HUMAN, None
    started = predictions[began]
    changed = _changes(drawn, started)
    if not changed:
        return Origin.HUMAN_ACCEPTED, None
    pair = np.array([drawn.box.xyxy, started.box.xyxy])
    overlap = float(boxes.iou_matrix(pair[:1], pair[1:])[0, 0])
    return Origin.HUMAN_EDITED, LabelEdit(
        cls=started.cls,
        box=started.box,
        score=started.score,
        iou=round(overlap, 6),
        changed=changed,
    )


def _source_prediction(drawn: DrawnObject, predictions: PredictionsByName) -> str | None:
    """Name of the prediction that a box began as; None for a box of one's own."""
    if drawn.region in predictions:
        return drawn.region
    # Copying an annotation in the editor renames its regions; what lies exactly on a prediction
    # was still not drawn by hand.
    exact = (name for name, one in predictions.items() if not _changes(drawn, one))
    return next(exact, None)


def _changes(drawn: DrawnObject, started: Prediction) -> tuple[EditKind, ...]:
    changed: list[EditKind] = []
    if drawn.cls != started.cls:
        changed.append("class")
    if not (
        _nearly_equal(drawn.box.xyxy, started.box.xyxy)
        and _nearly_equal(_turned_coordinates(drawn.turned), _turned_coordinates(started.turned))
        and _nearly_equal(
            _polygon_coordinates(drawn.polygon), _polygon_coordinates(started.polygon)
        )
    ):
        changed.append("position")
    return tuple(changed)


def _nearly_equal(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and all(
        abs(one - other) <= _SAME_POSITION_PX for one, other in zip(first, second, strict=True)
    )


def _turned_coordinates(turned: RotatedBox | None) -> Sequence[float]:
    return () if turned is None else [axis for point in turned_corners(turned) for axis in point]


def _polygon_coordinates(polygon: Sequence[Point] | None) -> Sequence[float]:
    return [axis for point in polygon or () for axis in point]
