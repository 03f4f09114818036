"""Files for cron, systemd, Airflow, Dagster and Kubernetes.

Each emitter takes a job (pipeline, cron expression, command line of a run) and returns the text of
each file; equal jobs give equal bytes. In every system a run is not started while the previous one
is active, a missed run is made up for once where the system can, exit statuses 3 (refused by a
gate) and 4 (waiting for people) are no failures, and the next run continues what a run waited for,
because a rerun is a resume.

Values reach a file through the writer of its format: `_write_lines`, where a line stays one line,
Python literals, and YAML. None is pasted into text that is read again.
"""

from __future__ import annotations

import difflib
import pprint
import re
import shlex
import sys
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from croniter import (  # type: ignore[import-untyped]
    CroniterBadDateError,
    CroniterError,
    croniter,
)

from workbench.core.errors import ParameterError
from workbench.core.names import invalid_on_a_line, shown
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.pipeline.graph import Pipeline

__all__ = ()


_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = {"minute": 60, "hour": 24, "day of the month": 31, "month": 12, "day of the week": 7}
"""Field to its number of values."""

_ELEMENT = re.compile(r"(?ai)(?:\*|(\d+|[a-z]{3})(?:-(\d+|[a-z]{3}))?)(?:/\d+)?")
"""What every cron understands; croniter also accepts wrapped ranges, ``L``, ``#`` and ``R``."""


@dataclass(frozen=True)
class _CronSchedule:
    """When a job is due: each field as its sorted values, None where it does not restrict.

    ``weekdays`` count from Sunday as 0. As in cron, a day is due when it matches ``days`` or
    ``weekdays`` if both restrict, unless one of them starts with ``*``: then it must match both.
    """

    text: str
    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None

    @property
    def either_day(self) -> bool:
        """Whether matching one of ``days`` and ``weekdays`` is enough."""
        _, _, days, _, weekdays = self.text.split(" ")
        return not days.startswith("*") and not weekdays.startswith("*")


def parse_cron(expression: str) -> _CronSchedule:
    """Parse a cron expression of five fields, or a nickname such as ``@daily``.

    Raises:
        ParameterError: A field is invalid, or no date ever matches.
    """
    text = _NICKNAMES.get(expression.strip().lower(), " ".join(expression.split()))
    parts = text.split(" ")
    if len(parts) != len(_FIELDS):
        raise ParameterError(
            f"invalid cron expression {expression!r}: expected 5 fields, got {len(text.split())}",
            hint="minute hour day month weekday, for example '30 2 * * mon-fri', or @daily",
        )
    fields = [_field_values(part, position) for position, part in enumerate(parts)]
    try:
        croniter(text).get_next()
    except CroniterBadDateError as error:
        raise ParameterError(f"the date of cron expression {text!r} never occurs") from error
    return _CronSchedule(text, *fields)


def _field_values(text: str, position: int) -> tuple[int, ...] | None:
    """The values of one field, None when it allows all of them."""

    def expand(field: str) -> list[int | str]:
        fields = ["*"] * len(_FIELDS)
        fields[position] = field
        return list(croniter.expand(" ".join(fields))[0][position])

    def number(text: str) -> int:
        return int(text) if text.isdecimal() else int(expand(text)[0])

    name = list(_FIELDS)[position]
    try:
        for element in text.split(","):
            match = _ELEMENT.fullmatch(element)
            if match is None:
                raise ValueError(f"{element!r} is not understood")
            first, last = match.groups()
            if last and number(last) < number(first):
                raise ValueError(f"the range {element!r} is reversed")
        values = expand(text)
    except (CroniterError, ValueError) as error:
        raise ParameterError(
            f"invalid {name} in a cron expression: {text!r}",
            hint="Numbers or names, with *, lists (1,2), ascending ranges (1-5) and steps (*/2)",
        ) from error
    numbers = tuple(sorted({int(value) for value in values if value != "*"}))
    return None if not numbers or len(numbers) == _FIELDS[name] else numbers


