"""What is emitted, tried out as far as a machine without those schedulers can."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import write_pipeline
from tests.pipeline.schedules.conftest import MakeJob
from tests.servers import Servers
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.pipeline.schedules.emitters import SCHEDULERS
from workbench.pipeline.schedules.job import ScheduledJob
from workbench.records.model_types import StepRun
from workbench.records.store import Store

EndsWith = Callable[..., ScheduledJob]
AWKWARD = '100% "it\'s" $HOME `id` $(id) ; \\ {{ x }} ü'


def with_word(project: Path) -> None:
    """Let the pipeline take any word, to pass awkward ones."""
    path = project / "pipelines/trial.yaml"
    write_pipeline(project, path.read_text().replace(", choices: [calm, loud]", ""))


def shell_of(job: ScheduledJob) -> str:
    """What cron would hand to the shell: the line without its five fields, with \\% as %."""
    line = SCHEDULERS["cron"].emit(job)[f"{job.name}.cron"].splitlines()[-1]
    assert line.startswith(job.time.text + " ")
    return line.removeprefix(job.time.text + " ").replace(r"\%", "%")


def as_cron(job: ScheduledJob) -> subprocess.CompletedProcess[str]:
    """Run the line as cron does: by /bin/sh, with next to nothing in the environment."""
    return subprocess.run(
        ["/bin/sh", "-c", shell_of(job)],
        env={"HOME": str(job.home), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def log_of(job: ScheduledJob) -> str:
    return (job.home / "schedules" / f"{job.name}.log").read_text()


@pytest.mark.parametrize("system", sorted(SCHEDULERS))
def test_same_input_same_bytes_and_every_file_says_how_it_was_made(
    make_job: MakeJob, system: str
) -> None:
    once, again = (SCHEDULERS[system].emit(make_job(n="4")) for _ in range(2))
    assert once == again
    for text in once.values():
        first = text.splitlines()[0]
        assert first == (
            f"# Made by: workbench schedule trial.yaml --for {system} --at '30 2 * * *' -p n=4"
        )


def test_the_pipeline_file_can_say_when(make_job: MakeJob, project: Path) -> None:
    with pytest.raises(ParameterError, match="nothing says when"):
        make_job(at=None)
    text = (project / "pipelines/trial.yaml").read_text()
    write_pipeline(project, text + "schedule: {cron: '@weekly', timezone: Europe/Berlin}\n")
    made = make_job(at=None)
    assert (made.time.text, made.timezone) == ("0 0 * * 0", "Europe/Berlin")
    assert make_job(at="@daily", timezone="UTC").timezone == "UTC"
    with pytest.raises(ParameterError, match="unknown time zone 'Europe/Berlinn'"):
        make_job(timezone="Europe/Berlinn")


def test_a_cron_line_runs_the_pipeline(
    make_job: MakeJob, servers: Servers, workspace: Workspace
) -> None:
    job = make_job(word="loud")
    job.environment_file.parent.mkdir(parents=True)
    uri = servers.environment["MLFLOW_TRACKING_URI"]
    job.environment_file.write_text(f"MLFLOW_TRACKING_URI={uri}\n")
    done = as_cron(job)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), log_of(job)
    store = Store(workspace)
    runs = {run.step: run for run in (store.get(r, StepRun) for r in store.refs(StepRun.KIND))}
    assert runs["b"].parameters["word"] == "loud"
    assert "SUCCEEDED" in log_of(job)


def test_a_cron_line_hands_on_awkward_values(
    make_job: MakeJob, ends_with: EndsWith, project: Path
) -> None:
    with_word(project)
    job = ends_with(make_job(word=AWKWARD), 0)
    assert as_cron(job).returncode == 0
    assert f"[word={AWKWARD}]\n" in log_of(job)
    assert f"home={job.home}\n" in log_of(job)


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (3, 0), (4, 0), (1, 1), (130, 130)])
def test_cron_mails_failures_only(
    make_job: MakeJob, ends_with: EndsWith, status: int, expected: int
) -> None:
    done = as_cron(ends_with(make_job(), status))
    assert done.returncode == expected
    assert bool(done.stdout) == bool(expected)  # what is printed is mailed


def test_a_second_run_by_cron_leaves_the_first_alone(
    make_job: MakeJob, ends_with: EndsWith
) -> None:
    job = ends_with(make_job(), 0, waits_s=5)
    first = subprocess.Popen(["/bin/sh", "-c", shell_of(job)])
    deadline = time.monotonic() + 10
    log = job.home / "schedules" / "trial.log"
    while not (log.exists() and "home=" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = as_cron(job)
    assert (second.returncode, second.stdout) == (0, "")
    assert "still at work" in log_of(job)
    assert log_of(job).count("home=") == 1
    assert first.wait(30) == 0


def test_systemd_takes_the_units(
    make_job: MakeJob, ends_with: EndsWith, project: Path, tmp_path: Path
) -> None:
    with_word(project)
    job = ends_with(make_job(at="0 4 1 * mon", timezone="Europe/Berlin", word=AWKWARD), 0)
    units = SCHEDULERS["systemd"].emit(job)
    service, timer = units["workbench-trial.service"], units["workbench-trial.timer"]
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign] - case counts
    parser.read_string(timer)
    assert parser["Timer"]["Persistent"] == "true"
    assert timer.count("OnCalendar=") == 2
    parser.read_string(service)
    assert parser["Service"]["SuccessExitStatus"] == "3 4"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: the units were only parsed")
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    told = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "workbench-trial.timer")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")


ALLOWED = {
    "CronJob": {"apiVersion", "kind", "metadata", "spec"},
    "CronJob.spec": {
        "schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "jobTemplate",
        "suspend", "successfulJobsHistoryLimit", "failedJobsHistoryLimit",
    },
    "JobSpec": {"backoffLimit", "template", "activeDeadlineSeconds", "ttlSecondsAfterFinished"},
    "PodSpec": {
        "restartPolicy", "automountServiceAccountToken", "terminationGracePeriodSeconds",
        "containers", "volumes",
    },
    "Container": {
        "name", "image", "workingDir", "command", "args", "env", "envFrom", "resources",
        "volumeMounts",
    },
}  # fmt: skip
"""Field names of batch/v1 and core/v1, as far as a schedule needs them."""


def test_kubernetes_gets_a_cron_job(make_job: MakeJob) -> None:
    job = dataclasses.replace(make_job(word="loud"), secrets=("TOKEN",), gpus=0.5)
    (text,) = SCHEDULERS["k8s"].emit(job).values()
    volume, cron_job = yaml.safe_load_all(text)
    assert (cron_job["apiVersion"], cron_job["kind"]) == ("batch/v1", "CronJob")
    spec = cron_job["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for name, part in {
        "CronJob": cron_job,
        "CronJob.spec": spec,
        "JobSpec": spec["jobTemplate"]["spec"],
        "PodSpec": pod,
        "Container": container,
    }.items():
        assert set(part) <= ALLOWED[name], name
    assert spec["concurrencyPolicy"] == "Forbid"
    assert container["image"] == "registry/workbench:1"
    assert container["args"] == ["pipelines/trial.yaml", "-p", "word=loud"]
    (secret,) = [one for one in container["env"] if one["name"] == "TOKEN"]
    assert secret["valueFrom"] == {"secretKeyRef": {"name": "trial-secrets", "key": "TOKEN"}}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    (claim,) = pod["volumes"]
    assert claim["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (3, 0), (4, 0), (1, 1), (None, 143)])
def test_the_pod_ends_well_unless_the_run_failed(
    make_job: MakeJob, ends_with: EndsWith, status: int | None, expected: int
) -> None:
    """``None``: the pod is told to stop while the run is at work."""
    job = ends_with(make_job(), status or 0, waits_s=0 if status is not None else 30)
    (text,) = SCHEDULERS["k8s"].emit(job).values()
    _, cron_job = yaml.safe_load_all(text)
    (container,) = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    if status is None:
        job.program.write_text("#!/bin/sh\nexec sleep 30\n")
    began = time.monotonic()
    process = subprocess.Popen(
        [*container["command"], *container["args"]],
        env={"PATH": f"{job.program.parent}:/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )
    if status is None:
        time.sleep(0.5)
        process.terminate()
    assert process.wait(20) == expected
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("system", ["airflow", "dagster"])
def test_generated_python_holds_values_as_literals(
    make_job: MakeJob, project: Path, system: str
) -> None:
    with_word(project)
    files = SCHEDULERS[system].emit(make_job(word=AWKWARD))
    for name, text in files.items():
        if not name.endswith(".py"):
            continue
        (held,) = [
            ast.literal_eval(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "JOB"
        ]
        assert f"word={AWKWARD}" in held["command"]
        assert held["steps"]["b"]["needs"] == ["a"]


def test_names_that_fall_together_are_refused(make_job: MakeJob) -> None:
    job = make_job()
    first = dataclasses.replace(job.steps[0], name="a-b")
    second = dataclasses.replace(job.steps[1], name="a_b")
    with pytest.raises(ParameterError, match="differ only in characters"):
        SCHEDULERS["dagster"].emit(dataclasses.replace(job, steps=(first, second)))


def test_the_command_writes_files_and_says_what_to_do_with_them(
    project: Path, tmp_path: Path, workspace: Workspace
) -> None:
    def schedule(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "workbench", "schedule", "pipelines/trial.yaml", *arguments],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )

    folder = tmp_path / "out"
    done = schedule("--for", "systemd", "--at", "@daily", "-o", str(folder), "--json")
    told = json.loads(done.stdout)
    assert {Path(path).name for path in told["files"].values()} == set(told["files"])
    assert sorted(told["files"]) == sorted(path.name for path in folder.iterdir())
    assert "systemctl --user enable" in told["install"]
    assert str(workspace.root) in (folder / "workbench-trial.service").read_text()
    wrong = schedule("--for", "cron", "--at", "61 * * * *")
    assert wrong.returncode == 2
    assert "'61' is no minute" in wrong.stderr
    assert wrong.stdout == ""
    nowhere = schedule(
        "--for", "cron", "--at", "@daily", "-o", str(project / "pipelines/trial.yaml/x")
    )
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "cannot be written" in nowhere.stderr
