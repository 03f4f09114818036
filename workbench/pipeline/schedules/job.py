"""What a schedule is made from: the pipeline, a cron expression and the command line of a run."""

from __future__ import annotations

import shlex
import sys
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.pipeline.graph import Pipeline
from workbench.pipeline.parameters import did_you_mean

_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_DAY_NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_LENGTHS = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


@dataclass(frozen=True)
class _CronField:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_CRON_FIELDS = (
    _CronField("minute", 0, 59),
    _CronField("hour", 0, 23),
    _CronField("day of the month", 1, 31),
    _CronField("month", 1, 12, _MONTH_NAMES),
    _CronField("day of the week", 0, 7, _DAY_NAMES),
)


@dataclass(frozen=True)
class CronSchedule:
    """When a job is due: each field as its sorted values, None where it does not restrict.

    ``weekdays`` count from Sunday as 0. As in cron, a day is due when it fits ``days`` or
    ``weekdays`` if both restrict, unless one of them starts with ``*``: then it has to fit both.
    """

    text: str
    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None

    @property
    def either_day(self) -> bool:
        """Whether fitting one of ``days`` and ``weekdays`` is enough."""
        _, _, days, _, weekdays = self.text.split(" ")
        return not days.startswith("*") and not weekdays.startswith("*")


def parse_cron(expression: str) -> CronSchedule:
    """Read ``expression``; raises `ParameterError` that names the field and what it may hold."""
    text = _NICKNAMES.get(expression.strip().lower(), " ".join(expression.split()))
    parts = text.split(" ")
    if len(parts) != len(_CRON_FIELDS):
        raise ParameterError(
            f"a cron expression has five fields, {expression!r} has {len(parts)}",
            hint="minute hour day month weekday, for example '30 2 * * mon-fri', or @daily",
        )
    values = [_field_values(part, field) for part, field in zip(parts, _CRON_FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = values
    if weekdays is not None:
        weekdays = tuple(sorted({day % 7 for day in weekdays}))
        weekdays = None if len(weekdays) == len(_DAY_NAMES) else weekdays
    _check_date_exists(text, days, months, weekdays)
    return CronSchedule(text, minutes, hours, days, months, weekdays)


def _field_values(text: str, field: _CronField) -> tuple[int, ...] | None:
    found: set[int] = set()
    for part in text.split(","):
        found.update(_field_range(part, field))
    if found.issuperset(range(field.low, field.high + 1)):
        return None
    return tuple(sorted(found))


def _field_range(part: str, field: _CronField) -> range:
    span, slash, step = part.partition("/")
    every = (
        _field_number(step, _CronField(f"step of the {field.name}", 1, field.high)) if slash else 1
    )
    if span == "*":
        return range(field.low, field.high + 1, every)
    first, dash, last = span.partition("-")
    low = _field_number(first, field)
    high = _field_number(last, field) if dash else (field.high if slash else low)
    if high < low:
        raise ParameterError(f"the {field.name} {span!r} of a cron expression runs backwards")
    return range(low, high + 1, every)


def _field_number(text: str, field: _CronField) -> int:
    if text.lower() in field.names:
        return field.names.index(text.lower()) + field.low
    if text.isascii() and text.isdigit() and field.low <= int(text) <= field.high:
        return int(text)
    names = f", or {field.names[0]} … {field.names[-1]}" if field.names else ""
    raise ParameterError(
        f"{text!r} is no {field.name} of a cron expression",
        hint=f"{field.low} … {field.high}{names}, with *, lists (1,2), ranges (1-5), steps (*/2)",
    )


def _check_date_exists(
    text: str,
    days: tuple[int, ...] | None,
    months: tuple[int, ...] | None,
    weekdays: tuple[int, ...] | None,
) -> None:
    if days is None or months is None or weekdays is not None:
        return
    if all(days[0] > _MONTH_LENGTHS.get(month, 31) for month in months):
        raise ParameterError(f"the date of the cron expression {text!r} never comes")


# ---- What a schedule is made from: the pipeline, when it is due, and how `workbench run` is called.


@dataclass(frozen=True)
class ScheduledStep:
    """A step of the pipeline file; ``needs`` are the steps of the file it comes after."""

    name: str
    help: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class ScheduledJob:
    """One pipeline, to be run at ``time``.

    Attributes:
        folder: The folder the command was given in: relative values start there.
        given: ``KEY=VALUE`` of the pipeline's parameters.
        secrets: Names of environment variables that the steps ask for.
        threads, memory_gib, gpus: The most that any one step needs.
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


def make_job(
    pipeline: Pipeline,
    place: Workspace,
    given: Mapping[str, str],
    *,
    at: str | None,
    timezone: str | None,
    image: str,
    folder: Path,
) -> ScheduledJob:
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
    _check_timezone(zone)
    pairs = tuple(f"{name}={value}" for name, value in given.items())
    if any(not pair.isprintable() for pair in pairs):
        raise ParameterError("a scheduled parameter cannot hold line breaks or control characters")
    steps = pipeline.steps.values()
    return ScheduledJob(
        name=pipeline.name,
        help=pipeline.definition.help,
        time=parse_cron(when),
        timezone=zone,
        program=Path(sys.executable).parent / "workbench",
        file=pipeline.file,
        folder=folder,
        home=place.root,
        given=pairs,
        steps=_scheduled_steps(pipeline),
        secrets=tuple(sorted({n for step in steps for n in step.contract.declaration.secrets})),
        threads=max(step.resources.threads for step in steps),
        memory_gib=max(step.resources.memory_gib for step in steps),
        gpus=max(step.resources.gpus for step in steps),
        image=image,
    )


def _scheduled_steps(pipeline: Pipeline) -> tuple[ScheduledStep, ...]:
    made = []
    for name in pipeline.definition.steps:
        members = [step for step in pipeline.steps.values() if step.base == name]
        needs = dict.fromkeys(pipeline.steps[n].base for step in members for n in step.needs)
        notebook = pipeline.definition.steps[name].notebook or name
        made.append(ScheduledStep(name, f"notebook {notebook}", tuple(needs)))
    return tuple(made)


def _check_timezone(name: str) -> None:
    known = zoneinfo.available_timezones()
    if known and name not in known:
        raise ParameterError(
            f"unknown time zone {name!r}{did_you_mean(name, sorted(known))}",
            hint="A name such as UTC or Europe/Berlin",
        )
