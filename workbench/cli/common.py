"""What the commands share: `--json`, messages, progress bars, references, Label Studio's client."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from workbench.core.errors import ParameterError
from workbench.core.text import terminal_text
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace
from workbench.records.base import Ref, kind_of

if TYPE_CHECKING:
    from workbench.labeling import LabelStudio

__all__ = ()

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)


class GroupWithDefault(click.Group):
    """A group that is a command, too: ``mine DATASET`` beside ``mine report SELECTION``.

    Arguments that do not begin with a subcommand go to the hidden subcommand ``default``, a
    `DefaultCommand`, whose options the help of the group shows.
    """

    default = "default"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return self.commands[self.default].collect_usage_pieces(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[self.default].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


class _DefaultContext(click.Context):
    @property
    def command_path(self) -> str:
        return self.parent.command_path if self.parent else super().command_path


class DefaultCommand(click.Command):
    """The default of a `GroupWithDefault`: usage and errors show the name of the group."""

    context_class = _DefaultContext


def print_result(value: Json, *, as_json: bool, text: str, styled: bool = False) -> None:
    """Print the result of a command: ``value`` with ``--json``, else ``text``.

    Args:
        styled: The text has colours, and what stands in it went through `terminal_text`.
    """
    shown = text if styled else terminal_text(text)
    click.echo(json.dumps(value, sort_keys=True) if as_json else shown)


def info(message: str) -> None:
    """Print a message on standard error, so that it never mixes with a JSON result."""
    click.echo(terminal_text(message), err=True)


def warn_of_damaged(records: Mapping[Ref, str]) -> None:
    """Name the records that a list leaves out."""
    for ref, problem in records.items():
        info(f"left out: {ref}: {problem}")
    if records:
        info("`workbench doctor --records` repairs what can be repaired")


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A progress bar with ETA on a terminal; otherwise a line for every tenth of the work."""
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


def connect_label_studio(workspace: Workspace) -> LabelStudio:
    """Label Studio of this workspace, as its administrator."""
    from workbench import labeling, services

    admin = services.label_studio_admin(workspace)
    return labeling.connect(admin.url, admin.token)


def resolve_ref(workspace: Workspace, reference: str, kinds: tuple[str, ...]) -> Ref:
    """The record that ``reference`` names.

    Raises:
        RecordError: There is no such record, or several match.
        ParameterError: The record is of none of ``kinds``.
    """
    from workbench.records.references import resolve_reference

    ref = resolve_reference(workspace, reference, kinds)
    if kind_of(ref) not in kinds:
        raise ParameterError(f"expected a {' or '.join(kinds)}, not a {kind_of(ref)}", where=ref)
    return ref


def first_rows(rows: list[str], limit: int, indent: str) -> list[str]:
    """At most ``limit`` rows, indented, and a line that counts the others."""
    more = [f"{indent}… and {len(rows) - limit} more"] if len(rows) > limit else []
    return [f"{indent}{row}" for row in rows[:limit]] + more


def validation_message(error: Any) -> tuple[str, str]:
    """Field and message of a pydantic ``ValidationError``'s first finding."""
    first = error.errors()[0]
    return str(first["loc"][0]), str(first["msg"])
