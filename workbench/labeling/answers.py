"""What labelers answered: from Label Studio's export to labels that know their origin.

A frame's *answer* is what one labeler left of it: boxes, none at all, or a skip. Where a labeler
answered a frame more than once, the latest counts. Drafts and predictions are no answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench import digest
from workbench.labeling.regions import Drawn, Refused, read_result
from workbench.records.base import Digest, Ref, Row, digest_of
from workbench.records.frames import Box, Frame, Label, Origin
from workbench.records.types import Annotator, LabelBatch, Prediction

REPLAY_DOMAIN = "replay.workbench.invalid"
"""Nobody can own an address below ``.invalid`` (RFC 2606): who has one is a replay."""

_UNCHANGED_PX = 1e-3


class AnswerRow(Row):
    """One labeler's answer to one frame, as kept in a label set's ``answers.jsonl``."""

    frame: Digest
    annotator: str
    boxes: int
    skipped: bool = False
    minutes: float | None = None


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

    @property
    def row(self) -> AnswerRow:
        return AnswerRow(
            frame=self.frame,
            annotator=self.annotator,
            boxes=len(self.drawn),
            skipped=self.skipped,
            minutes=self.minutes,
        )


def is_replay(annotator: str) -> bool:
    return annotator.endswith(f"@{REPLAY_DOMAIN}")


def region_id(prediction: Prediction) -> str:
    """The name under which a prediction is sent, so that what became of it can be told."""
    box = prediction.box
    # Ten thousand names a send: canonical JSON would take longer than reading the batch.
    numbers = f"{box.x!r} {box.y!r} {box.w!r} {box.h!r} {prediction.score!r}"
    return digest.of_bytes(f"{prediction.frame} {prediction.cls} {numbers}".encode())[:10]


def answers_needed(batch: LabelBatch) -> dict[Digest, int]:
    """How many labelers each frame of a batch needs: two for a share of ``overlap``, else one.

    Which frames are doubled follows from their digests, so it repeats and favours none.
    """
    doubled = sorted(batch.frames, key=lambda frame: digest.of_bytes(frame.encode()))
    twice = set(doubled[: round(batch.overlap * len(doubled))])
    return {frame: 2 if frame in twice else 1 for frame in batch.frames}


def read_answers(
    export: Iterable[Mapping[str, Any]],
    batch: Ref,
    frames: Mapping[Digest, Frame],
    classes: tuple[str, ...],
    people: Mapping[int, str],
) -> list[Answer]:
    """Every labeler's latest answer to every frame of a batch, in order of frame and labeler.

    Args:
        export: Tasks as exported; those of other batches are passed over.
        frames: The batch's frames by digest.
        people: E-mail addresses by Label Studio's user ids.
    """
    latest: dict[tuple[Digest, str], Answer] = {}
    for task in export:
        frame = frames.get(task["data"].get("frame", ""))
        if frame is None or task["data"].get("batch") != digest_of(batch):
            continue
        for annotation in task.get("annotations", ()):
            answer = _answer(annotation, task["id"], frame, classes, people)
            known = latest.get((answer.frame, answer.annotator))
            if known is None or (answer.at or "", answer.order) > (known.at or "", known.order):
                latest[answer.frame, answer.annotator] = answer
    # A replay's time is the machine's, and would make equal replays unequal records.
    return [
        replace(answer, at=None) if is_replay(answer.annotator) else answer
        for _, answer in sorted(latest.items())
    ]


def to_labels(
    answer: Answer, predictions: Mapping[str, Prediction], batch: Ref
) -> tuple[Label, ...]:
    """An answer's boxes as labels that say how they came to be.

    A box whose class and position are still those of a prediction is ``human_accepted``, one that
    began as a prediction ``human_edited``, any other ``human``; a replay's are ``replayed``.

    Args:
        predictions: Those sent for this frame, by `region_id`.
    """
    return tuple(
        Label(
            frame=answer.frame,
            cls=drawn.cls,
            box=drawn.box,
            origin=_origin(drawn, answer.annotator, predictions),
            annotator=answer.annotator,
            occluded=drawn.occluded,
            truncated=drawn.truncated,
            ignore=drawn.ignore,
            source=batch,
            labeled_at=answer.at,
        )
        for drawn in answer.drawn
    )


def summarise(answers: Iterable[Answer]) -> tuple[Annotator, ...]:
    """Who answered how much, by labeler."""
    by_person: dict[str, list[Answer]] = {}
    for answer in answers:
        by_person.setdefault(answer.annotator, []).append(answer)
    return tuple(
        Annotator(
            id=person,
            frames=len(theirs),
            boxes=sum(len(answer.drawn) for answer in theirs),
            minutes=_sum(answer.minutes for answer in theirs),
            simulated=is_replay(person),
        )
        for person, theirs in sorted(by_person.items())
    )


def _answer(
    annotation: Mapping[str, Any],
    task: int,
    frame: Frame,
    classes: tuple[str, ...],
    people: Mapping[int, str],
) -> Answer:
    author = annotation.get("completed_by")
    number = author["id"] if isinstance(author, Mapping) else author
    person = people.get(int(number or 0), f"user {number}")
    skipped = bool(annotation.get("was_cancelled"))
    result = [] if skipped else annotation.get("result") or []
    drawn, refused = read_result(result, frame.width, frame.height, classes)
    seconds = None if is_replay(person) else annotation.get("lead_time")
    return Answer(
        frame=frame.id,
        annotator=person,
        task=task,
        order=int(annotation["id"]),
        skipped=skipped,
        drawn=tuple(drawn),
        refused=tuple(refused),
        minutes=None if seconds is None else float(seconds) / 60,
        at=annotation.get("updated_at") or annotation.get("created_at"),
    )


def _origin(drawn: Drawn, annotator: str, predictions: Mapping[str, Prediction]) -> Origin:
    if is_replay(annotator):
        return Origin.REPLAYED
    started = predictions.get(drawn.region)
    # Copying an annotation in the editor renames its regions; what lies exactly on a prediction
    # was still not drawn by hand.
    candidates = [started] if started else list(predictions.values())
    if any(drawn.cls == one.cls and _same(drawn.box, one.box) for one in candidates):
        return Origin.HUMAN_ACCEPTED
    return Origin.HUMAN_EDITED if started else Origin.HUMAN


def _same(first: Box, second: Box) -> bool:
    pairs = zip(first.xyxy, second.xyxy, strict=True)
    return all(abs(one - other) <= _UNCHANGED_PX for one, other in pairs)


def _sum(minutes: Iterable[float | None]) -> float | None:
    measured = [value for value in minutes if value is not None]
    return round(sum(measured), 3) if measured else None
