"""Files for cron, systemd, Airflow, Dagster and Kubernetes."""

from __future__ import annotations

import pprint
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import ParameterError
from workbench.pipeline.schedules.job import CronSchedule, ScheduledJob

_LOCK_BUSY = 75  # EX_TEMPFAIL: flock says with it that somebody else holds the lock


def emit_cron(job: ScheduledJob) -> dict[str, str]:
    """``NAME.cron``, to be added to a crontab."""
    lock = shlex.quote(str(job.home / "locks" / f"schedule-{job.name}.lock"))
    log = shlex.quote(str(job.home / "schedules" / f"{job.name}.log"))
    folders = " ".join(shlex.quote(str(job.home / name)) for name in ("locks", "schedules"))
    variables = shlex.quote(str(job.environment_file))
    command = (
        f"cd {shlex.quote(str(job.folder))} && mkdir -p {folders} && "
        f"{{ [ ! -r {variables} ] || {{ set -a; . {variables}; set +a; }}; }} && "
        f"WORKBENCH_HOME={shlex.quote(str(job.home))} flock -n -E {_LOCK_BUSY} {lock} "
        f"{shlex.join(job.command)} >>{log} 2>&1; status=$?; case $status in 0|3|4) ;; "
        f'{_LOCK_BUSY}) echo "the run before is still at work: this one is left out" >>{log} ;; '
        f"*) tail -n 40 {log}; exit $status ;; esac"
    )
    # In a crontab a bare % ends the command and starts its standard input.
    line = f"{job.time.text} {command}".replace("%", r"\%")
    lines = [
        f"# {job.made_by('cron')}",
        f"# Runs {job.name}. Its output goes to {log}; cron mails the end of it when a run fails.",
        "# Missed while the machine was off: cron does not make up for it; systemd's timers do.",
        f"# Secrets and servers' addresses: NAME=VALUE lines in {variables}, mode 0600.",
        *([f"# Secrets it needs: {', '.join(job.secrets)}"] if job.secrets else []),
        "# Understood by cronie, for all lines below it; other crons go by the machine's own time.",
        f"CRON_TZ={job.timezone}",
        line,
    ]
    return {f"{job.name}.cron": "\n".join(lines) + "\n"}


# ---- Units for systemd: a timer that makes up for missed runs, and the service it starts.
#
# A timer never starts a service that is still active, so two runs cannot overlap.


