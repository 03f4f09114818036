"""The `workbench` command. Only the module of the chosen command is imported, so `--help` is instant."""

from __future__ import annotations

import importlib
import json
import sys

import click

from workbench import __version__
from workbench.core.errors import WorkbenchError

_COMMANDS = {
    "up": ("services", "Start the servers of this workbench, or find those already running."),
    "down": ("services", "Stop the servers that were started here."),
    "status": ("services", "Show each server's state, address and where its credentials lie."),
    "doctor": ("services", "Say what is missing on this machine and how to mend it."),
    "ingest": ("data", "Read a folder of drives into an immutable dataset version."),
    "datasets": ("data", "List, show and compare dataset versions."),
    "inspect": ("curation", "Look for duplicates, leaks, thin conditions and wrong labels."),
    "promote": ("steps", "Make a checked notebook an immutable version of its step."),
    "steps": ("steps", "List promoted steps; move and roll back their aliases."),
    "check": ("steps", "Say whether a notebook is fit for production, and what is missing."),
    "plan": ("pipelines", "Show what a pipeline would run, and why."),
    "run": ("pipelines", "Run a pipeline, going on where the last run stopped."),
    "run-step": ("pipelines", "Run one step from a spec file; what every executor calls."),
    "runs": ("runs", "List runs, or show one: what ran, for how long, what is running now."),
    "logs": ("runs", "Print what a run's steps said, or follow it while they say it."),
    "cancel": ("runs", "Stop a run; the next one goes on from there."),
    "schedule": ("pipelines", "Write what cron, systemd, Dagster, Airflow or Kubernetes want."),
    "lineage": ("models", "Show what anything came from, or with --forward what was made of it."),
    "reproduce": ("models", "Rebuild a model from its lineage alone and compare digests."),
    "predict": ("models", "Run a bundle on images, as a car would: an answer for every frame."),
    "verify": ("models", "Check a signed bundle, to the byte."),
    "embed": ("curation", "Look at every frame once: vectors of frames, objects and tiles."),
    "mine": ("mining", "Choose the frames worth labeling; tell later how much better than chance."),
    "label": ("labeling", "Send frames to labelers, see how far they are, collect."),
}
"""Command name to module below ``workbench.cli`` and the line that help shows."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"workbench.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """From an edge case on the road to a signed INT8 model.

    Every command takes --help; those with --json print one object on standard output and all
    else on standard error.
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and turns expected errors into a message and an exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        cli.main(args=arguments, prog_name="workbench")
    except WorkbenchError as error:
        _print_error(error, as_json="--json" in arguments)
        sys.exit(error.exit_code)


def _print_error(error: WorkbenchError, *, as_json: bool) -> None:
    lines = [f"error: {error.what}"]
    if error.where:
        lines.append(f"   in: {error.where}")
    if error.hint:
        lines.append(f" next: {error.hint}")
    click.echo("\n".join(lines), err=True)
    if as_json:
        body = {
            "kind": error.kind,
            "message": error.what,
            "where": error.where,
            "hint": error.hint,
        }
        click.echo(json.dumps({"error": body}))
