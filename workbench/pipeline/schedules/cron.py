"""A line for cron: silent when all is well, mail when a run failed, never two runs at once."""

from __future__ import annotations

import shlex

from workbench.pipeline.schedules.job import Job

_BUSY = 75  # EX_TEMPFAIL: flock says with it that somebody else holds the lock


def emit(job: Job) -> dict[str, str]:
    """``NAME.cron``, to be added to a crontab."""
    lock = shlex.quote(str(job.home / "locks" / f"schedule-{job.name}.lock"))
    log = shlex.quote(str(job.home / "schedules" / f"{job.name}.log"))
    folders = " ".join(shlex.quote(str(job.home / name)) for name in ("locks", "schedules"))
    variables = shlex.quote(str(job.environment_file))
    command = (
        f"cd {shlex.quote(str(job.folder))} && mkdir -p {folders} && "
        f"{{ [ ! -r {variables} ] || {{ set -a; . {variables}; set +a; }}; }} && "
        f"WORKBENCH_HOME={shlex.quote(str(job.home))} flock -n -E {_BUSY} {lock} "
        f"{shlex.join(job.command)} >>{log} 2>&1; status=$?; case $status in 0|3|4) ;; "
        f'{_BUSY}) echo "the run before is still at work: this one is left out" >>{log} ;; '
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