@dataclass(frozen=True)
class _ScheduledStep:
    """A step of the pipeline file; ``needs`` are the steps of the file that it comes after."""

    name: str
    help: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class ScheduledJob:
    """One pipeline, to be run at ``time``.

    Attributes:
        program: The `workbench` executable.
        folder: The folder the command was given in, which relative values start from.
        home: The workspace folder.
        given: ``KEY=VALUE`` of the pipeline's parameters.
        secrets: Names of environment variables that the steps ask for.
        threads, memory_gib, gpus: The most that any one step needs.
        image: Container image for Kubernetes.
    """

    name: str
    help: str
    time: _CronSchedule
    timezone: str
    program: Path
    file: Path
    folder: Path
    home: Path
    given: tuple[str, ...]
    steps: tuple[_ScheduledStep, ...]
    secrets: tuple[str, ...]
    threads: int
    memory_gib: float
    gpus: float
    image: str

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command line of a run, with absolute paths."""
        return (str(self.program), "run", str(self.file), *self.parameters)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(part for pair in self.given for part in ("-p", pair))

    @property
    def environment_file(self) -> Path:
        """A file for secrets and addresses of servers, as ``NAME=VALUE`` lines."""
        return self.home / "secrets" / "schedule.env"

    def origin(self, system: str) -> str:
        """The comment that every file starts with: the command that generates it."""
        words = ["workbench", "schedule", self.file.name, "--for", system, "--at", self.time.text]
        if self.timezone != "UTC":
            words += ["--timezone", self.timezone]
        return f"# Generated by: {shlex.join([*words, *self.parameters])}"


def make_job(
    pipeline: Pipeline,
    workspace: Workspace,
    given: Mapping[str, str],
    *,
    at: str | None,
    timezone: str | None,
    image: str,
    folder: Path,
) -> ScheduledJob:
    """Collect what schedulers need to know about a pipeline.

    Args:
        given: Parameters of the pipeline, as texts.
        at: Cron expression; None takes the one in the pipeline file.
        timezone: Name such as Europe/Berlin; None takes the pipeline file's, or UTC.
        image: Container image for Kubernetes.
        folder: Folder that relative parameter values start from.

    Raises:
        ParameterError: No schedule is given, or it or a parameter is invalid.
    """
    declared = pipeline.definition.schedule
    expression = at or (declared.cron if declared else None)
    if expression is None:
        raise ParameterError(
            "the pipeline has no schedule",
            where=pipeline.file.name,
            hint="Pass --at '0 2 * * *', or write `schedule: {cron: …}` into the pipeline file",
        )
    zone = timezone or (declared.timezone if declared else "UTC")
    known = zoneinfo.available_timezones()
    if known and zone not in known:
        near = difflib.get_close_matches(zone, known, n=1)
        raise ParameterError(
            f"unknown time zone {zone!r}",
            hint=f"Did you mean {near[0]!r}?" if near else "Use a name such as Europe/Berlin",
        )
    pairs = tuple(f"{name}={value}" for name, value in given.items())
    for text in (*pairs, zone, str(pipeline.file), str(folder), image):
        if any(map(invalid_on_a_line, text)):
            raise ParameterError(
                "a schedule cannot hold line breaks or control characters", where=shown(text)
            )
    steps = pipeline.steps.values()
    return ScheduledJob(
        name=pipeline.name,
        help=pipeline.definition.help,
        time=parse_cron(expression),
        timezone=zone,
        program=Path(sys.executable).parent / "workbench",
        file=pipeline.file,
        folder=folder,
        home=workspace.root,
        given=pairs,
        steps=tuple(_scheduled_steps(pipeline)),
        secrets=tuple(sorted({n for step in steps for n in step.contract.declaration.secrets})),
        threads=max(step.resources.threads for step in steps),
        memory_gib=max(step.resources.memory_gib for step in steps),
        gpus=max(step.resources.gpus for step in steps),
        image=image,
    )


def _scheduled_steps(pipeline: Pipeline) -> list[_ScheduledStep]:
    steps = []
    for name, definition in pipeline.definition.steps.items():
        members = [step for step in pipeline.steps.values() if step.base == name]
        needs = dict.fromkeys(pipeline.steps[n].base for step in members for n in step.needs)
        help_text = f"notebook {definition.notebook or name}"
        steps.append(_ScheduledStep(name, help_text, tuple(needs)))
    return steps


_WILDCARDS = frozenset("*[?")
_LOCK_BUSY = 75  # EX_TEMPFAIL: flock's exit status when another process holds the lock
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_TEMPLATES = Path(__file__).parent / "templates"


def _write_lines(lines: Sequence[str]) -> str:
    """A file of lines, for formats in which a line break starts another entry.

    Raises:
        ParameterError: A line has a line break or another control character, or ends with a
            backslash, which would join it with the next one.
    """
    for line in lines:
        if line.endswith("\\") or any(map(invalid_on_a_line, line)):
            raise ParameterError(
                f"a schedule cannot hold {shown(line)}: it is more than one line",
                hint="Rename the file or folder, or change the parameter",
            )
    return "\n".join(lines) + "\n"


def _emit_cron(job: ScheduledJob) -> dict[str, str]:
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
        f'{_LOCK_BUSY}) echo "skipped: the previous run is still active" >>{log} ;; '
        f"*) tail -n 40 {log}; exit $status ;; esac"
    )
    if r"\%" in command:
        raise ParameterError(
            "a crontab cannot hold a backslash before %: crons read it differently",
            where=shown(" ".join(job.command)),
            hint="Change the parameter, or use systemd",
        )
    # In a crontab a bare % ends the command and starts its standard input.
    line = f"{job.time.text} {command}".replace("%", r"\%")
    lines = [
        job.origin("cron"),
        f"# Runs {job.name}. Output goes to {log}; cron mails the last lines when a run fails.",
        "# cron does not make up for runs missed while the machine was off; systemd timers do.",
        f"# Secrets and server addresses: NAME=VALUE lines in {variables}, mode 0600.",
        *([f"# Required secrets: {', '.join(job.secrets)}"] if job.secrets else []),
        "# For all lines below, in cronie; other crons use the machine's time zone.",
        f"CRON_TZ={job.timezone}",
        line,
    ]
    return {f"{job.name}.cron": _write_lines(lines)}


def _emit_systemd(job: ScheduledJob) -> dict[str, str]:
    """``workbench-NAME.service`` and ``workbench-NAME.timer``.

    A timer never starts a service that is active, so two runs cannot overlap.
    """
    unit = f"workbench-{job.name}"
    if not job.name.isascii():
        raise ParameterError(
            f"systemd has no unit {job.name!r}", hint="Rename the pipeline: ASCII letters only"
        )
    service = [
        job.origin("systemd"),
        "[Unit]",
        f"Description=Pipeline {_escape_specifiers(job.name)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={_unquoted(job.folder)}",
        f"Environment={_quote(f'WORKBENCH_HOME={job.home}')}",
        "# Secrets and server addresses: NAME=VALUE lines, mode 0600; optional.",
        *([f"# Required secrets: {', '.join(job.secrets)}"] if job.secrets else []),
        f"EnvironmentFile=-{_unquoted(job.environment_file)}",
        # The program's path is no place for variables, so its $ stays as it is.
        f"ExecStart={_quote(job.command[0])} {' '.join(map(_quote_argument, job.command[1:]))}",
        "# 3: refused by a gate, 4: waiting for people; the next run continues.",
        "SuccessExitStatus=3 4",
        "# The run stops its own steps.",
        "KillMode=mixed",
        "TimeoutStopSec=60",
    ]
    timer = [
        job.origin("systemd"),
        "[Unit]",
        f"Description=Schedule of pipeline {_escape_specifiers(job.name)}",
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
        f"{unit}.service": _write_lines(service),
        f"{unit}.timer": _write_lines(timer),
    }


def systemd_calendar(time: _CronSchedule, timezone: str) -> list[str]:
    """OnCalendar expressions for a cron schedule.

    Returns:
        One expression; two where cron means "this date or that weekday".
    """
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


def _unquoted(path: Path) -> str:
    """A path where systemd takes the rest of the line, without the spaces around it."""
    text = str(path)
    if text != text.strip():
        raise ParameterError("systemd drops the spaces around a path", where=shown(text))
    if set(text) & _WILDCARDS:
        raise ParameterError("systemd reads * and [ in a path as wildcards", where=shown(text))
    return _escape_specifiers(text)


def _quote(text: str) -> str:
    escaped = _escape_specifiers(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _quote_argument(word: str) -> str:
    # $ starts a variable in ExecStart.
    return _quote(word).replace("$", "$$")


def _render_template(template: str, job: ScheduledJob, system: str) -> str:
    """The template with ``JOB`` set to a literal of everything that it needs."""
    names = {step.name: _python_identifier(step.name) for step in job.steps}
    if len(set(names.values())) < len(names):
        raise ParameterError(
            f"step names are not unique as {system} names",
            where=job.file.name,
            hint=f"Letters, digits and _ must differ; rename one of: {', '.join(names)}",
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
    values = {"@ORIGIN@": _write_lines([job.origin(system)]).rstrip("\n"), "@JOB@": literal}
    # In one pass: a value that looks like a placeholder is not one.
    return re.sub("|".join(values), lambda match: values[match[0]], text)


def _python_identifier(name: str) -> str:
    """``name`` with only the characters that Dagster and Airflow allow in names."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "_"


