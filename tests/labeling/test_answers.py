"""What an export means: who answered, what became of predictions, what is no answer."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.labeling.answers import (
    REPLAY_DOMAIN,
    read_answers,
    region_id,
    summarise,
    to_labels,
)
from workbench.labeling.regions import Drawn, to_regions
from workbench.records.frames import Box, Frame, Origin
from workbench.records.types import Prediction

BATCH = f"batch/{'b' * 64}"
FRAME = Frame(id="a" * 64, drive="d", index=0, width=301, height=199, suffix=".jpg")
PEOPLE = {1: "ada@example.org", 2: f"replay-1@{REPLAY_DOMAIN}", 3: "bob@example.org"}
START = Prediction(frame=FRAME.id, cls="car", box=Box(x=10, y=20, w=30, h=40), score=0.5)


def annotation(number: int, who: Any, *boxes: Drawn, **more: Any) -> dict[str, Any]:
    result = [part for box in boxes for part in to_regions(box, FRAME.width, FRAME.height)]
    made = {"id": number, "completed_by": who, "result": result, "was_cancelled": False}
    return {**made, "lead_time": 30.0, "updated_at": f"2026-01-01T00:00:{number:02}Z", **more}


def read(*annotations: dict[str, Any], batch: str = "b" * 64) -> list[Any]:
    task = {"id": 5, "data": {"frame": FRAME.id, "batch": batch}, "annotations": annotations}
    return read_answers([task], BATCH, {FRAME.id: FRAME}, ("car", "bus"), PEOPLE)


def origins(*boxes: Drawn, who: int = 1) -> list[Origin]:
    answer = read(annotation(1, who, *boxes))[0]
    labels = to_labels(answer, {region_id(START): START}, BATCH)
    return [label.origin for label in labels]


def test_a_prediction_left_alone_is_accepted() -> None:
    assert origins(Drawn(region_id(START), "car", START.box)) == [Origin.HUMAN_ACCEPTED]


def test_accepted_even_if_the_editor_renamed_the_region() -> None:
    assert origins(Drawn("renamed", "car", START.box)) == [Origin.HUMAN_ACCEPTED]


def test_more_said_about_a_box_does_not_make_it_edited() -> None:
    said = Drawn(region_id(START), "car", START.box, occluded=0.25)
    assert origins(said) == [Origin.HUMAN_ACCEPTED]


@pytest.mark.parametrize(
    "changed",
    [
        Drawn(region_id(START), "car", Box(x=10.5, y=20, w=30, h=40)),
        Drawn(region_id(START), "bus", START.box),
    ],
)
def test_a_prediction_moved_or_renamed_is_edited(changed: Drawn) -> None:
    assert origins(changed) == [Origin.HUMAN_EDITED]


def test_a_box_of_ones_own_is_human() -> None:
    assert origins(Drawn("own", "car", Box(x=100, y=20, w=30, h=40))) == [Origin.HUMAN]


def test_replays_are_replayed_timeless_and_cost_nobody_minutes() -> None:
    answer = read(annotation(1, 2, Drawn(region_id(START), "car", START.box)))[0]
    (label,) = to_labels(answer, {region_id(START): START}, BATCH)
    assert label.origin is Origin.REPLAYED and label.labeled_at is None
    (person,) = summarise([answer])
    assert person.simulated and person.minutes is None


def test_people_have_their_time_kept() -> None:
    answers = read(annotation(1, 1), annotation(2, {"id": 3, "email": "x"}))
    assert [answer.annotator for answer in answers] == ["ada@example.org", "bob@example.org"]
    assert [person.minutes for person in summarise(answers)] == [0.5, 0.5]
    assert answers[0].at == "2026-01-01T00:00:01Z"


def test_the_latest_answer_of_a_person_counts() -> None:
    first = annotation(1, 1, Drawn("x", "car", START.box))
    assert read(first, annotation(2, 1, was_cancelled=True))[0].skipped
    assert not read(annotation(2, 1), annotation(1, 1, was_cancelled=True))[0].skipped


def test_an_empty_answer_is_an_answer_and_a_prediction_is_none() -> None:
    (answer,) = read(annotation(1, 1))
    assert answer.drawn == () and not answer.skipped
    assert read() == []


def test_other_batches_are_passed_over() -> None:
    assert read(annotation(1, 1), batch="c" * 64) == []


def test_unusable_boxes_are_told_and_not_lost() -> None:
    outside = annotation(1, 1, Drawn("r", "car", Box(x=290, y=20, w=30, h=40)))
    (answer,) = read(outside)
    assert [refused.reason for refused in answer.refused] == ["out-of-bounds"]
