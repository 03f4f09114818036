"""`workbench schema new | show | check`, and schema and map as parameters of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.sources import coco_box, coco_image, coco_source, write_coco, write_picture
from workbench import data
from workbench.cli import main
from workbench.cli.data import FORMATS
from workbench.core.workspace import Workspace
from workbench.data.readers import READERS


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--json"])
    return int(done.value.code or 0), json.loads(capsys.readouterr().out)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A picture with a Person and a hovercraft."""
    folder = tmp_path / "source"
    write_picture(folder / "a_0001.jpg", 1)
    boxes = [coco_box(1, 1, [4, 5, 20, 10], 2), coco_box(2, 1, [30, 5, 20, 10], 3)]
    return write_coco(folder, [coco_image(1, "a_0001.jpg")], boxes)


def test_formats_are_those_of_the_readers() -> None:
    assert sorted(FORMATS) == sorted(["auto", *READERS])


def test_a_new_schema_has_the_classes_of_the_source(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    code, value = run(capsys, "schema", "new", str(file), "--from", str(source))
    assert code == 0
    assert sorted(value["classes"]) == ["Person", "hovercraft"]
    schema = data.load_schema(file)
    assert (schema.name, sorted(schema.classes)) == ("mine", ["Person", "hovercraft"])
    assert run(capsys, "schema", "new", str(file))[1]["error"]["message"] == "the file exists"
    code, value = run(capsys, "schema", "show", str(file))
    assert value["classes"] == list(schema.classes)


def test_names_that_yaml_would_read_otherwise_are_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    run(capsys, "schema", "new", str(file), "--name", "no")
    assert yaml.safe_load(file.read_text())["name"] == "no"


def test_a_schema_is_checked_against_a_source(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: s\nversion: 1\nclasses: [pedestrian]\nmapping: {person: pedestrian}\n")
    code, value = run(capsys, "schema", "check", str(file), "--from", str(source))
    assert code == 1
    assert value["source"] == {
        "Person": {"labels": 1, "class": "pedestrian"},
        "hovercraft": {"labels": 1, "class": None},
    }
    with pytest.raises(SystemExit):
        main(["schema", "check", str(file), "--from", str(source)])
    assert "1 label would be quarantined" in capsys.readouterr().out
    file.write_text(file.read_text().replace("person:", "hovercraft: drop, person:"))
    assert run(capsys, "schema", "check", str(file), "--from", str(source))[0] == 0


def test_ingest_takes_a_file_of_mappings(
    workspace: Workspace,
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(workspace.root))
    file = tmp_path / "map.yaml"
    file.write_text("hovercraft: truck\n")
    main_arguments = ["ingest", str(source), "--name", "d", "--workers", "1", "--map", str(file)]
    code, value = run(capsys, *main_arguments)
    assert (code, value["classes"], value["quarantined"]) == (
        0,
        {"pedestrian": 1, "truck": 1},
        {},
    )


def test_the_front_camera_schema_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["schema", "show"])
    text = capsys.readouterr().out
    assert "vulnerable; also: child, people, person" in text
    assert "not scored: bicycle" in text


def test_datasets_show_their_schema(
    workspace: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(workspace.root))
    run(capsys, "ingest", str(coco_source(tmp_path / "s")), "--name", "d", "--workers", "1")
    assert run(capsys, "schema", "show", "d@1")[1]["name"] == "front-camera"
