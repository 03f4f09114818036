"""Cron expressions: five fields, understood the way cron does, and checked before they are used."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import ParameterError

_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONGEST_MONTH = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 7, _DAYS),
)


@dataclass(frozen=True)
class CronTime:
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


def parse(expression: str) -> CronTime:
    """Read ``expression``; raises `ParameterError` that names the field and what it may hold."""
    text = _NICKNAMES.get(expression.strip().lower(), " ".join(expression.split()))
    parts = text.split(" ")
    if len(parts) != len(_FIELDS):
        raise ParameterError(
            f"a cron expression has five fields, {expression!r} has {len(parts)}",
            hint="minute hour day month weekday, for example '30 2 * * mon-fri', or @daily",
        )
    values = [_values(part, field) for part, field in zip(parts, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = values
    if weekdays is not None:
        weekdays = tuple(sorted({day % 7 for day in weekdays}))
        weekdays = None if len(weekdays) == len(_DAYS) else weekdays
    _check_it_comes(text, days, months, weekdays)
    return CronTime(text, minutes, hours, days, months, weekdays)


def _values(text: str, field: _Field) -> tuple[int, ...] | None:
    found: set[int] = set()
    for part in text.split(","):
        found.update(_range(part, field))
    if found.issuperset(range(field.low, field.high + 1)):
        return None
    return tuple(sorted(found))


def _range(part: str, field: _Field) -> range:
    span, slash, step = part.partition("/")
    every = _number(step, _Field(f"step of the {field.name}", 1, field.high)) if slash else 1
    if span == "*":
        return range(field.low, field.high + 1, every)
    first, dash, last = span.partition("-")
    low = _number(first, field)
    high = _number(last, field) if dash else (field.high if slash else low)
    if high < low:
        raise ParameterError(f"the {field.name} {span!r} of a cron expression runs backwards")
    return range(low, high + 1, every)


def _number(text: str, field: _Field) -> int:
    if text.lower() in field.names:
        return field.names.index(text.lower()) + field.low
    if text.isascii() and text.isdigit() and field.low <= int(text) <= field.high:
        return int(text)
    names = f", or {field.names[0]} … {field.names[-1]}" if field.names else ""
    raise ParameterError(
        f"{text!r} is no {field.name} of a cron expression",
        hint=f"{field.low} … {field.high}{names}, with *, lists (1,2), ranges (1-5), steps (*/2)",
    )


def _check_it_comes(
    text: str,
    days: tuple[int, ...] | None,
    months: tuple[int, ...] | None,
    weekdays: tuple[int, ...] | None,
) -> None:
    if days is None or months is None or weekdays is not None:
        return
    if all(days[0] > _LONGEST_MONTH.get(month, 31) for month in months):
        raise ParameterError(f"the date of the cron expression {text!r} never comes")
