"""Compatibility of schema versions, and migration."""

from __future__ import annotations

import pytest

from tests.labeling.conftest import SCHEMA, Sample
from workbench.core.errors import ParameterError
from workbench.labeling.label_config import incompatible_changes, same_questions
from workbench.labeling.versions import migrate
from workbench.records import dataset
from workbench.records.frames import ANY_CLASS, LabelSchema, Question

NEXT = SCHEMA.model_copy(update={"version": 2})
WEATHER = Question(name="weather", answers=("clear", "rain"))


def changed(**fields: object) -> LabelSchema:
    return NEXT.model_copy(update=fields)


def test_added_classes_shapes_and_questions_are_compatible() -> None:
    more = changed(
        classes=("car", "pedestrian", "tram"),
        shapes=("box", "polygon"),
        frame_questions=(WEATHER,),
        tracks=True,
    )
    assert incompatible_changes(SCHEMA, more) == []
    assert not same_questions(SCHEMA, more)
    assert same_questions(SCHEMA, changed(vulnerable=("pedestrian",), mapping={"van": "car"}))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SCHEMA, changed(classes=("car",)), "class 'pedestrian' is removed"),
        (changed(shapes=("box", "turned")), NEXT, "turned shapes are removed"),
        (changed(frame_questions=(WEATHER,)), NEXT, "'weather' is removed"),
        (changed(tracks=True), NEXT, "tracks are removed"),
        (
            changed(box_questions=(WEATHER,)),
            changed(box_questions=(WEATHER.model_copy(update={"answers": ("clear",)}),)),
            "lost rain",
        ),
    ],
)
def test_removals_are_named(old: LabelSchema, new: LabelSchema, message: str) -> None:
    (why,) = incompatible_changes(old, new)
    assert message in why


@pytest.mark.parametrize(("target", "left"), [("vehicle", 6), ("ignore", 6), ("drop", 0)])
def test_labels_follow_the_mapping(sample: Sample, target: str, left: int) -> None:
    new = changed(classes=("vehicle", "pedestrian"), mapping={"car": target})
    ref, moved = migrate(sample.store, sample.ref, new)
    migrated = dataset.load_dataset(sample.store, ref)
    assert moved == {f"car -> {target}": 6}
    assert len(migrated.labels) == left and migrated.label_schema == new
    expected = {"vehicle": {"vehicle"}, "ignore": {ANY_CLASS}, "drop": set()}[target]
    assert {label.cls for label in migrated.labels} == expected
    assert all(label.ignore == (target == "ignore") for label in migrated.labels)
    body = sample.store.load(ref).model_dump()
    assert body["parents"] == (sample.ref,) and body["made_by"] == "migrate"


def test_unmapped_labels_are_counted_in_the_error(sample: Sample) -> None:
    with pytest.raises(ParameterError, match=r"no target class for car \(6 labels\)"):
        migrate(sample.store, sample.ref, changed(classes=("pedestrian",)))


def test_a_migration_needs_a_newer_version(sample: Sample) -> None:
    with pytest.raises(ParameterError, match="is not newer than"):
        migrate(sample.store, sample.ref, SCHEMA)
