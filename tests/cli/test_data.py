"""`workbench ingest` and `workbench datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources import coco_box, coco_image, write_coco, write_picture
from workbench import cli
from workbench.core.workspace import Workspace


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number in range(3):
        write_picture(folder / "images" / f"d_{number:04d}.jpg", number)
    rows = [coco_image(number, f"images/d_{number:04d}.jpg") for number in range(4)]
    boxes = [coco_box(n, n, [1, 2, 8, 9], category=3 if n == 2 else 1) for n in range(3)]
    return write_coco(folder, rows, boxes)


def _run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(arguments))
    assert (exit_info.value.code or 0) == status
    printed = capsys.readouterr()
    return printed.out, printed.err


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(_run(capsys, *arguments, "--json")[0])


def test_ingest_show_and_compare(
    workspace: Workspace, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, bar = _run(capsys, "ingest", str(source), "--name", "d")
    assert "d@1" in text and "2 inputs quarantined" in text
    assert "images/d_0002.jpg: annotation 2: class 'hovercraft'" in text
    assert "--map hovercraft=CLASS" in text
    assert "reading frames" in bar and "reading frames" not in text
    value = _json(capsys, "ingest", str(source), "--name", "d", "--map", "hovercraft=bus")
    assert (value["version"], value["hint"]) == ("d@2", "")
    assert value["quarantined"] == {"missing": 1}
    listed = _json(capsys, "datasets")["datasets"]
    assert [row["version"] for row in listed] == ["d@1", "d@2"]
    shown = _json(capsys, "datasets", "show", "d@1")
    assert {entry["reason"] for entry in shown["quarantine"]} == {"missing", "unknown-class"}
    found = _json(capsys, "datasets", "diff", "d@1", "d")
    assert found["by_class"] == {"bus": {"added": 1, "removed": 0, "changed": 0}}
    assert "labels  +1" in _run(capsys, "datasets", "diff", "d@1", "d")[0]
    assert "no difference" in _run(capsys, "datasets", "diff", "d", "d@2")[0]


def test_schema_and_words_of_the_source_are_options(
    workspace: Workspace, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.yaml"
    schema.write_text("{name: own, version: 1, classes: [vehicle], mapping: {car: vehicle}}")
    body = json.loads((source / "labels.coco.json").read_text())
    body["images"][0]["weather"] = "Sandstorm"
    (source / "labels.coco.json").write_text(json.dumps(body))
    options = ("ingest", str(source), "--name", "d", "--schema", str(schema))
    told = _json(capsys, *options)
    assert (told["classes"], told["quarantined"]["mislabelled"]) == ({"vehicle": 2}, 1)
    value = _json(capsys, *options, "--map", "hovercraft=drop", "--condition", "sandstorm=fog")
    assert value["weather"] == {"fog": 1, "unknown": 2}
    assert value["quarantined"] == {"missing": 1}
    _, message = _run(capsys, *options, "--condition", "sandstorm=storm", status=2)
    assert "cannot map the condition 'sandstorm' to 'storm'" in message


def test_roles_can_be_left_out(
    workspace: Workspace, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none" not in _json(capsys, "ingest", str(source), "--name", "d")["roles"]
    value = _json(capsys, "ingest", str(source), "--name", "d", "--no-roles")
    assert value["roles"] == {"none": 3}


def test_an_empty_workspace_prints_the_next_command(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "workbench ingest SOURCE" in _run(capsys, "datasets")[0]
    assert _json(capsys, "datasets") == {"datasets": [], "damaged": {}}


def test_errors_have_a_hint_and_write_nothing(
    workspace: Workspace, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, status, hint in (
        (["ingest", "/away", "--name", "d"], 2, "no such source"),
        (["ingest", str(source), "--name", "d", "--map", "van"], 2, "Write SOURCE=CLASS"),
        (["ingest", str(source), "--name", "d", "--map", "van=boat"], 2, "Use one of car"),
        (["datasets", "show", "d"], 1, "workbench ingest SOURCE --name NAME"),
    ):
        out, err = _run(capsys, *arguments, status=status)
        assert hint in err and not out
    assert not workspace.root.exists()
    out, _ = _run(capsys, "datasets", "show", "d", "--json", status=1)
    assert json.loads(out)["error"]["kind"] == "record"
