"""Static checks: what each rule reports, where, and what it accepts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.checking.sample_notebooks import CONTRACT, OUT, PARAMETERS, STEP, book, good
from tests.tiny_run import ROOT
from workbench.core.errors import ContractError
from workbench.pipeline.checking import static_checks
from workbench.pipeline.checking.findings import RULES

STEPS = sorted((ROOT / "notebooks" / "steps").glob("*.ipynb"))


def findings_of(path: Path) -> set[tuple[str, int | None]]:
    return {(finding.rule, finding.cell) for finding in static_checks.run_static_checks(path)}


def work(tmp_path: Path, *cells: str) -> list[tuple[str, int | None, str]]:
    """Rule, cell and message of each finding in a step with these cells."""
    findings = static_checks.run_static_checks(good(tmp_path / "a.ipynb", *cells))
    return [(one.rule, one.cell, one.message) for one in findings]


@pytest.mark.parametrize("notebook", STEPS, ids=[path.stem for path in STEPS])
def test_our_own_steps_pass(notebook: Path) -> None:
    assert [one for one in static_checks.run_static_checks(notebook) if one.is_error] == []


def test_a_good_notebook_has_no_findings(tmp_path: Path) -> None:
    assert work(tmp_path, "m = n + 1\nprint(m)") == []


def test_a_file_that_is_not_a_notebook_is_rejected(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"cells": 3}', '{"cells": [1]}', "\x00"):
        (tmp_path / "x.ipynb").write_text(text)
        with pytest.raises(ContractError, match="not a notebook"):
            static_checks.run_static_checks(tmp_path / "x.ipynb")
    with pytest.raises(ContractError, match="no such notebook"):
        static_checks.run_static_checks(tmp_path / "none.ipynb")


@pytest.mark.parametrize(
    ("cell", "rule", "words"),
    [
        ("x = input('which? ')", "asks-a-person", "input"),
        ("import getpass\nx = getpass.getpass()", "asks-a-person", "getpass"),
        ("!pip install numpy", "installs-packages", "pip install"),
        ("%pip install numpy", "installs-packages", "numpy"),
        ("%%bash\nconda install x", "installs-packages", "conda"),
        (
            "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'pip', 'install', 'x'])",
            "installs-packages",
            "pip install",
        ),
        ("import os\nos.system('ls')", "shell-command", "os.system"),
        ("files = !ls", "shell-command", "ls"),
        ("%autoreload 2", "magic", "autoreload"),
        ("data = open('/home/ana/drives/one.csv')", "absolute-path", "/home/ana"),
        ("data = r'C:\\drives\\one'", "absolute-path", "drives"),
        ("data = '~/drives/one'", "absolute-path", "~/drives"),
        ("token = 'ghp_" + "a1B2" * 9 + "'", "secret", "GitHub"),
        ("import mlflow", "sdk-import", "workbench.tracking"),
        ("from fiftyone import ViewField", "sdk-import", "workbench.curation"),
        ("def f():\n" + "    x = 1\n" * 25, "long-definition", "26 lines"),
        ("x = (1", "not-python", "never closed"),
        ("n = 4", "parameter-reassigned", "`n`"),
        ("for n in (1, 2): pass", "parameter-reassigned", "`n`"),
        ("y = undefined_thing", "undefined-name", "not defined"),
        ("a = step.input('dataset')", "undeclared-input", "'dataset'"),
        ("step.output('model', 'x')", "undeclared-output", "'model'"),
        ("s = step.secret('TOKEN')", "undeclared-secret", "'TOKEN'"),
        ("from os.path import *", "star-import", "os.path"),
        (
            "from workbench.core.workspace import find_workspace\np = find_workspace()",
            "own-workspace",
            "find",
        ),
        ("from workbench import services as s\ns.up(step.workspace)", "starts-servers", "up"),
    ],
)
def test_each_violation_is_reported_with_its_cell(
    tmp_path: Path, cell: str, rule: str, words: str
) -> None:
    findings = work(tmp_path, cell)
    assert [(name, at) for name, at, _ in findings] == [(rule, 3)], findings
    assert words in findings[0][2]
    assert RULES[rule].why
    assert RULES[rule].remedy


@pytest.mark.parametrize(
    "cell",
    [
        "import getpass\nwho = getpass.getuser()",
        "%matplotlib inline",
        "%%time\nm = n + 1",
        "open('/dev/null').close()",
        "print('/ or /api/v1, as you like')",
        "ratio = 'a/b'",
        "import subprocess\nsubprocess.run(['true'], check=True)",
        "text = f'{n} of {n!r}'",
        "await_me = None\nasync def f():\n    return await_me\nawait f()",
    ],
)
def test_valid_cells_have_no_findings(tmp_path: Path, cell: str) -> None:
    assert work(tmp_path, cell) == []


def test_a_finding_names_its_line(tmp_path: Path) -> None:
    path = good(tmp_path / "a.ipynb", "x = 1\n\ny = input()")
    (finding,) = static_checks.run_static_checks(path)
    assert (finding.cell, finding.cell_id, finding.line) == (3, "c3", 3)


def test_parameters_must_be_one_cell_of_literals_that_are_used(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    assert ("parameters-cell", None) in findings_of(book(path, "n: int = 1", STEP, OUT))
    twice = book(path, PARAMETERS, ("m: int = 2", ["parameters"]), STEP, OUT)
    assert ("parameters-cell", None) in findings_of(twice)
    broken = book(path, ("n: int = 1\nm = 3", ["parameters"]), STEP, OUT)
    (finding,) = [
        one for one in static_checks.run_static_checks(broken) if one.rule == "parameters-cell"
    ]
    assert (finding.cell, finding.line) == (1, 2)
    wrong = book(path, ("n: int = 'x'", ["parameters"]), STEP, OUT)
    assert ("parameters-cell", 1) in findings_of(wrong)
    unread = book(path, ("n: int = 1\nm: int = 2", ["parameters"]), STEP, OUT)
    assert findings_of(unread) == {("parameter-unused", 1)}


def test_contracts_and_fixtures_are_checked(tmp_path: Path) -> None:
    def rules(**changes: Any) -> set[str]:
        path = good(tmp_path / "a.ipynb", contract={**CONTRACT, **changes})
        return {one.rule for one in static_checks.run_static_checks(path)}

    assert rules() == set()
    assert rules(owner=None) == {"no-owner"}
    assert rules(outputs={}) == {"undeclared-output", "no-outputs"}
    assert rules(inputs={"dataset": {"kind": "dataset"}}) == {"unused-input", "fixture"}
    assert rules(secrets=["TOKEN"]) == {"unused-secret"}
    assert rules(fixture={"parameters": {"n": "x"}, "other": {"n": 2}}) == {"fixture"}
    assert rules(fixture={}) == {"no-other-fixture"}
    assert rules(nonsense=3) == {"contract"}


def test_the_notebook_file_is_checked(tmp_path: Path) -> None:
    path = good(tmp_path / "a.ipynb")
    content = json.loads(path.read_text())
    content["nbformat_minor"] = 4
    content["metadata"]["kernelspec"] = {"name": "venv-ana", "display_name": "Python (venv-ana)"}
    content["cells"][1]["id"] = "c1"
    del content["cells"][2]["id"]
    content["cells"][0]["execution_count"] = 5
    content["cells"][1]["execution_count"] = 2
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    path.write_text(json.dumps(content))
    assert findings_of(path) == {
        ("notebook-form", None),
        ("kernelspec", None),
        ("cell-id", 2),
        ("cell-id", 3),
        ("outputs-committed", 1),
        ("outputs-committed", 2),
        ("ran-out-of-order", None),
    }


def test_malformed_notebooks_raise_contract_errors_only(tmp_path: Path) -> None:
    """Each part of a real notebook is replaced by invalid values in turn."""
    sound = json.loads(STEPS[0].read_text())
    path = tmp_path / "a.ipynb"
    junk: list[Any] = [None, [], {}, "x", 7, [None], "%%bash\nls", "(((", "\x00", "\ud800"]
    for part in ("cells", "metadata", "nbformat", "nbformat_minor"):
        for value in junk:
            path.write_text(json.dumps({**sound, part: value}))
            with contextlib.suppress(ContractError):
                static_checks.run_static_checks(path)
    for part in ("id", "cell_type", "source", "metadata", "outputs", "execution_count"):
        for value in junk:
            cells = [{**sound["cells"][1], part: value}, *sound["cells"][2:]]
            path.write_text(json.dumps({**sound, "cells": cells}))
            with contextlib.suppress(ContractError):
                static_checks.run_static_checks(path)
