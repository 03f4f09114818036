from __future__ import annotations

from pathlib import Path

import pytest

from workbench import data
from workbench.core.errors import DataError, ParameterError, VerificationError
from workbench.data.schema import DROP, IGNORE
from workbench.simulation.scenario import CLASSES


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("Car", "car"),
        (" Traffic Sign ", "traffic_sign"),
        ("bicyclist", "cyclist"),
        ("person", "pedestrian"),
        ("Van", "car"),
        ("DontCare", "ignore"),
        ("Misc", "drop"),
        ("vehicle", None),
    ],
)
def test_source_names(name: str, cls: str | None) -> None:
    assert data.FRONT_CAMERA.class_of(name) == cls


def test_mapping_targets_are_classes_and_cover_the_renderer() -> None:
    schema = data.FRONT_CAMERA
    assert set(schema.mapping.values()) <= {*schema.classes, IGNORE, DROP}
    assert not set(schema.mapping) & set(schema.classes)
    assert schema.classes == CLASSES
    assert set(schema.vulnerable) <= set(schema.classes)


def test_names_can_be_mapped_to_classes_only() -> None:
    schema = data.with_mapping(data.FRONT_CAMERA, {"Big Vehicle": "truck"})
    assert schema.class_of("big vehicle") == "truck"
    assert data.FRONT_CAMERA.class_of("big vehicle") is None
    with pytest.raises(ParameterError, match="no such class"):
        data.with_mapping(data.FRONT_CAMERA, {"x": "spaceship"})


def test_schemas_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text("name: s\nversion: 2\nclasses: [a, b]\nmapping: {Aa: a}\nvulnerable: [b]\n")
    schema = data.load_schema(path)
    assert (schema.classes, schema.class_of("aa"), schema.vulnerable) == (("a", "b"), "a", ("b",))
    for text in (
        "name: s",
        "[",
        "name: s\nversion: 1\nclasses: [a, a]",
        "name: s\nversion: 1\nclasses: [a]\nvulnerable: [z]",
        "!!python/object/apply:os.system ['true']",
    ):
        path.write_text(text)
        with pytest.raises((DataError, VerificationError)):
            data.load_schema(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: s", "field 'version' is missing"),
        ("name: s\nversion: 1\nclases: [a]", "unknown field 'clases'.*Did you mean 'classes'"),
        ("name: s\nversion: 1\nclasses: [a]\nvulnerable: [z]", "unknown classes in vulnerable: z"),
        ("name: s\nversion: 1\nclasses: [Big Car, big_car]", "differ only in case.*big_car"),
        ("name: s\nversion: 1\nclasses: [ignore]", "no class can be named ignore"),
        ("name: s\nversion: 1\nclasses: [a]\nmapping: {b: c}", "cannot map 'b' to 'c'"),
        ("name: s\nversion: one\nclasses: [a]", "field 'version'"),
        ("name: s\nversion: 1\nclasses: [a]\nshapes: [circle]", r"field 'shapes\.0'"),
        ("name: s\n  version: 1", "line 2"),
        (
            "name: s\nversion: 1\nclasses: [a]\nbox_questions: [{name: x, answer: [b]}]",
            r"'box_questions\.0\.answer",
        ),
    ],
)
def test_what_is_wrong_with_a_schema_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        data.load_schema(path)
    assert str(path) in str(caught.value)


def test_classes_in_upper_case_are_met_by_names_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text("name: s\nversion: 1\nclasses: [Heavy Truck, Van]\nmapping: {lorry: Van}\n")
    schema = data.load_schema(path)
    names = ["heavy_truck", "Heavy Truck", "VAN", "Lorry", "bus"]
    assert [schema.class_of(name) for name in names] == [
        *("Heavy Truck", "Heavy Truck", "Van", "Van"),
        None,
    ]


def test_mappings_from_text_and_from_files(tmp_path: Path) -> None:
    assert data.read_mapping("") == {}
    pairs = {"tuk tuk": "car", "a=b": "drop"}
    assert data.read_mapping("tuk tuk=car, a=b=drop") == pairs
    (tmp_path / "map.yaml").write_text("tuk tuk: car\n'a=b': drop\n")
    assert data.read_mapping("map.yaml", tmp_path) == pairs
    (tmp_path / "map.yaml").write_text("mapping:\n  tuk tuk: car\n  'a=b': drop\n")
    assert data.read_mapping("map.yaml", tmp_path) == pairs
    (tmp_path / "map.yaml").write_text("1: car\n")
    with pytest.raises(DataError, match="in quotes"):
        data.read_mapping("map.yaml", tmp_path)
    with pytest.raises(ParameterError, match="invalid class mapping"):
        data.read_mapping("tram=", tmp_path)
    with pytest.raises(ParameterError, match="neither SOURCE=CLASS nor a file"):
        data.read_mapping("tram", tmp_path)
