"""The `workbench check` command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.checking.sample_notebooks import PARAMETERS, STEP, book, good
from tests.tiny_run import workbench
from workbench.core.workspace import Workspace


def check(workspace: Workspace, *arguments: object) -> subprocess.CompletedProcess[str]:
    return workbench(workspace, "check", *map(str, arguments), timeout=120)


@pytest.fixture
def invalid(tmp_path: Path) -> Path:
    path = book(tmp_path / "a.ipynb", PARAMETERS, STEP, "x = input()\ny = never_defined")
    content = json.loads(path.read_text())
    content["cells"][2]["execution_count"] = 3
    path.write_text(json.dumps(content))
    return path


def test_the_text_names_cell_line_reason_and_remedy(workspace: Workspace, invalid: Path) -> None:
    done = check(workspace, invalid)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "cell 3 (c3)" in lines
    where = next(n for n, line in enumerate(lines) if "asks-a-person" in line)
    assert "error" in lines[where]
    assert "line 1" in lines[where]
    assert "unattended" in lines[where + 1]
    assert "Make it a parameter" in lines[where + 2]
    assert lines[-1].startswith("a.ipynb: 5 errors")
    assert "\x1b" not in done.stdout, "colours are for terminals"


def test_json_is_one_object_and_lists_the_fixes(workspace: Workspace, invalid: Path) -> None:
    done = check(workspace, invalid, "--fix", "--json")
    output = json.loads(done.stdout)
    assert (done.returncode, output["passed"], output["ran"]) == (1, False, False)
    assert output["fixed"] == ["cell 3: outputs and execution count cleared"]
    assert {one["rule"] for one in output["findings"]} == {
        "asks-a-person",
        "undefined-name",
        "missing-output",
        "parameter-unused",
    }
    assert output["parameters"]["properties"]["n"]["type"] == "integer"


def test_static_checks_create_no_workspace(workspace: Workspace, tmp_path: Path) -> None:
    done = check(workspace, good(tmp_path / "a.ipynb"), "--static")
    assert done.returncode == 0
    assert "static checks passed" in done.stdout
    assert not workspace.root.exists()


def test_a_file_that_is_not_a_notebook_is_an_error(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_bytes(b"\x00\xff rubbish")
    done = check(workspace, tmp_path / "x.ipynb", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"].startswith("not a notebook: ")
    assert "next:" in done.stderr
