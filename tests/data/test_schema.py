from __future__ import annotations

from pathlib import Path

import pytest

from workbench import data
from workbench.core.errors import DataError, ParameterError
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
        with pytest.raises(DataError):
            data.load_schema(path)
