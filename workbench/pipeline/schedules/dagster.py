"""A Dagster project: an asset for each step, run in the workbench's own environment by Pipes."""

from __future__ import annotations

from workbench.pipeline.schedules import generated
from workbench.pipeline.schedules.job import Job

_PROJECT = """\
{made_by}
[project]
name = "workbench-{name}"
version = "1"
requires-python = ">=3.10"
dependencies = ["dagster>=1.10", "dagster-pipes>=1.10"]

[tool.dagster]
python_file = "definitions.py"
"""


def emit(job: Job) -> dict[str, str]:
    """``definitions.py``, the program it launches, and what makes a project of them."""
    made_by = f"# {job.made_by('dagster')}"
    name = generated.identifier(job.name).replace("_", "-").strip("-")
    return {
        "definitions.py": generated.python("dagster_definitions.py.in", job, "dagster"),
        "run_step.py": generated.python("dagster_run_step.py.in", job, "dagster"),
        "pyproject.toml": _PROJECT.format(made_by=made_by, name=name),
    }
