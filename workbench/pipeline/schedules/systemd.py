"""Units for systemd: a timer that makes up for missed runs, and the service it starts.

A timer never starts a service that is still active, so two runs cannot overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.pipeline.schedules.cron_time import CronTime
from workbench.pipeline.schedules.job import Job

_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def emit(job: Job) -> dict[str, str]:
    """``workbench-NAME.service`` and ``workbench-NAME.timer``."""
    unit = f"workbench-{job.name}"
    head = f"# {job.made_by('systemd')}\n"
    service = [
        "[Unit]",
        f"Description=Pipeline {_specifiers(job.name)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={_specifiers(str(job.folder))}",
        f"Environment={_quoted(f'WORKBENCH_HOME={job.home}')}",
        "# Secrets and servers' addresses, NAME=VALUE lines, mode 0600; need not exist.",
        *([f"# Secrets it needs: {', '.join(job.secrets)}"] if job.secrets else []),
        f"EnvironmentFile=-{_specifiers(str(job.environment_file))}",
        f"ExecStart={' '.join(_argument(word) for word in job.command)}",
        "# 3: refused by a gate, 4: waits for people; the next run goes on from there.",
        "SuccessExitStatus=3 4",
        "# The run ends its own steps when it is told to stop.",
        "KillMode=mixed",
        "TimeoutStopSec=60",
    ]
    timer = [
        "[Unit]",
        f"Description=When pipeline {_specifiers(job.name)} is due",
        "",
        "[Timer]",
        *(f"OnCalendar={when}" for when in calendar(job.time, job.timezone)),
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


def calendar(time: CronTime, timezone: str) -> list[str]:
    """The times in systemd's form; two where cron means "this date or that weekday"."""
    clock = f"{_list(time.hours)}:{_list(time.minutes)}:00 {timezone}"
    date = f"*-{_list(time.months)}-{_list(time.days)}"
    if time.weekdays is None:
        return [f"{date} {clock}"]
    week = ",".join(_DAYS[day] for day in time.weekdays)
    if time.days is None or not time.either_day:
        return [f"{week} {date} {clock}"]
    return [f"{date} {clock}", f"{week} *-{_list(time.months)}-* {clock}"]


def _list(values: Sequence[int] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02d}" for value in values)


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    escaped = _specifiers(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _argument(word: str) -> str:
    # Within ExecStart, $ would stand for a variable.
    return _quoted(word).replace("$", "$$")
