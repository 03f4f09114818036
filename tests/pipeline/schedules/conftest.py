"""A job of the trial pipeline, and a stub of `workbench` with a chosen exit status."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.core.workspace import Workspace
from workbench.pipeline import graph, schedules
from workbench.pipeline.schedules import ScheduledJob

MakeJob = Callable[..., ScheduledJob]


@pytest.fixture
def make_job(project: Path, workspace: Workspace) -> MakeJob:
    """Called with ``at`` and pipeline parameters."""

    def make(
        at: str | None = "30 2 * * *", timezone: str | None = None, **given: str
    ) -> ScheduledJob:
        pipeline = graph.load_pipeline(project / "pipelines/trial.yaml", given, base=project)
        return schedules.make_job(
            pipeline,
            workspace,
            given,
            at=at,
            timezone=timezone,
            image="registry/workbench:1",
            folder=project,
        )

    return make


@pytest.fixture
def ends_with(tmp_path: Path) -> Callable[[ScheduledJob, int], ScheduledJob]:
    """The job with a stub that prints its arguments and exits with a status."""

    def changed(scheduled: ScheduledJob, status: int, waits_s: float = 0) -> ScheduledJob:
        program = tmp_path / "stand in" / "workbench"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\nfor word in "$@"; do echo "[$word]"; done\necho "home=$WORKBENCH_HOME"\n'
            f"sleep {waits_s}\nexit {status}\n"
        )
        program.chmod(0o755)
        return dataclasses.replace(scheduled, program=program)

    return changed
