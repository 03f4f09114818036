"""`workbench new`: notebooks to start from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.cli import main
from workbench.core.workspace import Workspace
from workbench.pipeline.checking.static_checks import run_static_checks


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Path:
    for name in ("explore", "steps"):
        (tmp_path / "notebooks" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        main(["new", *arguments])
    said = capsys.readouterr()
    return int(done.value.code or 0), said.out + said.err


def test_a_new_step_passes_the_static_checks(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = new(capsys, "step", "pick_odd", "--json")
    assert code == 0
    notebook = project / json.loads(text)["notebook"]
    assert notebook == project / "notebooks/steps/pick_odd.ipynb"
    findings = run_static_checks(notebook)
    assert [one.rule for one in findings] == ["no-owner"]


def test_a_new_notebook_opens_the_browser_on_what_was_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = new(
        capsys, "notebook", "night_misses", "--dataset", "bdd@2", "--model", "checkpoint/ab1d"
    )
    assert code == 0 and "make lab" in text
    body = json.loads((project / "notebooks/explore/night_misses.ipynb").read_text())
    source = "".join("".join(cell["source"]) for cell in body["cells"])
    assert 'ws.dataset("bdd@2")' in source and 'ws.browse(ds, "checkpoint/ab1d"' in source
    assert "# Night misses" in source
    for cell in body["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")


def test_nothing_is_overwritten_and_odd_names_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(capsys, "step", "one")[0] == 0
    code, text = new(capsys, "step", "one")
    assert code != 0 and "exists already" in text
    code, text = new(capsys, "step", "../../etc/x")
    assert code != 0 and not list(project.glob("**/x.ipynb"))
