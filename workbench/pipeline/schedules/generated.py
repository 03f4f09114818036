"""Python files for schedulers: a template of this package with the job's data written into it."""

from __future__ import annotations

import pprint
import re
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError
from workbench.pipeline.schedules.job import Job

Json = dict[str, Any]

_TEMPLATES = Path(__file__).parent / "templates"


def python(template: str, job: Job, system: str) -> str:
    """The text of ``templates/NAME`` with ``JOB`` set to what the job needs, as literals."""
    names = {step.name: identifier(step.name) for step in job.steps}
    if len(set(names.values())) < len(names):
        raise ParameterError(
            "two steps differ only in characters that cannot stand in a name there",
            where=job.file.name,
            hint=f"Rename one of: {', '.join(names)}",
        )
    data: Json = {
        "name": identifier(job.name),
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


def identifier(name: str) -> str:
    """``name`` with what Dagster and Airflow do not take in names replaced."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "_"
