"""Schedules in the forms of systems that people already run; there is no scheduler of our own.

Each emitter takes a `Job` and gives files. Same job, same bytes. What they share: a run that is
still at work is not joined by a second one, a run that was missed is made up for once where the
system can, exit statuses 3 (refused by a gate) and 4 (waits for people) are no failures, and what
a run waits for is met by the next one, because a rerun is a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workbench.pipeline.schedules import airflow, cron, dagster, kubernetes, systemd
from workbench.pipeline.schedules.job import Job


@dataclass(frozen=True)
class System:
    """One scheduler: how its files are made, and what a person does with them."""

    emit: Callable[[Job], dict[str, str]]
    install: str


SYSTEMS: Mapping[str, System] = {
    "cron": System(cron.emit, "(crontab -l 2>/dev/null; cat {folder}/{name}.cron) | crontab -"),
    "systemd": System(
        systemd.emit,
        "cp {folder}/workbench-{name}.* ~/.config/systemd/user/ && systemctl --user daemon-reload "
        "&& systemctl --user enable --now workbench-{name}.timer",
    ),
    "dagster": System(
        dagster.emit, "cd {folder} && pip install dagster dagster-webserver && dagster dev"
    ),
    "airflow": System(airflow.emit, "cp {folder}/{name}_dag.py $AIRFLOW_HOME/dags/"),
    "k8s": System(kubernetes.emit, "kubectl apply -f {folder}/{name}.cronjob.yaml"),
}

__all__ = ["SYSTEMS", "Job", "System"]
