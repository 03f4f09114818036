"""Labeling configurations: from a schema and back."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from workbench.core.errors import DataError, ParameterError
from workbench.data.drawing import class_colours
from workbench.labeling import label_config
from workbench.records.frames import ANY_CLASS, LabelSchema, Question

SCHEMA = LabelSchema(name="dash & cam <x>", version=3, classes=("car", "traffic sign", 'a"b'))
EXPORTS = "labelstudio_samples/tests/custom/converter/data"


def test_a_schema_survives_the_round_trip() -> None:
    text = label_config.labeling_config(SCHEMA)
    assert label_config.parse_labeling_config(text) == SCHEMA
    assert re.findall(r'Choices name="(\w+)"', text) == ["occluded", "truncated", "ignore"]


FULL = LabelSchema(
    name="full",
    version=2,
    classes=("car", "truck"),
    shapes=("box", "turned", "polygon"),
    box_questions=(Question(name="doors", answers=("open", "shut"), asked="Doors?"),),
    frame_questions=(Question(name="weather", answers=("clear", "rain")),),
    tracks=True,
)


def test_every_schema_feature_is_parsed_back() -> None:
    assert label_config.parse_labeling_config(label_config.labeling_config(FULL)) == FULL


@pytest.mark.parametrize("name", ["occluded", "boxes", "weather"])
def test_duplicate_and_reserved_question_names_are_errors(name: str) -> None:
    twice = (*FULL.frame_questions, Question(name=name, answers=("a",)))
    with pytest.raises(ParameterError, match=name):
        label_config.labeling_config(FULL.model_copy(update={"frame_questions": twice}))


def test_colours_are_those_of_everything_else() -> None:
    view = ElementTree.fromstring(label_config.labeling_config(FULL))  # noqa: S314 - our own
    for labels in (view.find(".//RectangleLabels"), view.find(".//PolygonLabels")):
        assert labels is not None
        shown = {one.get("value"): one.get("background") for one in labels.iter("Label")}
        assert shown == {**class_colours(FULL.classes), "ignore_area": "#8e8e93"}


def test_questions_stand_beside_the_image_and_boxes_hide_little() -> None:
    page = ElementTree.fromstring(label_config.labeling_config(FULL))  # noqa: S314 - our own
    left, right = page.findall("View")
    assert left.find("Image") is not None and left.find(".//Choices") is None
    assert len(right.findall(".//Choices")) >= 3
    image, boxes = left.find("Image"), left.find("RectangleLabels")
    assert image is not None and image.get("crosshair") == "true"
    assert boxes is not None and float(boxes.get("opacity", 1)) <= 0.2


def test_equal_schemas_give_equal_text() -> None:
    assert label_config.labeling_config(SCHEMA) == label_config.labeling_config(SCHEMA.model_copy())


@pytest.mark.parametrize("text", ["<View>", "not xml", "<View><Image name='i'/></View>"])
def test_invalid_configurations_are_errors(text: str) -> None:
    with pytest.raises(DataError):
        label_config.parse_labeling_config(text)


def test_xml_entities_are_rejected_before_they_expand() -> None:
    with pytest.raises(DataError, match="entities"):
        label_config.parse_labeling_config('<!DOCTYPE x [<!ENTITY a "aaaa">]><View>&a;</View>')


def test_a_configuration_from_elsewhere_is_parsed(shared_data: Path) -> None:
    text = (shared_data / EXPORTS / "test_export_coco" / "label_config.xml").read_text()
    back = label_config.parse_labeling_config(text)
    assert back.classes == ("rectangle_label",)
    assert (back.name, back.version) == ("unknown", 0)


def test_ignore_areas_stand_for_every_class() -> None:
    assert label_config.label_to_class(label_config.class_to_label(ANY_CLASS)) == ANY_CLASS
    assert label_config.label_to_class(label_config.class_to_label("car")) == "car"


@pytest.mark.parametrize(
    ("fraction", "answer"), [(0.0, "no"), (0.01, "partly"), (0.5, "partly"), (0.51, "mostly")]
)
def test_fractions_fall_into_the_answers(fraction: float, answer: str) -> None:
    assert label_config.fraction_to_degree(fraction) == answer
    # What is read back falls into the same answer again.
    assert label_config.fraction_to_degree(label_config.DEGREES[answer]) == answer
