"""Hostile strings through every name that a person or a source can give.

A name is either taken and means itself, or refused in one readable line before anything is written.
It never leaves its folder, adds a line to a file, or ends in a traceback.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.core.test_names import HOSTILE
from tests.pipeline.conftest import CONTRACT, write_notebook
from workbench import cli
from workbench.core.errors import DataError, ParameterError, WorkbenchError
from workbench.core.workspace import Workspace, find_workspace
from workbench.curation.fiftyone import tags
from workbench.data.ingest import ingest
from workbench.data.schema import load_schema
from workbench.labeling import projects
from workbench.pipeline import graph, promote, promoted_steps, runs
from workbench.pipeline.contract import read_contract
from workbench.pipeline.step import Step
from workbench.records.references import resolve_dataset, resolve_reference
from workbench.records.store import Store
from workbench.release.publishing import publish_release

NONE = "0" * 64


def pipeline_with(folder: Path, **changes: object) -> None:
    """Load a pipeline of one step, with some names changed."""
    write_notebook(folder / "notebooks/steps/a.ipynb", "pass")
    names = {"pipeline": "trial", "step": "a", "parameter": "n", "notebook": "a", **changes}
    content = {
        "name": names["pipeline"],
        "parameters": {names["parameter"]: {"type": "int", "default": 1}},
        "steps": {names["step"]: {"notebook": names["notebook"]}},
    }
    path = folder / "pipelines/p.yaml"
    path.parent.mkdir(exist_ok=True)
    # JSON is YAML, and holds every string that YAML can.
    path.write_text(json.dumps(content))
    graph.load_pipeline(path, {}, base=folder)


def contract_with(folder: Path, **changes: object) -> None:
    read_contract(
        write_notebook(folder / "notebooks/steps/a.ipynb", "pass", contract={**CONTRACT, **changes})
    )


def source_with(folder: Path, drive: str) -> Path:
    """An image whose drive ``drives.json`` names."""
    source = folder / "source"
    source.mkdir()
    Image.new("RGB", (64, 48), (90, 120, 30)).save(source / "0001.png")
    notes = {"drives": [{"id": drive}], "frames": {"0001.png": {"drive": drive}}}
    (source / "drives.json").write_text(json.dumps(notes))
    return source


def schema_with(folder: Path, **changes: object) -> None:
    path = folder / "schema.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "version": 1, "classes": ["car"], **changes}))
    load_schema(path)


def a_step(folder: Path, workspace: Workspace) -> Step:
    folder = folder / "run"
    folder.mkdir()
    return Step(
        workspace=workspace,
        project=folder,
        folder=folder,
        cache=folder,
        threads=1,
        headless=True,
        declared_inputs={},
        declared_outputs={},
        inputs={},
        secrets=(),
    )


Door = Callable[[Path, Workspace, str], object]

REFUSING: dict[str, Door] = {
    "pipeline": lambda folder, _, name: pipeline_with(folder, pipeline=name),
    "step": lambda folder, _, name: pipeline_with(folder, step=name),
    "pipeline parameter": lambda folder, _, name: pipeline_with(folder, parameter=name),
    "output": lambda folder, _, name: contract_with(folder, outputs={name: {"kind": "selection"}}),
    "input": lambda folder, _, name: contract_with(folder, inputs={name: {"kind": "selection"}}),
    "secret": lambda folder, _, name: contract_with(folder, secrets=[name]),
    "dataset": lambda folder, workspace, name: ingest(
        workspace, source_with(folder, "d"), name=name
    ),
    "model": lambda _, workspace, name: publish_release(
        Store(workspace), f"bundle/{NONE}", f"gates/{NONE}", name
    ),
    "tag": lambda _, workspace, name: tags.tag_frames("d", (), name, by="ann", workspace=workspace),
    "author of a tag": lambda _, workspace, name: tags.tag_frames(
        "d", (), "tag", by=name, workspace=workspace
    ),
    "tag of a selection": lambda _, workspace, name: tags.selection_from_tag(
        Store(workspace), "d", name, "ann"
    ),
    "figure": lambda folder, workspace, name: a_step(folder, workspace).figure(
        name, Image.new("L", (1, 1))
    ),
    "project title": lambda _, workspace, name: projects.project_title(
        workspace, f"batch/{NONE}", name
    ),
    "schema": lambda folder, _, name: schema_with(folder, name=name),
    "class": lambda folder, _, name: schema_with(folder, classes=["car", name]),
    "promoted step": lambda folder, _, name: promoted_steps.load_step(folder, name, 1),
    "reference to a promoted step": lambda folder, _, name: promoted_steps.resolve_step(
        folder, name
    ),
    "alias": lambda _, __, name: promoted_steps.check_alias(name),
    "reference": lambda _, workspace, name: resolve_reference(workspace, name),
    "dataset reference": lambda _, workspace, name: resolve_dataset(workspace, name),
    "model reference": lambda _, workspace, name: resolve_reference(
        workspace, f"models:/{name}@champion"
    ),
    "record": lambda _, workspace, name: Store(workspace).payload(f"dataset/{NONE}{name}\n", "x"),
    "run": lambda _, workspace, name: runs.find_run(workspace, name),
}
"""Where a name of `HOSTILE` is refused, by what it names."""


@pytest.mark.parametrize("door", sorted(REFUSING))
def test_a_hostile_name_is_refused_before_anything_is_written(
    door: str, tmp_path: Path, workspace: Workspace
) -> None:
    for number, name in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(WorkbenchError):
            REFUSING[door](folder, workspace, name)
    outside = {path.name for path in tmp_path.iterdir()} - set(map(str, range(len(HOSTILE))))
    assert outside <= {".workbench"}
    written = [path for path in workspace.root.rglob("*") if path.is_file()]
    assert [path for path in written if "frames" not in path.parts] == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_drive_with_a_hostile_name_is_quarantined_by_name(
    name: str, tmp_path: Path, workspace: Workspace
) -> None:
    source = source_with(tmp_path, name)
    Image.new("RGB", (64, 48), (9, 9, 200)).save(source / "good_0002.png")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        with pytest.raises(DataError, match=r"invalid drives\.json"):
            ingest(workspace, source, name="d")
        return
    result = ingest(workspace, source, name="d")
    drives = {frame.drive for frame in result.dataset.frames}
    result.save(Store(workspace))
    assert "good" in drives
    if len(drives) > 1:  # taken: a name below another folder, or in NFC
        assert drives - {"good"} <= {"a/b", " a", "a ", "é", "C:\\x", "a\\b", "ü" * 60}
    else:
        assert [entry.file for entry in result.quarantine] == ["0001.png"]
        assert result.quarantine[0].detail.isprintable()


def test_file_names_that_are_not_utf_8_are_quarantined_by_name(
    tmp_path: Path, workspace: Workspace
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (64, 48), (9, 9, 200)).save(source / "good_0002.png")
    image = (source / "good_0002.png").read_bytes()
    for name in (b"caf\xe9_0001.png", b"drive\xff/0001.png", b"line\nbreak_0001.png"):
        path = source / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image + name)
    with pytest.raises(SystemExit) as ended:
        cli.main(["ingest", str(source), "--name", "d"])
    assert not ended.value.code
    (ref,) = Store(workspace).refs("dataset")
    lines = Store(workspace).payload(ref, "quarantine.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["file"] for line in lines) == [
        "caf\\udce9_0001.png",
        "drive\\udcff/0001.png",
        "line\nbreak_0001.png",
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_command_line_refuses_a_hostile_name_in_one_line(
    name: str, tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_with(tmp_path, "d")
    with pytest.raises(SystemExit) as ended:
        cli.main(["ingest", str(source), "--name", name])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: invalid dataset name")
    assert not workspace.records.exists()


@pytest.mark.parametrize("reviewer", ["\u0430nn", "Ann\u200b", "\uff21nn", "ANN ", "ann"])
def test_the_owner_does_not_review_under_a_name_that_looks_the_same(
    reviewer: str, tmp_path: Path
) -> None:
    notebook = write_notebook(
        tmp_path / "notebooks/steps/a.ipynb", "pass", contract={**CONTRACT, "owner": "Ann"}
    )
    with pytest.raises(ParameterError, match=r"same person|mixes|invisible"):
        promote._owner_and_reviewer(read_contract(notebook), None, reviewer)


@pytest.mark.parametrize("character", [*"?#%{}\"'`\\", "\n", "\x1b", "\u202e", "\udcff"])
def test_a_workspace_at_a_path_that_servers_misread_is_refused_at_once(
    character: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"a{character}b"
    with pytest.raises(ParameterError, match="path has the character"):
        Workspace(folder / ".workbench")
    monkeypatch.setenv("WORKBENCH_HOME", str(folder))
    with pytest.raises(ParameterError, match="path has the character"):
        find_workspace()
    assert not folder.exists()


def test_a_fan_out_over_long_values_has_names_that_fit_a_file(tmp_path: Path) -> None:
    write_notebook(tmp_path / "notebooks/steps/a.ipynb", "pass", parameters="x: str = ''")
    path = tmp_path / "pipelines/p.yaml"
    path.parent.mkdir()
    values = ["ü" * 40 + "x" * 5000, "ü" * 40 + "y" * 5000, "../../x", "a\nb"]
    each = {"x": "${each.x}"}
    step = {"for_each": {"x": values, "y": values}, "parameters": each}
    path.write_text(json.dumps({"name": "p", "steps": {"a": step}}))
    names = list(graph.load_pipeline(path, {}, base=tmp_path).steps)
    assert len(set(names)) == 16
    for name in names:
        assert len(name.encode()) < 200
        assert "/" not in name
        assert name.isprintable()