def _emit_airflow(job: ScheduledJob) -> dict[str, str]:
    """``NAME_dag.py``, for the DAGs folder: a task for each step."""
    return {f"{job.name}_dag.py": _render_template("airflow_dag.py.in", job, "airflow")}


_DAGSTER_PROJECT = (
    'version = "1"',
    'requires-python = ">=3.10"',
    'dependencies = ["dagster>=1.10", "dagster-pipes>=1.10"]',
    "",
    "[tool.dagster]",
    'python_file = "definitions.py"',
)


def _emit_dagster(job: ScheduledJob) -> dict[str, str]:
    """A project: ``definitions.py`` with an asset for each step, and the program it launches.

    Steps run in the workbench's own environment, through Dagster Pipes.
    """
    name = _python_identifier(job.name).replace("_", "-").strip("-")
    head = (job.origin("dagster"), "[project]", f'name = "workbench-{name}"')
    return {
        "definitions.py": _render_template("dagster_definitions.py.in", job, "dagster"),
        "run_step.py": _render_template("dagster_run_step.py.in", job, "dagster"),
        "pyproject.toml": _write_lines((*head, *_DAGSTER_PROJECT)),
    }


_IMAGE_PROJECT = "/workbench"
"""The project folder in the image."""

_CONTAINER_HOME = "/data/.workbench"
_MAX_NAME_LENGTH = 52  # Kubernetes appends to a CronJob's name for its jobs
# Kubernetes takes only exit status 0 for success. The shell is process 1, which ignores SIGTERM
# without a trap; it forwards the signal so that the run can stop its steps.
_RUN_SCRIPT = """\
workbench run "$@" & run=$!
trap 'kill -TERM "$run"; wait "$run"; exit 143' TERM INT
wait "$run"; status=$?
case $status in 3|4) exit 0 ;; *) exit "$status" ;; esac
"""