_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def emit_systemd(job: ScheduledJob) -> dict[str, str]:
    """``workbench-NAME.service`` and ``workbench-NAME.timer``."""
    unit = f"workbench-{job.name}"
    head = f"# {job.made_by('systemd')}\n"
    service = [
        "[Unit]",
        f"Description=Pipeline {_escape_specifiers(job.name)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={_escape_specifiers(str(job.folder))}",
        f"Environment={_quote(f'WORKBENCH_HOME={job.home}')}",
        "# Secrets and servers' addresses, NAME=VALUE lines, mode 0600; need not exist.",
        *([f"# Secrets it needs: {', '.join(job.secrets)}"] if job.secrets else []),
        f"EnvironmentFile=-{_escape_specifiers(str(job.environment_file))}",
        f"ExecStart={' '.join(_quote_argument(word) for word in job.command)}",
        "# 3: refused by a gate, 4: waits for people; the next run goes on from there.",
        "SuccessExitStatus=3 4",
        "# The run ends its own steps when it is told to stop.",
        "KillMode=mixed",
        "TimeoutStopSec=60",
    ]
    timer = [
        "[Unit]",
        f"Description=When pipeline {_escape_specifiers(job.name)} is due",
        "",
        "[Timer]",
        *(f"OnCalendar={when}" for when in systemd_calendar(job.time, job.timezone)),
        "# A run missed while the machine was off is made up for once.",
        "Persistent=true",
        f"Unit={unit}.service",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return {
        f"{unit}.service": head + "\n".join(service) + "\n",
        f"{unit}.timer": head + "\n".join(timer) + "\n",
    }


def systemd_calendar(time: CronSchedule, timezone: str) -> list[str]:
    """The times in systemd's form; two where cron means "this date or that weekday"."""
    clock = f"{_calendar_list(time.hours)}:{_calendar_list(time.minutes)}:00 {timezone}"
    date = f"*-{_calendar_list(time.months)}-{_calendar_list(time.days)}"
    if time.weekdays is None:
        return [f"{date} {clock}"]
    week = ",".join(_WEEKDAYS[day] for day in time.weekdays)
    if time.days is None or not time.either_day:
        return [f"{week} {date} {clock}"]
    return [f"{date} {clock}", f"{week} *-{_calendar_list(time.months)}-* {clock}"]


def _calendar_list(values: Sequence[int] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02d}" for value in values)


def _escape_specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _quote(text: str) -> str:
    escaped = _escape_specifiers(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _quote_argument(word: str) -> str:
    # Within ExecStart, $ would stand for a variable.
    return _quote(word).replace("$", "$$")


# ---- Python files for schedulers: a template of this package with the job's data written into it.


Json = dict[str, Any]

_TEMPLATES = Path(__file__).parent / "templates"


def _render_template(template: str, job: ScheduledJob, system: str) -> str:
    """The text of ``templates/NAME`` with ``JOB`` set to what the job needs, as literals."""
    names = {step.name: _python_identifier(step.name) for step in job.steps}
    if len(set(names.values())) < len(names):
        raise ParameterError(
            "two steps differ only in characters that cannot stand in a name there",
            where=job.file.name,
            hint=f"Rename one of: {', '.join(names)}",
        )
    data: Json = {
        "name": _python_identifier(job.name),
        "help": job.help,
        "cron": job.time.text,
        "timezone": job.timezone,
        "command": list(job.command),
        "folder": str(job.folder),
        "home": str(job.home),
        "secrets": list(job.secrets),
        "steps": {
            names[step.name]: {
                "step": step.name,
                "help": step.help,
                "needs": [names[need] for need in step.needs],
            }
            for step in job.steps
        },
    }
    literal = pprint.pformat(data, width=96, sort_dicts=False)
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    return text.replace("@MADE_BY@", f"# {job.made_by(system)}").replace("@JOB@", literal)


def _python_identifier(name: str) -> str:
    """``name`` with what Dagster and Airflow do not take in names replaced."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "_"


# ---- A DAG file for Airflow: a task for each step of the pipeline file.


def emit_airflow(job: ScheduledJob) -> dict[str, str]:
    """``NAME_dag.py``, for the DAGs folder."""
    return {f"{job.name}_dag.py": _render_template("airflow_dag.py.in", job, "airflow")}


# ---- A Dagster project: an asset for each step, run in the workbench's own environment by Pipes.


_DAGSTER_PROJECT = """\
{made_by}
[project]
name = "workbench-{name}"
version = "1"
requires-python = ">=3.10"
dependencies = ["dagster>=1.10", "dagster-pipes>=1.10"]

[tool.dagster]
python_file = "definitions.py"
"""


def emit_dagster(job: ScheduledJob) -> dict[str, str]:
    """``definitions.py``, the program it launches, and what makes a project of them."""
    made_by = f"# {job.made_by('dagster')}"
    name = _python_identifier(job.name).replace("_", "-").strip("-")
    return {
        "definitions.py": _render_template("dagster_definitions.py.in", job, "dagster"),
        "run_step.py": _render_template("dagster_run_step.py.in", job, "dagster"),
        "pyproject.toml": _DAGSTER_PROJECT.format(made_by=made_by, name=name),
    }


# ---- A CronJob for Kubernetes, with the volume that keeps the workspace between runs.


_IMAGE_PROJECT = "/workbench"
"""Where the image holds the project."""

_CONTAINER_HOME = "/data/.workbench"
_MAX_NAME_LENGTH = 52  # Kubernetes appends to a CronJob's name for its jobs
# Kubernetes knows no exit status but 0 as success. The shell is process 1, which hears SIGTERM only
# when told to, and hands it on so that the run ends its steps.
_RUN_SCRIPT = """\
workbench run "$@" & run=$!
trap 'kill -TERM "$run"; wait "$run"; exit 143' TERM INT
wait "$run"; status=$?
case $status in 3|4) exit 0 ;; *) exit "$status" ;; esac
"""


def emit_kubernetes(job: ScheduledJob) -> dict[str, str]:
    """``NAME.cronjob.yaml``: a PersistentVolumeClaim and a CronJob."""
    name = _kubernetes_name(job.name)
    head = [
        f"# {job.made_by('k8s')}",
        f"# The image holds the project in {_IMAGE_PROJECT} and `workbench` on its PATH.",
        f"# Addresses and tokens of servers: a Secret {name}-servers (it need not exist).",
    ]
    documents = (_volume(name), _cron_job(job, name))
    text = "---\n".join(yaml.safe_dump(one, sort_keys=False, width=100) for one in documents)
    return {f"{job.name}.cronjob.yaml": "\n".join(head) + "\n" + text}


def _volume(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{name}-workspace"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "100Gi"}},
        },
    }


def _cron_job(job: ScheduledJob, name: str) -> Json:
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "workbench"}},
        "spec": {
            "schedule": job.time.text,
            "timeZone": job.timezone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,  # a missed run is made up for within the hour
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 1,  # a lost node: the second pod goes on where it stopped
                    "template": {"spec": _pod(job, name)},
                }
            },
        },
    }


def _pod(job: ScheduledJob, name: str) -> Json:
    container: Json = {
        "name": "run",
        "image": job.image,
        "workingDir": _IMAGE_PROJECT,
        "command": ["/bin/sh", "-c", _RUN_SCRIPT, "run"],
        "args": [_escape_variables(word) for word in (_pipeline_path(job), *job.parameters)],
        "env": [
            {"name": "WORKBENCH_HOME", "value": _CONTAINER_HOME},
            *(_secret_variable(name, secret) for secret in job.secrets),
        ],
        "envFrom": [{"secretRef": {"name": f"{name}-servers", "optional": True}}],
        "resources": _resources(job),
        "volumeMounts": [{"name": "workspace", "mountPath": "/data"}],
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": f"{name}-workspace"}}
        ],
    }


def _resources(job: ScheduledJob) -> Json:
    requests: Json = {"cpu": str(job.threads), "memory": f"{round(job.memory_gib * 1024)}Mi"}
    if not job.gpus:
        return {"requests": requests}
    # Whole cards only, and as a limit: so the device plugin wants it.
    return {"requests": requests, "limits": {"nvidia.com/gpu": str(max(1, round(job.gpus)))}}


def _secret_variable(name: str, secret: str) -> Json:
    reference = {"name": f"{name}-secrets", "key": secret}
    return {"name": secret, "valueFrom": {"secretKeyRef": reference}}


def _pipeline_path(job: ScheduledJob) -> str:
    """The pipeline file from the project's root, the folder above the file's."""
    return f"{job.file.parent.name}/{job.file.name}"


def _escape_variables(word: str) -> str:
    return word.replace("$(", "$$(")  # Kubernetes would put a variable there


def _kubernetes_name(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or len(name) > _MAX_NAME_LENGTH:
        raise ParameterError(
            f"{text!r} cannot be made a name in Kubernetes",
            hint=f"Letters and digits, at most {_MAX_NAME_LENGTH}: rename the pipeline",
        )
    return name


# ---- Schedules in the forms of systems that people already run; there is no scheduler of our own.
#
# Each emitter takes a `Job` and gives files. Same job, same bytes. What they share: a run that is
# still at work is not joined by a second one, a run that was missed is made up for once where the
# system can, exit statuses 3 (refused by a gate) and 4 (waits for people) are no failures, and what
# a run waits for is met by the next one, because a rerun is a resume.


@dataclass(frozen=True)
class Scheduler:
    """One scheduler: how its files are made, and what a person does with them."""

    emit: Callable[[ScheduledJob], dict[str, str]]
    install: str


SCHEDULERS: Mapping[str, Scheduler] = {
    "cron": Scheduler(emit_cron, "(crontab -l 2>/dev/null; cat {folder}/{name}.cron) | crontab -"),
    "systemd": Scheduler(
        emit_systemd,
        "cp {folder}/workbench-{name}.* ~/.config/systemd/user/ && systemctl --user daemon-reload "
        "&& systemctl --user enable --now workbench-{name}.timer",
    ),
    "dagster": Scheduler(
        emit_dagster, "cd {folder} && pip install dagster dagster-webserver && dagster dev"
    ),
    "airflow": Scheduler(emit_airflow, "cp {folder}/{name}_dag.py $AIRFLOW_HOME/dags/"),
    "k8s": Scheduler(emit_kubernetes, "kubectl apply -f {folder}/{name}.cronjob.yaml"),
}
