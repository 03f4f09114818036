"""What the pipeline costs around a notebook: ``python -m benchmarks.pipeline [--quick] [--json]``.

A step is one trivial notebook, run by ``workbench run-step`` and by the ``papermill`` command, each
as a process with all its imports. The rerun with nothing changed is that of the data engine in this
workspace, and is left out, saying so, where `make run` has not finished there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Row, main, row, seconds
from workbench.pipeline import contract as contracts
from workbench.pipeline.spec import StepSpec

ROOT = Path(__file__).resolve().parents[1]
DATA_ENGINE = ("pipelines/data_engine.yaml", "-p", "labelers=replay")
CELLS = ("n: int = 1", "import workbench\nstep = workbench.step()", "step.metric('n', n)")
PLAIN = ("n: int = 1", "import json", "print(json.dumps(n))")
REPEATS = 5


def measure(quick: bool) -> list[Row]:
    """A step beside papermill, the help, and a rerun with nothing changed."""
    repeats = 2 if quick else REPEATS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = _step(folder)
        plain = _notebook(folder / "plain.ipynb", PLAIN)
        ours = seconds(lambda: _call("-m", "workbench", "run-step", str(spec)), repeats)
        command = ("-m", "papermill", str(plain), str(folder / "out.ipynb"), "--no-progress-bar")
        theirs = seconds(lambda: _call(*command), repeats)
    rows = [
        row(
            "one step",
            ours,
            "s",
            peer=theirs,
            peer_name="papermill command",
            goal="ratio <= 1.2",
            met=ours / theirs <= 1.2,
        ),
        _help(repeats),
    ]
    rerun = _rerun(repeats)
    return [*rows, rerun] if rerun else rows


def _help(repeats: int) -> Row:
    took = seconds(lambda: _call("-m", "workbench", "--help"), repeats)
    return row("workbench --help", took, "s", goal="<= 0.5 s", met=took <= 0.5)


def _rerun(repeats: int) -> Row | None:
    planned = subprocess.run(
        [sys.executable, "-m", "workbench", "plan", *DATA_ENGINE, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    steps = json.loads(planned.stdout)["steps"]
    if any(step["action"] == "run" for step in steps):
        print("no rerun measured: `make run` has not finished in this workspace", file=sys.stderr)
        return None
    took = seconds(lambda: _call("-m", "workbench", "run", *DATA_ENGINE, check=False), repeats)
    return row("rerun with nothing changed", took, "s", goal="<= 3 s", met=took <= 3)


def _notebook(path: Path, sources: Sequence[str]) -> Path:
    """A notebook of these cells, the first of them parameters."""
    cells = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {"tags": ["parameters"]} if number == 0 else {},
            "source": source,
            "execution_count": None,
            "outputs": [],
        }
        for number, source in enumerate(sources)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content))
    return path


def _step(folder: Path) -> Path:
    """A trivial notebook's spec."""
    notebook = _notebook(folder / "trivial.ipynb", CELLS)
    spec = StepSpec(
        step="trivial",
        notebook=str(notebook),
        home=str(folder / ".workbench"),
        folder=str(folder),
        cache=str(folder / "cache"),
        parameters=contracts.read(notebook).validate({}),
        inputs={},
        declared_inputs={},
        declared_outputs={},
        threads=1,
        timeout_s=120,
        memory_gib=4,
        environment={},
    )
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    return path


def _call(*arguments: str, check: bool = True) -> None:
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=check,
    )


if __name__ == "__main__":
    main(measure)
