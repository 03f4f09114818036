"""Labelers' answers, read from Label Studio's export, as labels with their origin.

An *answer* is what one labeler submitted for one frame: boxes, no boxes, or a skip. If a labeler
answered a frame more than once, the latest answer counts. Drafts and predictions are not answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from workbench.core import digest
from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.core.types import Json
from workbench.detection import boxes
from workbench.labeling.regions import (
    DrawnObject,
    InvalidRegion,
    ParsedResult,
    parse_result,
    rotated_corners,
    without_copies,
)
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.frames import (
    Frame,
    Label,
    LabelEdit,
    LabelSchema,
    Origin,
    Point,
    optional_field,
)
from workbench.records.types import Annotator, LabelBatch, Prediction

__all__ = ()

REPLAY_DOMAIN = "replay.workbench.invalid"
"""E-mail domain of replay users. Domains below ``.invalid`` are never registered (RFC 2606)."""

_SAME_POSITION_PX = 1e-3

_PredictionsById = Mapping[str, Prediction]
"""Predictions of one frame by `region_id`."""


class AnswerRow(FrozenModel):
    """One labeler's answer to one frame: a row of a label set's ``answers.jsonl``.

    Attributes:
        boxes: Number of submitted boxes.
        removed: Number of predictions that the labeler deleted.
        choices: Answers to the schema's questions about the frame.
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
    """One annotation from the server: a row of a label set's ``annotations.jsonl``.

    Ids and times of replays are left out, so that equal replays make equal records.

    Attributes:
        counts: False if the same labeler answered the frame again later.
        result: The server's JSON as text.
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
    """One labeler's answer to one frame.

    Attributes:
        task: Id of Label Studio's task.
        annotation: Id of Label Studio's annotation.
        minutes: Working time measured by the server; None for replays.
        at: Server time of the last change (UTC, ISO 8601); None for replays.
    """

    frame: Digest
    annotator: str
    task: int
    annotation: int
    skipped: bool
    objects: tuple[DrawnObject, ...]
    invalid: tuple[InvalidRegion, ...]
    minutes: float | None
    at: str | None
    choices: Mapping[str, str] = field(default_factory=dict)
    comment: str | None = None


def is_replay(annotator: str) -> bool:
    """Whether an annotator is a replay user."""
    return annotator.endswith(f"@{REPLAY_DOMAIN}")


def region_id(prediction: Prediction) -> str:
    """Id of the region a prediction is sent as, made from its content."""
    box = prediction.box
    # Computed for each prediction of a batch: canonical JSON would be much slower.
    content = f"{box.x!r} {box.y!r} {box.w!r} {box.h!r} {prediction.score!r}"
    if prediction.turned is not None:
        content += f" {prediction.turned.model_dump_json()}"
    if prediction.polygon is not None:
        content += f" {prediction.polygon!r}"
    return digest.of_bytes(f"{prediction.frame} {prediction.cls} {content}".encode())[:10]


def labelers_needed(batch: LabelBatch) -> dict[Digest, int]:
    """Number of labelers that each frame of a batch needs.

    One, two for a share of ``overlap`` (chosen by the frames' digests), and more where the batch's
    ``needs`` say so.
    """
    by_digest = sorted(batch.frames, key=lambda frame: digest.of_bytes(frame.encode()))
    doubled = set(by_digest[: round(batch.overlap * len(by_digest))])
    needed = {frame: 2 if frame in doubled else 1 for frame in batch.frames}
    for need in batch.needs:
        needed[need.frame] = max(needed[need.frame], need.labelers)
    return needed


def parse_answers(
    annotations: Sequence[Json],
    task: int,
    frame: Frame,
    schema: LabelSchema,
    users: Mapping[int, str],
) -> tuple[list[Answer], list[AnnotationRow]]:
    """Parse the annotations of one frame.

    Args:
        annotations: As exported.
        task: Id of the frame's task.
        schema: Label schema that the batch was sent with.
        users: E-mail addresses by Label Studio's user ids.

    Returns:
        Every labeler's latest answer ordered by labeler, and rows for all annotations.
    """
    latest: dict[str, Answer] = {}
    annotations = [_with_readable_id(annotation) for annotation in annotations]
    for annotation in annotations:
        answer = _parse_answer(annotation, task, frame, schema, users)
        previous = latest.get(answer.annotator)
        order = (answer.at or "", answer.annotation)
        if previous is None or order > (previous.at or "", previous.annotation):
            latest[answer.annotator] = answer
    counting = {answer.annotation for answer in latest.values()}
    rows = [_annotation_row(one, frame, users, int(one["id"]) in counting) for one in annotations]
    answers = [
        replace(answer, at=None) if is_replay(answer.annotator) else answer
        for _, answer in sorted(latest.items())
    ]
    return answers, sorted(rows, key=lambda row: (row.annotator, row.annotation or 0, row.result))


def _parse_answer(
    annotation: Json, task: int, frame: Frame, schema: LabelSchema, users: Mapping[int, str]
) -> Answer:
    annotator = _annotator_of(annotation, users)
    skipped = bool(annotation.get("was_cancelled"))
    result = [] if skipped else annotation.get("result") or []
    problem = annotation.get(_PROBLEM) or ("" if isinstance(result, list) else "it has no regions")
    if problem:
        invalid = InvalidRegion("", "mislabelled", f"the answer cannot be read: {problem[:200]}")
        parsed = ParsedResult((), (invalid,), {}, None)
    else:
        parsed = without_copies(parse_result(result, frame.width, frame.height, schema))
    return Answer(
        frame=frame.id,
        annotator=annotator,
        task=task,
        annotation=int(annotation["id"]),
        skipped=skipped,
        objects=parsed.objects,
        invalid=parsed.invalid,
        minutes=_minutes_of(annotation, annotator),
        at=_text_of(annotation, "updated_at") or _text_of(annotation, "created_at"),
        choices=parsed.choices,
        comment=parsed.comment,
    )


def _annotation_row(
    annotation: Json, frame: Frame, users: Mapping[int, str], counts: bool
) -> AnnotationRow:
    annotator = _annotator_of(annotation, users)
    replayed = is_replay(annotator)
    return AnnotationRow(
        frame=frame.id,
        annotator=annotator,
        annotation=None if replayed else int(annotation["id"]),
        skipped=bool(annotation.get("was_cancelled")),
        counts=counts,
        minutes=_minutes_of(annotation, annotator),
        created_at=None if replayed else _text_of(annotation, "created_at"),
        updated_at=None if replayed else _text_of(annotation, "updated_at"),
        result=_as_json(annotation.get("result") or []),
    )


def _as_json(result: Any) -> str:
    try:
        return json.dumps(result, sort_keys=True)
    except UNREADABLE as error:
        return json.dumps(describe_unreadable(error))


def _annotator_of(annotation: Json, users: Mapping[int, str]) -> str:
    author = annotation.get("completed_by")
    user = author.get("id") if isinstance(author, Mapping) else author
    try:
        return users.get(int(user or 0), f"user {user}")
    except UNREADABLE:
        return "user ?"


def _minutes_of(annotation: Json, annotator: str) -> float | None:
    seconds = None if is_replay(annotator) else annotation.get("lead_time")
    try:
        minutes = None if seconds is None else float(seconds) / 60
    except UNREADABLE:
        return None
    return minutes if minutes is not None and 0 <= minutes < math.inf else None


_PROBLEM = "problem"
"""Entry of an annotation that stands for one that cannot be read."""


def _with_readable_id(annotation: Any) -> Json:
    """The annotation; in place of one that cannot be told from others, one with the reason."""
    try:
        number = int(annotation["id"])
        if 0 <= number < 2**53:
            return {**annotation, "id": number}
        problem = f"its id is {number}"
    except UNREADABLE as error:
        problem = describe_unreadable(error)
    author = annotation.get("completed_by") if isinstance(annotation, Mapping) else None
    return {"id": 0, "completed_by": author, _PROBLEM: problem}


def _text_of(annotation: Json, name: str) -> str | None:
    text = annotation.get(name)
    return text if isinstance(text, str) and text.isprintable() else None


class AnnotatorTally:
    """Counts frames, boxes and minutes of each annotator."""

    def __init__(self) -> None:
        self._work: dict[str, tuple[int, int, float | None]] = {}

    def add(self, answer: AnswerRow) -> None:
        frames, count, minutes = self._work.get(answer.annotator, (0, 0, None))
        if answer.minutes is not None:
            minutes = (minutes or 0.0) + answer.minutes
        self._work[answer.annotator] = (frames + 1, count + answer.boxes, minutes)

    def annotators(self) -> tuple[Annotator, ...]:
        """The totals, ordered by annotator."""
        return tuple(
            Annotator(
                id=annotator,
                frames=frames,
                boxes=count,
                minutes=None if minutes is None else round(minutes, 3),
                simulated=is_replay(annotator),
            )
            for annotator, (frames, count, minutes) in sorted(self._work.items())
        )


def answer_row(answer: Answer, predictions: _PredictionsById) -> AnswerRow:
    """An answer as a row of ``answers.jsonl``.

    Args:
        predictions: Those sent for the frame, by `region_id`.
    """
    remaining = {_source_prediction(drawn, predictions) for drawn in answer.objects}
    return AnswerRow(
        frame=answer.frame,
        annotator=answer.annotator,
        boxes=len(answer.objects),
        skipped=answer.skipped,
        minutes=answer.minutes,
        removed=0 if answer.skipped else len(predictions.keys() - remaining),
        choices=dict(answer.choices),
        comment=answer.comment,
    )


def to_labels(
    answer: Answer,
    predictions: _PredictionsById,
    batch: Ref,
    start: Literal["model", "people"] = "model",
) -> tuple[Label, ...]:
    """An answer's objects as labels with their origin.

    An object with the class and position of a prediction is ``human_accepted``, a changed
    prediction ``human_edited`` (``edit`` holds the changes), any other ``human``. Labels of replays
    are ``replayed``.

    Args:
        predictions: Those sent for the frame, by `region_id`.
        start: Origin of the predictions. Changed labels of other people, as in an adjudication or
            a review, are ``human``.
    """
    sources = predictions if start == "model" else {}
    return tuple(_to_label(answer, drawn, sources, batch) for drawn in answer.objects)


def _to_label(
    answer: Answer, drawn: DrawnObject, predictions: _PredictionsById, batch: Ref
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
    drawn: DrawnObject, annotator: str, predictions: _PredictionsById
) -> tuple[Origin, LabelEdit | None]:
    if is_replay(annotator):
        return Origin.REPLAYED, None
    source = _source_prediction(drawn, predictions)
    if source is None:
        return Origin.HUMAN, None
    prediction = predictions[source]
    changed = _changes(drawn, prediction)
    if not changed:
        return Origin.HUMAN_ACCEPTED, None
    pair = np.array([drawn.box.xyxy, prediction.box.xyxy])
    iou = float(boxes.iou_matrix(pair[:1], pair[1:])[0, 0])
    return Origin.HUMAN_EDITED, LabelEdit(
        cls=prediction.cls,
        box=prediction.box,
        score=prediction.score,
        iou=round(iou, 6),
        changed=changed,
    )


def _source_prediction(drawn: DrawnObject, predictions: _PredictionsById) -> str | None:
    """Id of the prediction that an object started as; None if drawn from scratch."""
    if drawn.region in predictions:
        return drawn.region
    # Copying an annotation in the editor gives regions new ids; an exact copy of a prediction was
    # still not drawn by hand.
    return next((name for name, one in predictions.items() if not _changes(drawn, one)), None)


def _changes(
    drawn: DrawnObject, prediction: Prediction
) -> tuple[Literal["class", "position"], ...]:
    changes: list[Literal["class", "position"]] = []
    if drawn.cls != prediction.cls:
        changes.append("class")
    if not _same_position(_coordinates(drawn), _coordinates(prediction)):
        changes.append("position")
    return tuple(changes)


def _coordinates(shape: DrawnObject | Prediction) -> tuple[list[float], ...]:
    corners = () if shape.turned is None else rotated_corners(shape.turned)
    outlines: tuple[Sequence[Point], ...] = (corners, shape.polygon or ())
    return (
        list(shape.box.xyxy),
        *([axis for point in line for axis in point] for line in outlines),
    )


def _same_position(first: tuple[list[float], ...], second: tuple[list[float], ...]) -> bool:
    return all(
        len(ours) == len(theirs)
        and all(abs(a - b) <= _SAME_POSITION_PX for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(first, second, strict=True)
    )
