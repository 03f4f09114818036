"""``--fix`` reports each fix, changes nothing the second time, and leaves valid notebooks alone."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.checking.sample_notebooks import OUT, PARAMETERS, STEP, book, good
from workbench.pipeline.checking import fixes, static_checks


def test_a_valid_notebook_is_unchanged(tmp_path: Path) -> None:
    path = good(tmp_path / "a.ipynb")
    before = path.read_bytes()
    assert fixes.fix_notebook(path) == []
    assert path.read_bytes() == before


def test_everything_mechanical_is_fixed_once(tmp_path: Path) -> None:
    project = tmp_path / "project"
    inside = str(project / "data" / "é.csv")
    path = project / "notebooks" / "steps" / "a.ipynb"
    book(path, "n: int = 1", STEP, f"x = 'é'; y = open('{inside}')", OUT)
    content = json.loads(path.read_text())
    content["nbformat_minor"] = 2
    content["metadata"] = {"kernelspec": {"name": "mine"}, "papermill": {}, "language_info": {}}
    content["cells"][0]["execution_count"] = 9
    content["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    content["cells"][0]["metadata"] = {"execution": {}}
    content["cells"][2]["id"] = content["cells"][1]["id"]
    path.write_text(json.dumps(content))
    path.chmod(0o640)
    done = fixes.fix_notebook(path)
    assert len(done) == 8, done
    assert any("made relative" in line for line in done)
    assert [one.rule for one in static_checks.run_static_checks(path) if one.is_error] == []
    fixed = json.loads(path.read_text())
    assert "".join(fixed["cells"][2]["source"]) == "x = 'é'; y = open(step.path('data/é.csv'))"
    assert fixed["metadata"]["workbench"]["outputs"] == {"selection": {"kind": "selection"}}
    assert path.stat().st_mode & 0o777 == 0o640
    before = path.read_bytes()
    assert fixes.fix_notebook(path) == []
    assert path.read_bytes() == before


def test_plain_parameters_are_annotated(tmp_path: Path) -> None:
    cell = "n = 1\nrate = -0.5  # a share\nnames = ['a', 'b']\nempty = []"
    path = book(tmp_path / "a.ipynb", (cell, ["parameters"]), STEP, OUT)
    assert fixes.fix_notebook(path) == ["cell 1: 3 parameters annotated"]
    source = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert source.splitlines() == [
        "n: int = 1",
        "rate: float = -0.5  # a share",
        "names: list[str] = ['a', 'b']",
        "empty = []",
    ]


def test_ambiguous_cases_are_unchanged(tmp_path: Path) -> None:
    path = book(tmp_path / "a.ipynb", "n: int = 1", "m: int = 2", STEP, OUT)
    assert fixes.fix_notebook(path) == []
    outside = book(tmp_path / "b.ipynb", PARAMETERS, STEP, "open('/home/ana/x.csv')", OUT)
    assert fixes.fix_notebook(outside) == []
