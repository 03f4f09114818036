"""Cron expressions: their meaning, and the messages for invalid ones."""

from __future__ import annotations

import re

import pytest

from workbench.core.errors import ParameterError
from workbench.pipeline.schedules import parse_cron, systemd_calendar


def test_every_form_of_a_field_is_parsed() -> None:
    time = parse_cron(" */20 1-5/2,23  1,15 jan,jul mon-fri ")
    assert time.text == "*/20 1-5/2,23 1,15 jan,jul mon-fri"
    assert time.minutes == (0, 20, 40)
    assert time.hours == (1, 3, 5, 23)
    assert time.days == (1, 15)
    assert time.months == (1, 7)
    assert time.weekdays == (1, 2, 3, 4, 5)
    assert time.either_day


def test_sunday_is_0_and_7_and_a_whole_range_does_not_restrict() -> None:
    assert parse_cron("0 0 * * 7").weekdays == parse_cron("0 0 * * sun").weekdays == (0,)
    whole = parse_cron("0-59 0-23 1-31 1-12 0-6")
    assert (whole.minutes, whole.hours, whole.days, whole.months, whole.weekdays) == (None,) * 5
    assert parse_cron("0 5/6 * * *").hours == (5, 11, 17, 23)
    assert parse_cron("@daily").text == "0 0 * * *"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("* * * *", "expected 5 fields, got 4"),
        ("", "expected 5 fields, got 0"),
        ("61 * * * *", "invalid minute in a cron expression: '61'"),
        ("* 24 * * *", "invalid hour in a cron expression: '24'"),
        ("* * 0 * *", "invalid day of the month in a cron expression: '0'"),
        ("* * * januar *", "invalid month in a cron expression: 'januar'"),
        ("* * * * fun", "invalid day of the week in a cron expression: 'fun'"),
        ("*/0 * * * *", "invalid minute"),
        ("9-3 * * * *", "invalid minute"),
        ("* * * * sat-sun", "invalid day of the week"),
        ("1,, * * * *", "invalid minute"),
        ("² * * * *", "invalid minute"),
        ("* * L * *", "invalid day of the month"),
        ("* * * * 5#2", "invalid day of the week"),
        ("R * * * *", "invalid minute"),
        ("0 0 30 2 *", "never occurs"),
        ("0 2 * * *; rm -rf /", "got 8"),
    ],
)
def test_invalid_expressions_are_rejected(expression: str, message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        parse_cron(expression)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["*-*-* 02:30:00 UTC"]),
        ("*/30 8,20 * * mon,wed", ["Mon,Wed *-*-* 08,20:00,30:00 UTC"]),
        ("0 0 1 */6 *", ["*-01,07-01 00:00:00 UTC"]),
        # Cron: the 1st, and every Monday besides …
        ("0 0 1 * 1", ["*-*-01 00:00:00 UTC", "Mon *-*-* 00:00:00 UTC"]),
        # … but with a star in either, only a Monday that is also on an odd date.
        ("0 0 */2 * 1", ["Mon *-*-" + ",".join(f"{d:02d}" for d in range(1, 32, 2))]),
    ],
)
def test_systemd_gets_the_same_times(expression: str, expected: list[str]) -> None:
    lines = systemd_calendar(parse_cron(expression), "UTC")
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