def _emit_kubernetes(job: ScheduledJob) -> dict[str, str]:
    """``NAME.cronjob.yaml``: a CronJob, and a volume that keeps the workspace between runs."""
    name = _kubernetes_name(job.name)
    head = [
        job.origin("k8s"),
        f"# The image has the project in {_IMAGE_PROJECT} and `workbench` on its PATH.",
        f"# Server addresses and tokens: Secret {name}-servers (optional).",
    ]
    documents = (_volume(name), _cron_job(job, name))
    text = "---\n".join(yaml.safe_dump(one, sort_keys=False, width=100) for one in documents)
    return {f"{job.name}.cronjob.yaml": _write_lines(head) + text}


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
            "startingDeadlineSeconds": 3600,  # a missed run starts within the hour
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 1,  # after a lost node the second pod resumes the run
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
    # The device plugin accepts whole GPUs only, as a limit.
    return {"requests": requests, "limits": {"nvidia.com/gpu": str(max(1, round(job.gpus)))}}


def _secret_variable(name: str, secret: str) -> Json:
    reference = {"name": f"{name}-secrets", "key": secret}
    return {"name": secret, "valueFrom": {"secretKeyRef": reference}}


def _pipeline_path(job: ScheduledJob) -> str:
    """The pipeline file relative to the project, which is the parent of its folder."""
    return f"{job.file.parent.name}/{job.file.name}"


def _escape_variables(word: str) -> str:
    # Kubernetes inserts a variable for $(NAME), and takes $$ for one $.
    return word.replace("$", "$$")


def _kubernetes_name(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or len(name) > _MAX_NAME_LENGTH:
        raise ParameterError(
            f"invalid Kubernetes name {text!r}",
            hint=f"Rename the pipeline: letters and digits, at most {_MAX_NAME_LENGTH}",
        )
    return name


@dataclass(frozen=True)
class _Scheduler:
    """One scheduler.

    Attributes:
        emit: Makes the text of each file, by file name.
        install: Command that installs the files, with ``{folder}`` and ``{name}`` to fill in,
            both quoted for a shell.
    """

    emit: Callable[[ScheduledJob], dict[str, str]]
    install: str


SCHEDULERS: Mapping[str, _Scheduler] = {
    "cron": _Scheduler(
        _emit_cron, "(crontab -l 2>/dev/null; cat {folder}/{name}.cron) | crontab -"
    ),
    "systemd": _Scheduler(
        _emit_systemd,
        "cp {folder}/workbench-{name}.* ~/.config/systemd/user/ && systemctl --user daemon-reload "
        "&& systemctl --user enable --now workbench-{name}.timer",
    ),
    "dagster": _Scheduler(
        _emit_dagster, "cd {folder} && pip install dagster dagster-webserver && dagster dev"
    ),
    "airflow": _Scheduler(_emit_airflow, "cp {folder}/{name}_dag.py $AIRFLOW_HOME/dags/"),
    "k8s": _Scheduler(_emit_kubernetes, "kubectl apply -f {folder}/{name}.cronjob.yaml"),
}
