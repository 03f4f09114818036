"""What the commands share: `--json`, messages, progress bars, references, the Label Studio client."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.records.base import Ref, kind_of

if TYPE_CHECKING:
    from workbench.labeling import LabelStudio


Progress = Callable[[int, int], None]
"""Called with pieces of work done and in all."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)


def print_result(value: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Print the result: the object for machines, or ``text`` for people."""
    click.echo(json.dumps(value, sort_keys=True) if as_json else text)


def info(message: str) -> None:
    """A line for the person watching; never mixed into a machine's output."""
    click.echo(message, err=True)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A bar on standard error; when that is no terminal, a line every tenth of the work."""
    if not sys.stderr.isatty():
        yield _progress_lines(description)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        row = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def _progress_lines(description: str) -> Progress:
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(total, 1)
        if tenth != last:
            last = tenth
            info(f"{description}: {done} of {total}")

    return report


# ---- What the ``label`` commands share: the server, references, short names.


def connect_label_studio(place: Workspace) -> LabelStudio:
    """The server of this workspace, as its administrator."""
    from workbench import labeling, services

    admin = services.label_studio_admin(place)
    return labeling.connect(admin.url, admin.token)


def resolve_ref(place: Workspace, reference: str, kinds: tuple[str, ...]) -> Ref:
    """The record that is meant, which must be of one of these kinds."""
    from workbench.records import references

    ref = references.resolve_reference(place, reference)
    if kind_of(ref) not in kinds:
        raise ParameterError(
            f"expected a {' or a '.join(kinds)}, and this is a {kind_of(ref)}", where=ref
        )
    return ref


def short_ref(ref: Ref) -> str:
    """A reference as people type it."""
    kind, _, name = ref.partition("/")
    return f"{kind}/{name[:12]}"
