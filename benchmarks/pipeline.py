"""What the pipeline costs around a notebook: ``python -m benchmarks.pipeline [--quick] [--json]``.

A step is one trivial notebook, run by ``workbench run-step``, by the ``papermill`` command and by
``jupyter execute`` (nbclient), each as a process with all its imports; alone, and two at once. A
pipeline of many such steps is held against the time that its kernels take by themselves, one after
the other in one process, shared out over the cores; Ploomber runs the same notebooks in an
environment of its own. The rerun with nothing changed is that of the data engine in this workspace,
and is left out, saying so, where `make run` has not finished there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import pipeline_scale
from benchmarks.common import Row, main, row, seconds
from benchmarks.pipeline_scale import CELLS, CONTRACT, PLAIN, PUT
from benchmarks.pipeline_scale import notebook as _notebook
from workbench.core.workspace import Workspace
from workbench.pipeline import contract, graph, plan
from workbench.pipeline.spec import StepSpec

ROOT = Path(__file__).resolve().parents[1]
DATA_ENGINE = ("pipelines/data_engine.yaml", "-p", "labelers=replay")
REPEATS = 5


def measure(quick: bool) -> list[Row]:
    """A step beside papermill, the help, and a rerun with nothing changed."""
    repeats = 2 if quick else REPEATS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*_steps(folder, repeats), _help(repeats), _planning(folder / "many", 1000)]
        rows += pipeline_scale.measure(folder / "pipeline", steps=10 if quick else 50)
    rerun = _rerun(repeats)
    return [*rows, rerun] if rerun else rows


def _steps(folder: Path, repeats: int) -> list[Row]:
    """One step alone and two at once, beside the commands that people use."""
    specs = [_step(folder / f"step{number}") for number in (1, 2)]
    plain = _notebook(folder / "plain.ipynb", PLAIN)

    def unit(spec: Path) -> list[str]:
        return ["-m", "workbench", "run-step", str(spec)]

    def papermill(number: int) -> list[str]:
        out = str(folder / f"out{number}.ipynb")
        return ["-m", "papermill", str(plain), out, "--no-progress-bar"]

    execute = ["-c", "from nbclient.cli import main; main()", "--inplace", str(plain)]
    one = seconds(lambda: _call(*unit(specs[0])), repeats)
    two = seconds(lambda: _at_once(*map(unit, specs)), repeats)
    peers = [
        ("one step", one, seconds(lambda: _call(*papermill(1)), repeats), "papermill command"),
        (
            "two steps at once",
            two,
            seconds(lambda: _at_once(papermill(1), papermill(2)), repeats),
            "two papermill commands",
        ),
    ]
    rows = [
        row(name, ours, "s", peer=peer, peer_name=who, goal="ratio <= 1.2", met=ours / peer <= 1.2)
        for name, ours, peer, who in peers
    ]
    executed = seconds(lambda: _call(*execute), repeats)
    return [*rows, row("one step", one, "s", peer=executed, peer_name="jupyter execute (nbclient)")]


def _planning(project: Path, steps: int) -> Row:
    """Planning many steps of notebooks that differ; none waits, so each key is worked out."""
    (project / "pipelines").mkdir(parents=True)
    lines = ["name: many", "notebooks: ../notebooks", "steps:"]
    for number in range(steps):
        cells = (CELLS[0], CELLS[1], f"step.metric('n', n + {number})", PUT)
        _notebook(project / f"notebooks/s{number}.ipynb", cells, contract=CONTRACT)
        lines.append(f"  s{number}: {{}}")
    file = project / "pipelines" / "many.yaml"
    file.write_text("\n".join(lines))
    workspace = Workspace(project / ".workbench")

    def work() -> None:
        loaded = graph.load_pipeline(file, {}, base=project)
        assert len(plan.plan_pipeline(loaded, workspace)) == steps

    took = seconds(work, 3)
    return row(f"planning {steps} steps", took, "s", goal="< 1 s", met=took < 1)


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


def _step(folder: Path) -> Path:
    """A trivial notebook's spec."""
    notebook = _notebook(folder / "trivial.ipynb", CELLS)
    spec = StepSpec(
        step="trivial",
        notebook=str(notebook),
        home=str(folder / ".workbench"),
        folder=str(folder),
        cache=str(folder / "cache"),
        parameters=contract.read_contract(notebook).validate({}),
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


def _at_once(*commands: list[str]) -> None:
    """Two or more processes side by side; all have to end well."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen([sys.executable, *one], cwd=ROOT, **quiet) for one in commands]
    assert [process.wait() for process in running] == [0] * len(commands)


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
