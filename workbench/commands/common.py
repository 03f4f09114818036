"""What every command shares: where its workspace is, ``--json``, and progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

Progress = Callable[[int, int], None]
"""Called with pieces of work done and in all."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)


def emit(value: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Print the result: the object for machines, or ``text`` for people."""
    click.echo(json.dumps(value, sort_keys=True) if as_json else text)


def say(message: str) -> None:
    """A line for the person watching; never mixed into a machine's output."""
    click.echo(message, err=True)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A bar on standard error; when that is no terminal, a line every tenth of the work."""
    if not sys.stderr.isatty():
        yield _milestones(description)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        row = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def _milestones(description: str) -> Progress:
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(total, 1)
        if tenth != last:
            last = tenth
            say(f"{description}: {done} of {total}")

    return report
