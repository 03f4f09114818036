"""What labelers answered: from Label Studio's export to labels that know their origin.

A frame's *answer* is what one labeler left of it: boxes, none at all, or a skip. Where a labeler
answered a frame more than once, the latest counts. Drafts and predictions are no answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench import digest
from workbench.labeling.regions import Drawn, Refused, read_result
from workbench.records.base import Digest, Row
from workbench.records.frames import Frame, LabelSchema, added
from workbench.records.types import Annotator, LabelBatch, Prediction

REPLAY_DOMAIN = "replay.workbench.invalid"
"""Nobody can own an address below ``.invalid`` (RFC 2606): who has one is a replay."""


class AnswerRow(Row):
    """One labeler's answer to one frame, as kept in a label set's ``answers.jsonl``.

    ``removed`` counts the boxes to start from that the labeler deleted; ``choices`` answer the
    schema's questions about the frame.
    """

    frame: Digest
    annotator: str
    boxes: int
    skipped: bool = False
    minutes: float | None = None
    removed: int = added(0)
    choices: dict[str, str] = added({})
    comment: str | None = added(None)


class AnnotationRow(Row):
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
    drawn: tuple[Drawn, ...]
    refused: tuple[Refused, ...]
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


def answers_needed(batch: LabelBatch) -> dict[Digest, int]:
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


def read_answers(
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
        answer = _answer(annotation, task, frame, schema, people)
        known = latest.get(answer.annotator)
        if known is None or (answer.at or "", answer.order) > (known.at or "", known.order):
            latest[answer.annotator] = answer
    counting = {answer.order for answer in latest.values()}
    rows = [_row(one, frame, people, int(one["id"]) in counting) for one in annotations]
    # A replay's time is the machine's, and would make equal replays unequal records.
    answers = [
        replace(answer, at=None) if is_replay(answer.annotator) else answer
        for _, answer in sorted(latest.items())
    ]
    return answers, sorted(rows, key=lambda row: (row.annotator, row.annotation or 0, row.result))


class People:
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


def _person(annotation: Mapping[str, Any], people: Mapping[int, str]) -> str:
    author = annotation.get("completed_by")
    number = author["id"] if isinstance(author, Mapping) else author
    return people.get(int(number or 0), f"user {number}")


def _minutes(annotation: Mapping[str, Any], person: str) -> float | None:
    seconds = None if is_replay(person) else annotation.get("lead_time")
    return None if seconds is None else float(seconds) / 60


def _answer(
    annotation: Mapping[str, Any],
    task: int,
    frame: Frame,
    schema: LabelSchema,
    people: Mapping[int, str],
) -> Answer:
    person = _person(annotation, people)
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
        minutes=_minutes(annotation, person),
        at=annotation.get("updated_at") or annotation.get("created_at"),
        choices=read.choices,
        comment=read.comment,
    )


def _row(
    annotation: Mapping[str, Any], frame: Frame, people: Mapping[int, str], counts: bool
) -> AnnotationRow:
    person = _person(annotation, people)
    timeless = is_replay(person)
    return AnnotationRow(
        frame=frame.id,
        annotator=person,
        annotation=None if timeless else int(annotation["id"]),
        skipped=bool(annotation.get("was_cancelled")),
        counts=counts,
        minutes=_minutes(annotation, person),
        created_at=None if timeless else annotation.get("created_at"),
        updated_at=None if timeless else annotation.get("updated_at"),
        result=json.dumps(annotation.get("result") or [], sort_keys=True),
    )
