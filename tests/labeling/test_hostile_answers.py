"""Whatever Label Studio answers for one annotation, the others are read and recorded."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.data.test_hostile_sources import HOSTILE, changed, places
from tests.labeling.test_answers import BATCH, FRAME, PEOPLE, SCHEMA, annotation
from workbench.core import digest
from workbench.labeling.answers import answer_row, parse_answers, to_labels
from workbench.labeling.collector import shows_frame
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.records.frames import Box

BOXES = [
    DrawnObject("a", "car", Box(x=1, y=2, w=30, h=20), occluded=0.5, track="7"),
    DrawnObject("b", "car", Box(x=40, y=2, w=30, h=20)),
]


def attack(path: tuple[Any, ...], value: Any) -> None:
    good = annotation(1, 3, BOXES[0])
    bad = changed(annotation(2, 1, *BOXES), path, value)
    answers, rows = parse_answers([good, bad], 5, FRAME, SCHEMA, PEOPLE)
    assert len(rows) == 2
    by_annotation = {answer.annotation: answer for answer in answers}
    assert [drawn.region for drawn in by_annotation[1].objects] == ["a"]
    assert not by_annotation[1].invalid
    for answer in answers:
        for region in answer.invalid:
            assert len(region.detail) < 1000
        records = [answer_row(answer, {}), *to_labels(answer, {}, BATCH)]
        for record in records:
            digest.canonical_json(record.model_dump(mode="json"))
    for row in rows:
        json.loads(row.result)
        digest.canonical_json(row.model_dump(mode="json"))


ATTACKS = [(path, value) for path in places(annotation(2, 1, *BOXES)) for value in HOSTILE]


def test_one_bad_annotation_stops_nothing_else() -> None:
    for path, value in random.Random(3).sample(ATTACKS, 300):  # noqa: S311 - which are tried
        attack(path, value)


@pytest.mark.slow
def test_no_bad_annotation_stops_anything_else() -> None:
    for path, value in ATTACKS:
        attack(path, value)


def test_the_others_of_one_answer_stay() -> None:
    regions = [region for box in BOXES for region in to_regions(box, FRAME.width, FRAME.height)]
    regions[-1]["value"]["rectanglelabels"] = [{"a": 1}]
    bad = annotation(2, 2) | {"result": [*regions, 7, None]}
    ((answer,), _) = parse_answers([bad], 5, FRAME, SCHEMA, PEOPLE)
    assert [drawn.region for drawn in answer.objects] == ["a"]
    assert [region.reason for region in answer.invalid] == ["mislabelled"] * 3


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"/data/local-files/?d=frames/aa/{FRAME.id}.jpg", True),
        (f"/data/local-files/?d=frames/aa/{FRAME.id}.view.png", True),
        (f"s3://bucket/folder/aa/{FRAME.id}.jpg", True),
        (f"/data/local-files/?d=frames/bb/{'b' * 64}.jpg", False),
        (f"https://elsewhere.example/aa/{FRAME.id}.jpg", False),
        (f"/data/local-files/?d=../secrets/aa/{FRAME.id}.jpg", False),
        (f"/data/local-files/?d=frames/bb/{'b' * 64}.jpg#/aa/{FRAME.id}", False),
        (f"/data/local-files/?d=frames/bb/{'b' * 64}.jpg&x=/aa/{FRAME.id}.jpg", False),
        (f"s3://bucket/bb/{'b' * 64}.jpg?x=/aa/{FRAME.id}.jpg", False),
        (None, False),
        ({"a": 1}, False),
    ],
)
def test_a_task_that_shows_another_image_is_noticed(address: Any, shown: bool) -> None:
    assert shows_frame(address, FRAME.id) == shown
