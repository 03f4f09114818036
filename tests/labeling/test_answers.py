"""Answers and their origins, read from an export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.labeling.conftest import frame_regions
from workbench.labeling.answers import (
    REPLAY_DOMAIN,
    AnnotatorTally,
    Answer,
    AnswerRow,
    answer_row,
    parse_answers,
    region_id,
    to_labels,
)
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.records.frames import Box, Frame, Label, LabelSchema, Origin, Question
from workbench.records.types import Annotator, Prediction

BATCH = f"batch/{'b' * 64}"
FRAME = Frame(id="a" * 64, drive="d", index=0, width=301, height=199, suffix=".jpg")
PEOPLE = {1: "ada@example.org", 2: f"replay-1@{REPLAY_DOMAIN}", 3: "bob@example.org"}
SCHEMA = LabelSchema(
    name="s",
    version=1,
    classes=("car", "bus"),
    frame_questions=(Question(name="weather", answers=("clear", "rain")),),
)
START = Prediction(frame=FRAME.id, cls="car", box=Box(x=10, y=20, w=30, h=40), score=0.5)

SENT = {region_id(START): START}


def summarise(rows: Iterable[AnswerRow]) -> tuple[Annotator, ...]:
    people = AnnotatorTally()
    for row in rows:
        people.add(row)
    return people.annotators()


def annotation(number: int, who: Any, *boxes: DrawnObject, **more: Any) -> dict[str, Any]:
    result = [part for box in boxes for part in to_regions(box, FRAME.width, FRAME.height)]
    fields = {"id": number, "completed_by": who, "result": result, "was_cancelled": False}
    return {**fields, "lead_time": 30.0, "updated_at": f"2026-01-01T00:00:{number:02}Z", **more}


def read(*annotations: dict[str, Any]) -> list[Answer]:
    return parse_answers(annotations, 5, FRAME, SCHEMA, PEOPLE)[0]


def labels(*boxes: DrawnObject, who: int = 1) -> tuple[Label, ...]:
    return to_labels(read(annotation(1, who, *boxes))[0], SENT, BATCH)


def origins(*boxes: DrawnObject, who: int = 1) -> list[Origin]:
    return [label.origin for label in labels(*boxes, who=who)]


def test_an_unchanged_prediction_is_accepted() -> None:
    assert origins(DrawnObject(region_id(START), "car", START.box)) == [Origin.HUMAN_ACCEPTED]


def test_accepted_even_if_the_editor_renamed_the_region() -> None:
    assert origins(DrawnObject("renamed", "car", START.box)) == [Origin.HUMAN_ACCEPTED]


def test_attributes_do_not_make_a_box_edited() -> None:
    submitted = DrawnObject(region_id(START), "car", START.box, occluded=0.25)
    assert origins(submitted) == [Origin.HUMAN_ACCEPTED]


@pytest.mark.parametrize(
    "changed",
    [
        DrawnObject(region_id(START), "car", Box(x=10.5, y=20, w=30, h=40)),
        DrawnObject(region_id(START), "bus", START.box),
    ],
)
def test_a_prediction_moved_or_renamed_is_edited(changed: DrawnObject) -> None:
    assert origins(changed) == [Origin.HUMAN_EDITED]


def test_a_new_box_is_human() -> None:
    assert origins(DrawnObject("own", "car", Box(x=100, y=20, w=30, h=40))) == [Origin.HUMAN]


def test_replays_have_their_own_origin_and_no_times() -> None:
    answer = read(annotation(1, 2, DrawnObject(region_id(START), "car", START.box)))[0]
    (label,) = to_labels(answer, SENT, BATCH)
    assert label.origin is Origin.REPLAYED and label.labeled_at is None
    (person,) = summarise([answer_row(answer, SENT)])
    assert person.simulated and person.minutes is None


def test_working_time_of_people_is_kept() -> None:
    answers = read(annotation(1, 1), annotation(2, {"id": 3, "email": "x"}))
    assert [answer.annotator for answer in answers] == ["ada@example.org", "bob@example.org"]
    assert [person.minutes for person in summarise(map(bare, answers))] == [0.5, 0.5]
    assert answers[0].at == "2026-01-01T00:00:01Z"


def test_the_latest_answer_of_a_person_counts() -> None:
    first = annotation(1, 1, DrawnObject("x", "car", START.box))
    assert read(first, annotation(2, 1, was_cancelled=True))[0].skipped
    assert not read(annotation(2, 1), annotation(1, 1, was_cancelled=True))[0].skipped


def test_an_empty_answer_counts_and_a_prediction_does_not() -> None:
    (answer,) = read(annotation(1, 1))
    assert answer.objects == () and not answer.skipped
    assert read() == []


def test_an_edit_records_what_changed() -> None:
    half = DrawnObject(region_id(START), "bus", Box(x=10, y=20, w=15, h=40))
    (label,) = labels(half)
    assert label.edit is not None
    assert (label.edit.cls, label.edit.box, label.edit.score) == ("car", START.box, 0.5)
    assert (label.edit.changed, label.edit.iou) == (("class", "position"), 0.5)
    assert labels(DrawnObject("own", "car", half.box))[0].edit is None


def test_predictions_that_were_deleted_are_counted() -> None:
    unchanged, emptied = (
        read(annotation(1, 1, DrawnObject("x", "car", START.box))),
        read(annotation(1, 1)),
    )
    skipped = read(annotation(1, 1, was_cancelled=True))
    assert [answer_row(one[0], SENT).removed for one in (unchanged, emptied, skipped)] == [0, 1, 0]


def test_answers_about_the_frame_are_read() -> None:
    submitted = annotation(1, 1)
    submitted["result"] = frame_regions({"weather": "rain"}, "glare on the windscreen")
    row = answer_row(read(submitted)[0], {})
    assert (row.choices, row.comment) == ({"weather": "rain"}, "glare on the windscreen")


def test_edited_boxes_of_other_people_are_human() -> None:
    answer = read(annotation(1, 1, DrawnObject(region_id(START), "car", START.box)))[0]
    (label,) = to_labels(answer, SENT, BATCH, "people")
    assert label.origin is Origin.HUMAN


def test_every_annotation_is_kept_and_which_one_counts() -> None:
    both = (
        annotation(1, 1, DrawnObject("x", "car", START.box)),
        annotation(2, 1),
        annotation(3, 2),
    )
    rows = parse_answers(both, 5, FRAME, SCHEMA, PEOPLE)[1]
    assert [(row.annotator, row.annotation, row.counts) for row in rows] == [
        (PEOPLE[1], 1, False),
        (PEOPLE[1], 2, True),
        (PEOPLE[2], None, True),
    ]
    assert '"rectanglelabels": ["car"]' in rows[0].result
    assert rows[2].updated_at is None and rows[2].minutes is None


def test_invalid_boxes_are_reported() -> None:
    outside = annotation(1, 1, DrawnObject("r", "car", Box(x=290, y=20, w=30, h=40)))
    (answer,) = read(outside)
    assert [refused.reason for refused in answer.invalid] == ["out-of-bounds"]


def bare(answer: Answer) -> Any:
    return answer_row(answer, {})
