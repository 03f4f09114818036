"""`workbench slices list | check`, and what they say of a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.cli import main

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--json"])
    return int(done.value.code or 0), json.loads(capsys.readouterr().out)


def test_the_projects_slices_and_gates_fit(capsys: pytest.CaptureFixture[str]) -> None:
    file, gates = str(PIPELINES / "slices.yaml"), str(PIPELINES / "gates.yaml")
    status, found = run(capsys, "slices", "check", file, "--gates", gates)
    assert status == 0
    assert found["slices"][:2] == ["all", "light=day"]
    assert found["gates"] > 5
    status, listed = run(capsys, "slices", "list", file)
    assert [row["slice"] for row in listed["slices"]] == found["slices"]


def test_a_mistake_names_file_and_slice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "slices.yaml"
    path.write_text("schema_version: 1\nslices: {wet: {where: {environment.wether: rain}}}\n")
    status, answer = run(capsys, "slices", "check", str(path))
    assert status != 0
    assert "environment.wether" in answer["error"]["message"]
    assert "slice wet" in answer["error"]["where"]
    assert "environment.weather" in answer["error"]["hint"]


def test_slices_are_counted_in_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.data.sources import coco_box, coco_image, write_coco, write_picture

    folder = tmp_path / "drives"
    write_picture(folder / "a_0001.jpg", 1)
    write_coco(folder, [coco_image(1, "a_0001.jpg")], [coco_box(1, 1, [4, 5, 20, 10], 2)])
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / ".workbench"))
    status, _ = run(capsys, "ingest", str(folder), "--name", "drives")
    assert status == 0
    file = str(PIPELINES / "slices.yaml")
    status, listed = run(capsys, "slices", "list", file, "--dataset", "drives")
    counts = {row["slice"]: (row["frames"], row["labels"]) for row in listed["slices"]}
    assert counts["all"] == (1, 1)
    assert counts["size=small"] == (1, 1)
    assert counts["size=large"] == (1, 0)
    assert counts["light=night"] == (0, 0)
