"""The README as it is read: its tour, typed literally, and every file that it names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.tiny_run import ROOT, TinyRun

README = (ROOT / "README.md").read_text()


def _block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found is not None, f"no {language} block"
    return found[1]


def _run(command: list[str], tiny_run: TinyRun) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WORKBENCH_HOME": str(tiny_run.workspace.root)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_python_tour_runs_as_written(tiny_run: TinyRun) -> None:
    tour = _block("python")
    shown = "\nprint(ds, night, model, out, ev, sel, cmp, len(cmp.flipped()), sep='\\n')"
    done = _run([sys.executable, "-c", tour + shown], tiny_run)
    assert done.returncode == 0, done.stderr
    names = ("Dataset", "Dataset", "Model", "Predictions", "Evaluation", "Selection", "Comparison")
    for line, name in zip(done.stdout.splitlines(), names, strict=False):
        assert line.startswith(f"{name}("), line


@pytest.mark.parametrize("command", _block("console").splitlines())
def test_the_commands_of_the_tour_run_as_written(command: str, tiny_run: TinyRun) -> None:
    program, *arguments = shlex.split(command)
    assert program == "workbench"
    done = _run([sys.executable, "-m", "workbench", *arguments], tiny_run)
    allowed = (0, 1) if arguments[0] in ("doctor", "check") else (0,)  # these report findings
    assert done.returncode in allowed, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_every_linked_file_exists_and_the_readme_is_short() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    assert len(README.split()) <= 900


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in set(re.findall(r"`([\w/]+\.py)`", text)):
        assert (ROOT / "workbench" / name).exists(), name
