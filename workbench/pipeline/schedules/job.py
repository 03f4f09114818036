"""What a schedule is made from: the pipeline, a cron expression and the command line of a run."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from croniter import (  # type: ignore[import-untyped]
    CroniterBadDateError,
    CroniterError,
    croniter,
)

from workbench.core.errors import ParameterError
from workbench.core.names import invalid_on_a_line, shown
from workbench.core.workspace import Workspace
from workbench.pipeline.graph import Pipeline

__all__ = ["make_job"]

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
class CronSchedule:
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


def parse_cron(expression: str) -> CronSchedule:
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
    return CronSchedule(text, *fields)


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
class ScheduledStep:
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
    time: CronSchedule
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


def _scheduled_steps(pipeline: Pipeline) -> list[ScheduledStep]:
    steps = []
    for name, definition in pipeline.definition.steps.items():
        members = [step for step in pipeline.steps.values() if step.base == name]
        needs = dict.fromkeys(pipeline.steps[n].base for step in members for n in step.needs)
        help_text = f"notebook {definition.notebook or name}"
        steps.append(ScheduledStep(name, help_text, tuple(needs)))
    return steps
