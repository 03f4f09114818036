"""What a schedule is made from: the pipeline, when it is due, and how `workbench run` is called."""

from __future__ import annotations

import shlex
import sys
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ParameterError
from workbench.pipeline.contracts.parameters import nearest
from workbench.pipeline.definition.graph import Pipeline
from workbench.pipeline.schedules import cron_time
from workbench.pipeline.schedules.cron_time import CronTime
from workbench.workspace import Workspace


@dataclass(frozen=True)
class ScheduledStep:
    """A step of the pipeline file; ``needs`` are the steps of the file it comes after."""

    name: str
    help: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One pipeline, to be run at ``time``.

    Attributes:
        folder: The folder the command was given in: relative values start there.
        given: ``KEY=VALUE`` of the pipeline's parameters.
        secrets: Names of environment variables that the steps ask for.
        threads, memory_gib, gpus: The most that any one step needs.
    """

    name: str
    help: str
    time: CronTime
    timezone: str
    program: Path
    file: Path
    folder: Path
    home: Path
    given: tuple[str, ...]
    steps: tuple[ScheduledStep, ...]
    secrets: tuple[str, ...]
    threads: int
    memory_gib: float
    gpus: float
    image: str

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command line of a run, every path absolute."""
        return (str(self.program), "run", str(self.file), *self.parameters)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(part for pair in self.given for part in ("-p", pair))

    @property
    def environment_file(self) -> Path:
        """Where values of secrets and addresses of servers may stand, as ``NAME=VALUE`` lines."""
        return self.home / "secrets" / "schedule.env"

    def made_by(self, system: str) -> str:
        """The comment that every file starts with: how to make it again."""
        words = ["workbench", "schedule", self.file.name, "--for", system, "--at", self.time.text]
        if self.timezone != "UTC":
            words += ["--timezone", self.timezone]
        return f"Made by: {shlex.join([*words, *self.parameters])}"


def make(
    pipeline: Pipeline,
    place: Workspace,
    given: Mapping[str, str],
    *,
    at: str | None,
    timezone: str | None,
    image: str,
    folder: Path,
) -> Job:
    """Collect what schedulers are told; raises `ParameterError` when no time is known."""
    declared = pipeline.definition.schedule
    when = at or (declared.cron if declared else None)
    if when is None:
        raise ParameterError(
            "nothing says when this pipeline is due",
            where=pipeline.file.name,
            hint="Pass --at '0 2 * * *', or write `schedule: {cron: …}` into the pipeline file",
        )
    zone = timezone or (declared.timezone if declared else "UTC")
    _check_zone(zone)
    pairs = tuple(f"{name}={value}" for name, value in given.items())
    if any(not pair.isprintable() for pair in pairs):
        raise ParameterError("a scheduled parameter cannot hold line breaks or control characters")
    steps = pipeline.steps.values()
    return Job(
        name=pipeline.name,
        help=pipeline.definition.help,
        time=cron_time.parse(when),
        timezone=zone,
        program=Path(sys.executable).parent / "workbench",
        file=pipeline.file,
        folder=folder,
        home=place.root,
        given=pairs,
        steps=_steps(pipeline),
        secrets=tuple(sorted({n for step in steps for n in step.contract.declaration.secrets})),
        threads=max(step.resources.threads for step in steps),
        memory_gib=max(step.resources.memory_gib for step in steps),
        gpus=max(step.resources.gpus for step in steps),
        image=image,
    )


def _steps(pipeline: Pipeline) -> tuple[ScheduledStep, ...]:
    made = []
    for name in pipeline.definition.steps:
        members = [step for step in pipeline.steps.values() if step.base == name]
        needs = dict.fromkeys(pipeline.steps[n].base for step in members for n in step.needs)
        notebook = pipeline.definition.steps[name].notebook or name
        made.append(ScheduledStep(name, f"notebook {notebook}", tuple(needs)))
    return tuple(made)


def _check_zone(name: str) -> None:
    known = zoneinfo.available_timezones()
    if known and name not in known:
        raise ParameterError(
            f"unknown time zone {name!r}{nearest(name, sorted(known))}",
            hint="A name such as UTC or Europe/Berlin",
        )
