"""A DAG file for Airflow: a task for each step of the pipeline file."""

from __future__ import annotations

from workbench.pipeline.schedules import generated
from workbench.pipeline.schedules.job import Job


def emit(job: Job) -> dict[str, str]:
    """``NAME_dag.py``, for the DAGs folder."""
    return {f"{job.name}_dag.py": generated.python("airflow_dag.py.in", job, "airflow")}
