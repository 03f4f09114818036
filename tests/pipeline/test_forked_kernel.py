"""A notebook in a forked kernel sees the same as in a new interpreter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.conftest import write_notebook
from tests.pipeline.test_unit import spec_of
from workbench.core.workspace import Workspace
from workbench.pipeline.executors import local
from workbench.pipeline.executors.local import run_once
from workbench.pipeline.spec import ExitStatus

PROBE = """
import atexit, gc, json, multiprocessing.process, os, pathlib, random, signal, sys, threading
from multiprocessing import get_context
file = pathlib.Path({file!r})
own = {{"JPY_PARENT_PID", "COLUMNS", "LINES"}}  # the last two: readline's, where it is loaded
seen = {{
    "environment": {{k: v for k, v in os.environ.items() if k not in own}},
    "folder": os.getcwd(),
    "path": sys.path,
    "hash": hash("a word"),
    "main": sys.modules["__main__"].__name__,
    "workers' folder": multiprocessing.process.ORIGINAL_DIR,
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGHUP)],
    "session of its own": os.getsid(0) == os.getpid(),
    "thread-sizing": [n for n in ("numpy", "torch", "cv2", "pyarrow") if n in sys.modules],
    "kernel": type(get_ipython().kernel).__name__,
}}
import numpy, threadpoolctl
seen["pools"] = sorted({{p["num_threads"] for p in threadpoolctl.threadpool_info()}})
with get_context("spawn").Pool(1) as pool:
    seen["worker"] = pool.apply(os.getcwd)
extra = {{
    "launched": sys.argv[0],
    "drawn": [random.random(), numpy.random.random()],
    "handles": sorted(os.readlink(f"/proc/self/fd/{{n}}") for n in (0, 1, 2)),
}}
file.write_text(json.dumps([seen, extra]))
atexit.register(file.with_suffix(".ended").write_text, "yes")
"""


def test_a_forked_kernel_is_equivalent_to_a_new_interpreter(
    workspace: Workspace, tmp_path: Path
) -> None:
    forked, again, own = (
        _run_probe(workspace, tmp_path, name, run)
        for name, run in (
            ("forked", run_once),
            ("again", run_once),
            ("own", lambda spec: local.run_in_new_process(spec, lambda: None)),
        )
    )
    assert forked[0] == own[0]
    assert forked[0]["thread-sizing"] == []
    assert forked[0]["pools"] == [1]
    assert forked[1]["launched"] == "ipykernel_launcher"
    assert own[1]["launched"] != "ipykernel_launcher"
    assert not set(forked[1]["drawn"]) & set(again[1]["drawn"])


def test_a_forked_kernel_inherits_no_pipes(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this variable a kernel does not capture its output through pipes, and has none to count.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    file = tmp_path / "pipes"
    work = (
        "import os, pathlib\nfiles = pathlib.Path('/proc/self/fd')\n"
        "pipes = [n for n in os.listdir(files) if int(n) > 2 and files.joinpath(n).is_fifo()]\n"
        f"pathlib.Path({str(file)!r}).write_text(str(len(pipes)))"
    )
    notebook = write_notebook(tmp_path / "a.ipynb", work)
    counts = []
    for run in (run_once, lambda spec: local.run_in_new_process(spec, lambda: None)):
        assert run(spec_of(workspace, notebook)).status is ExitStatus.OK
        counts.append(int(file.read_text()))
    assert counts[0] == counts[1] > 0


def test_a_kernel_that_kills_itself_is_reported(workspace: Workspace, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    notebook = write_notebook(tmp_path / "a.ipynb", "import os, signal\nos.kill(os.getpid(), 9)")
    result = run_once(spec_of(workspace, notebook))
    assert result.status is ExitStatus.KERNEL_DIED
    assert not set(psutil.Process().children(recursive=True)) - before


def _run_probe(workspace: Workspace, tmp_path: Path, name: str, run: Any) -> list[dict[str, Any]]:
    file = tmp_path / f"{name}.json"
    notebook = write_notebook(tmp_path / "a.ipynb", PROBE.format(file=str(file)))
    result = run(spec_of(workspace, notebook))
    assert result.status is ExitStatus.OK, result.failure
    assert file.with_suffix(".ended").read_text() == "yes"
    probed: list[dict[str, Any]] = json.loads(file.read_text())
    return probed
