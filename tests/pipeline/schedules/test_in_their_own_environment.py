"""Dagster and Airflow run the generated files, each in its own environment.

Neither can live beside the workbench's packages, and neither has to: they only start its command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import write_notebook
from tests.pipeline.schedules.conftest import MakeJob
from tests.servers import Servers
from workbench.core.workspace import Workspace
from workbench.pipeline.schedules import SCHEDULERS, ScheduledJob
from workbench.records.store import Store
from workbench.records.types import Selection

pytestmark = pytest.mark.slow


def environment_of(folder: Path, *packages: str) -> Path:
    """A fresh environment with ``packages``; uv's cache makes the second time quick."""
    uv = Path(sys.executable).parent / "uv"
    job = subprocess.run([uv, "venv", "-q", "-p", sys.executable, folder], check=False)
    installed = subprocess.run(
        [uv, "pip", "install", "-q", "-p", folder, *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    if job.returncode or installed.returncode:
        pytest.skip(f"{packages[0]} cannot be installed here: {installed.stderr[-300:]}")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_of(tmp_path_factory.mktemp("dagster") / "env", "dagster==1.13.29")


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_of(tmp_path_factory.mktemp("airflow") / "env", "apache-airflow==3.3.2")


@pytest.fixture
def in_project(
    tmp_path: Path, servers: Servers
) -> Iterator[Callable[[Path, ScheduledJob, str, str], dict[str, Any]]]:
    """Called with a Python, a job, its system and a program that prints one JSON object last."""

    def output(python: Path, job: ScheduledJob, system: str, program: str) -> dict[str, Any]:
        folder = tmp_path / system
        folder.mkdir(exist_ok=True)
        for name, text in SCHEDULERS[system].emit(job).items():
            (folder / name).write_text(text)
        home = tmp_path / f"{system}-home"
        home.mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "DAGSTER_HOME": str(home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "MLFLOW_TRACKING_URI": servers.mlflow,
        }
        done = subprocess.run(
            [python, "-c", program],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    yield output


RUN_DAGSTER = """
import json
import dagster as dg
from definitions import JOB, defs, schedule

with dg.DagsterInstance.get() as instance:
    job = defs.resolve_job_def(JOB["name"])
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    made = {
        e.asset_key.to_user_string(): {k: v.value for k, v in e.materialization.metadata.items()}
        for e in result.get_asset_materialization_events()
    }
    seen = {
        e.event_specific_data.asset_observation.asset_key.to_user_string():
            {k: v.value for k, v in e.event_specific_data.asset_observation.metadata.items()}
        for e in result.all_events if e.event_type_value == "ASSET_OBSERVATION"
    }
    skipped = [e.step_key for e in result.all_events if e.event_type_value == "STEP_SKIPPED"]
    repository = defs.get_repository_def()
    with dg.build_schedule_context(instance=instance, repository_def=repository) as tick:
        free = len(schedule.evaluate_tick(tick).run_requests or ())
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        busy = schedule.evaluate_tick(tick).skip_message
    assets = sorted(k.to_user_string() for k in defs.resolve_all_asset_keys())
print(json.dumps({"ok": result.success, "made": made, "seen": seen, "skipped": skipped,
                  "free": free, "busy": busy, "assets": assets}))
"""


def test_dagster_materialises_each_step_through_pipes(
    dagster: Path,
    make_job: MakeJob,
    in_project: Callable[..., dict[str, Any]],
    workspace: Workspace,
) -> None:
    output = in_project(dagster, make_job(n="4"), "dagster", RUN_DAGSTER)
    assert output["ok"]
    assert output["assets"] == sorted(output["made"]) == ["a", "b"]
    assert output["made"]["b"]["status"] == "succeeded"
    (job,) = output["made"]["a"]["outputs"].items()
    assert job[0] == "a.selection"
    assert Store(workspace).get(job[1], Selection).budget == 4
    assert (output["free"], output["busy"]) == (1, "the run before is still at work")


def test_dagster_skips_steps_downstream_of_a_waiting_step(
    dagster: Path, make_job: MakeJob, in_project: Callable[..., dict[str, Any]], project: Path
) -> None:
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        "from workbench.core.errors import Waiting\n"
        "raise Waiting('0 of 3 done', hint='label them')",
    )
    output = in_project(dagster, make_job(), "dagster", RUN_DAGSTER)
    assert output["ok"]
    assert output["made"] == {}
    assert output["skipped"] == ["b.run_b", "b.publish_b"]
    assert output["seen"]["a"]["status"] == "waiting"
    assert "0 of 3 done" in output["seen"]["a"]["reason"]


def test_dagster_fails_when_a_step_does(
    dagster: Path, make_job: MakeJob, in_project: Callable[..., dict[str, Any]], project: Path
) -> None:
    write_notebook(project / "notebooks/steps/a.ipynb", "raise KeyError('gone')")
    output = in_project(dagster, make_job(), "dagster", RUN_DAGSTER)
    assert not output["ok"]
    assert output["made"] == {}


RUN_AIRFLOW = """
import json, sys
sys.path.insert(0, ".")
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

bag = DagBag(dag_folder=".")
(dag,) = bag.dags.values()
import trial_dag
ended = {}
for status in (0, 3, 4, 1):
    trial_dag.JOB["command"] = ["/bin/sh", "-c", f"exit {status}"]
    try:
        trial_dag.run("a")
        ended[status] = "well"
    except AirflowSkipException as error:
        ended[status] = f"skipped: {error}"
    except AirflowException as error:
        ended[status] = f"failed: {error}"
print()
print(json.dumps({
    "errors": {k: str(v) for k, v in bag.import_errors.items()},
    "dag": dag.dag_id,
    "tasks": {t.task_id: sorted(t.downstream_task_ids) for t in dag.tasks},
    "runs": dag.max_active_runs, "catchup": dag.catchup,
    "retries": [t.retries for t in dag.tasks],
    "cron": dag.schedule, "zone": str(dag.timezone), "ended": ended,
}))
"""


def test_airflow_tasks_have_the_status_of_the_run(
    airflow: Path, make_job: MakeJob, in_project: Callable[..., dict[str, Any]]
) -> None:
    output = in_project(airflow, make_job(timezone="Europe/Berlin"), "airflow", RUN_AIRFLOW)
    assert output["errors"] == {}
    assert (output["dag"], output["tasks"]) == ("trial", {"a": ["b"], "b": []})
    assert (output["runs"], output["catchup"], output["retries"]) == (1, False, [0, 0])
    assert (output["cron"], output["zone"]) == ("30 2 * * *", "Europe/Berlin")
    assert output["ended"] == {
        "0": "well",
        "3": "well",
        "4": "skipped: a waits for people; the next run goes on there",
        "1": "failed: a: `workbench run` ended with status 1",
    }
