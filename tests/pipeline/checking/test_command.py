"""``workbench check`` as people and machines call it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.checking.books import PARAMETERS, STEP, book, good
from tests.tiny_run import workbench
from workbench.core.workspace import Workspace


def check(workspace: Workspace, *arguments: object) -> subprocess.CompletedProcess[str]:
    return workbench(workspace, "check", *map(str, arguments), timeout=120)


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    path = book(tmp_path / "a.ipynb", PARAMETERS, STEP, "x = input()\ny = never_defined")
    content = json.loads(path.read_text())
    content["cells"][2]["execution_count"] = 3
    path.write_text(json.dumps(content))
    return path


def test_people_read_cell_line_reason_and_mend(workspace: Workspace, faulty: Path) -> None:
    done = check(workspace, faulty)
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


def test_machines_get_one_object_and_fix_says_what_it_did(
    workspace: Workspace, faulty: Path
) -> None:
    done = check(workspace, faulty, "--fix", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["passed"], told["ran"]) == (1, False, False)
    assert told["fixed"] == ["cell 3: outputs and execution count cleared"]
    assert {one["rule"] for one in told["findings"]} == {
        "asks-a-person",
        "undefined-name",
        "missing-output",
        "parameter-unused",
    }
    assert told["parameters"]["properties"]["n"]["type"] == "integer"


def test_reading_alone_is_enough_for_an_editor(workspace: Workspace, tmp_path: Path) -> None:
    done = check(workspace, good(tmp_path / "a.ipynb"), "--static")
    assert done.returncode == 0
    assert "static checks passed" in done.stdout
    assert not workspace.root.exists()


def test_a_file_that_is_no_notebook_is_said_to_be_none(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "x.ipynb").write_bytes(b"\x00\xff rubbish")
    done = check(workspace, tmp_path / "x.ipynb", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"] == "not a notebook"
    assert "next:" in done.stderr
