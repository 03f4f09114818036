"""A pipeline of many trivial steps against what its kernels take by themselves, and Ploomber."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Row, row

Json = dict[str, Any]

CELLS = ("n: int = 1", "import workbench\nstep = workbench.step()", "step.metric('n', n)")
PLAIN = ("n: int = 1", "import json", "print(json.dumps(n))")
PUT = (
    "from workbench.records.types import Selection\n"
    "step.output('selection', step.store.put(Selection(dataset='dataset/' + '0' * 64, budget=1,"
    " seed=n, method='trial', chosen=())))"
)
CONTRACT: Json = {
    "inputs": {"upstream": {"kind": "selection", "optional": True}},
    "outputs": {"selection": {"kind": "selection"}},
}
ENVIRONMENT = Path(".workbench/scratch/ploomber")
"""Where the peer is installed, once."""


def measure(project: Path, steps: int) -> list[Row]:
    """``steps`` independent steps, as many at once as there are cores."""
    trivial = notebook(project / "notebooks/trivial.ipynb", (*CELLS, PUT), contract=CONTRACT)
    file = project / "pipelines/trivial.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "name: trivial\nnotebooks: ../notebooks\nsteps:\n  trivial:\n"
        f"    for_each: {{n: {list(range(steps))}}}\n"
        '    parameters: {n: "${each.n}"}\n'
    )
    environment = {**os.environ, "WORKBENCH_HOME": str(project / ".workbench")}
    command = [sys.executable, "-m", "workbench"]
    quiet: Json = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    subprocess.run([*command, "up"], check=True, **quiet)
    try:
        start = time.perf_counter()
        subprocess.run([*command, "run", str(file)], check=True, **quiet)
        ours = time.perf_counter() - start
    finally:
        subprocess.run([*command, "down"], check=False, **quiet)
    cores = os.cpu_count() or 1
    kernels = _kernels(trivial, min(steps, 10)) * steps / cores
    name = f"pipeline of {steps} trivial steps"
    rows = [
        row(
            name,
            ours,
            "s",
            peer=kernels,
            peer_name=f"its kernels alone / {cores} cores",
            goal="ratio <= 1.15",
            met=ours / kernels <= 1.15,
        )
    ]
    theirs = _ploomber(project / "ploomber", steps)
    if theirs:
        rows.append(
            row(
                name,
                ours,
                "s",
                peer=theirs,
                peer_name="Ploomber",
                goal="ratio < 1",
                met=ours < theirs,
            )
        )
    return rows


def _kernels(trivial: Path, repeats: int) -> float:
    """Seconds for one notebook by nbclient in a process that has imported it: mean of several."""
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(trivial, as_version=4)
    content.cells = content.cells[:1]  # what comes after needs a run to belong to
    content.cells[0].source += "\nimport workbench\nworkbench.step\n" + PUT.splitlines()[0]
    start = time.perf_counter()
    for _ in range(repeats):
        NotebookClient(content, kernel_name="python3").execute()
    return (time.perf_counter() - start) / repeats


def _ploomber(project: Path, steps: int) -> float | None:
    """Seconds of Ploomber's parallel executor for as many notebooks; None if it cannot be had."""
    python = _environment()
    if python is None:
        return None
    project.mkdir()
    source = '# + tags=["parameters"]\nn = 1\nupstream = None\nproduct = None\n# -\nprint(n)\n'
    tasks = []
    for number in range(steps):
        (project / f"task{number}.py").write_text(source)
        tasks.append({"source": f"task{number}.py", "product": f"out{number}.ipynb"})
    (project / "pipeline.yaml").write_text(json.dumps({"executor": "parallel", "tasks": tasks}))
    start = time.perf_counter()
    done = subprocess.run(
        [str(python.with_name("ploomber")), "build", "--force"],
        cwd=project,
        env={**os.environ, "PLOOMBER_STATS_ENABLED": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"Ploomber could not be measured: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    return time.perf_counter() - start


def _environment() -> Path | None:
    """Python of an environment that has Ploomber, made on first use."""
    python = ENVIRONMENT / "bin" / "python"
    if (ENVIRONMENT / ".ready").exists():
        return python.absolute()
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    uv = str(Path(sys.executable).with_name("uv"))
    packages = ["ploomber", "ipykernel", "setuptools<80"]
    for command in (
        [uv, "venv", "-q", "--python", sys.executable, str(ENVIRONMENT)],
        [uv, "pip", "install", "-q", "--python", str(python), *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"Ploomber cannot be installed: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return None
    (ENVIRONMENT / ".ready").touch()
    return python.absolute()


def notebook(path: Path, sources: Sequence[str], contract: Json | None = None) -> Path:
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
    metadata = {**kernel, "workbench": contract or {}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
