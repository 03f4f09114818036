"""Whole runs on Ray through the command line: a cluster, a lost worker, a killed run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.conftest import write_notebook, write_pipeline
from tests.pipeline.executors.test_ray_executor import SLOW_ONCE, gone, wait_for
from tests.servers import Servers
from workbench.core.workspace import Workspace
from workbench.records.store import Store

pytestmark = pytest.mark.slow

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

HEAD = """
import sys
import ray
for last in (False, True):
    try:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        break
    except Exception:  # a busy machine
        ray.shutdown()
        if last:
            raise
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def environment(tmp_path: Path, servers: Servers) -> dict[str, str]:
    """What a run on a cluster needs: the cluster's token, and here loopback only."""
    token = tmp_path / "cluster-token"
    token.write_text("5a" * 32)
    return {
        **os.environ,
        "MLFLOW_TRACKING_URI": servers.mlflow,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture
def far_home(tmp_path: Path, environment: dict[str, str]) -> Path:
    """The workspace of the cluster's workers: another machine's, as far as a driver can tell."""
    environment["WORKBENCH_HOME"] = str(tmp_path / "far" / ".workbench")
    return tmp_path / "far" / ".workbench"


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """The address of a cluster that somebody else started."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as head:
        assert head.stdout is not None
        yield head.stdout.readline().strip()
        head.communicate()


def start(
    project: Path, home: Path, environment: dict[str, str], *options: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", "run", "pipelines/trial.yaml", "--json", *options],
        cwd=project,
        env={**environment, "WORKBENCH_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report_of(run: subprocess.Popen[str]) -> dict[str, Any]:
    printed, said = run.communicate(timeout=240)
    assert run.returncode == 0, said[-3000:]
    return dict(json.loads(printed))


def slow_once(project: Path) -> Path:
    mark = project / "mark"
    write_notebook(project / "notebooks/steps/a.ipynb", SLOW_ONCE.format(mark=str(mark)))
    text = (project / "pipelines/trial.yaml").read_text()
    write_pipeline(project, text.replace("a: {", "a: {retries: {crashed: 1}, "))
    return mark


def test_a_cluster_that_loses_a_worker_has_the_same_result(
    project: Path, tmp_path: Path, environment: dict[str, str], cluster: str
) -> None:
    mark = slow_once(project)
    mark.write_text("0")
    here = report_of(start(project, tmp_path / "here", environment))
    mark.unlink()
    run = start(
        project, tmp_path / "there", environment, "--executor", "ray", "--ray-address", cluster
    )
    above = psutil.Process(wait_for(mark)).parents()
    os.kill(next(p for p in above if p.name().startswith("ray::")).pid, signal.SIGKILL)
    there = report_of(run)
    assert there["status"] == "succeeded"
    assert there["outputs"] == here["outputs"]


def test_workers_without_the_workspace_get_records_by_url(
    project: Path, tmp_path: Path, environment: dict[str, str], far_home: Path, cluster: str
) -> None:
    work = "upstream = step.input('upstream')\nstep.metric('loss', 0.25)\nprint('seen from afar')"
    write_notebook(
        project / "notebooks/steps/b.ipynb", work, parameters="n: int = 1\nword: str = ''"
    )
    here = report_of(start(project, tmp_path / "here", environment))
    url = f"file://{tmp_path}/by"
    apart = ("--executor", "ray", "--ray-address", cluster, "--artifacts", url)
    there = report_of(start(project, tmp_path / "there", environment, *apart))
    assert there["status"] == "succeeded"
    assert there["outputs"] == here["outputs"]
    near, far = Store(Workspace(tmp_path / "there")), Store(Workspace(far_home))
    made = list(near.refs("selection"))
    assert len(made) == 2
    assert set(far.refs("selection")) == set(made)
    folder = tmp_path / "there" / "runs" / there["run_id"] / "b"
    assert "seen from afar" in (folder / "output.txt").read_text()
    assert str(far_home) in (folder / "executed.ipynb").read_text()
    assert (folder / "metrics.jsonl").exists()
    assert not list((tmp_path / "by" / "steps").iterdir())
    assert not list((far_home / "scratch" / "ray").iterdir())


def test_a_killed_run_ends_its_ray_and_is_resumed(
    project: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    del environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]
    mark, home = slow_once(project), tmp_path / "here"
    run = start(project, home, environment, "--executor", "ray")
    kernel = wait_for(mark)
    below = psutil.Process(run.pid).children(recursive=True)
    assert any(process.name() == "raylet" for process in below)
    run.kill()
    run.communicate()
    assert gone(kernel)
    # Ray's own agents look for their parent only now and then.
    assert all(gone(process.pid, within_s=180) for process in below)
    again = report_of(start(project, home, environment))  # records do not say who made them
    assert [step["status"] for step in again["steps"]] == ["ran", "ran"]
