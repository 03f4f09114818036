"""The `workbench` command. Only the chosen command's module is imported: `--help` is instant."""

from __future__ import annotations

import importlib
import json
import os
import sys

import click

from workbench import __version__
from workbench.core.errors import WorkbenchError, system_error
from workbench.core.text import terminal_text

__all__ = ["cli", "main"]

_COMMANDS = {
    "up": ("services", "Start the servers of this workspace."),
    "down": ("services", "Stop the servers that were started here."),
    "status": ("services", "Show state, address and credentials file of each server."),
    "doctor": ("services", "Check this machine; list what is missing and how to fix it."),
    "ingest": ("data", "Read a folder of drives into an immutable dataset version."),
    "schema": ("schema", "Write, show and check label schemas."),
    "datasets": ("data", "List, show and compare dataset versions."),
    "models": ("records", "List trained models."),
    "selections": ("records", "List selections of frames to label."),
    "batches": ("records", "List label batches."),
    "releases": ("records", "List releases with their verdicts."),
    "app": ("curation", "Show a dataset and models' boxes in FiftyOne's App."),
    "inspect": ("curation", "Find leaks, duplicates and wrong labels in a dataset."),
    "embed": ("curation", "Compute embeddings of frames, objects and tiles."),
    "mine": ("mining", "Select frames worth labeling; report the gain."),
    "label": ("labeling", "Send frames to labelers, show progress, collect labels."),
    "plan": ("pipelines", "Show what a pipeline would run, and why."),
    "run": ("pipelines", "Run a pipeline; continue where the last run stopped."),
    "runs": ("runs", "List runs, or show the steps of one."),
    "logs": ("runs", "Print or follow the output of a run's steps."),
    "cancel": ("runs", "Stop a run; the next run continues from there."),
    "schedule": ("pipelines", "Write files for cron, systemd, Dagster, Airflow or Kubernetes."),
    "new": ("steps", "Write a notebook or a step to start from."),
    "check": ("steps", "Check whether a notebook is ready for production."),
    "promote": ("steps", "Publish a checked notebook as an immutable version of its step."),
    "steps": ("steps", "List promoted steps; set and roll back their aliases."),
    "predict": ("models", "Run a bundle on images; every frame gets an answer."),
    "shadow": ("shadow", "Run a candidate beside the champion; estimate the difference in misses."),
    "compare": ("records", "Compare two models: slices with intervals, flipped frames."),
    "slices": ("slices", "List and check slices; find those where a model fails."),
    "incidents": ("safety", "Keep missed objects as cases that every candidate must pass."),
    "blind": ("safety", "Judge models on frames that nobody sees, a limited number of times."),
    "hazards": ("safety", "Check that gates answer the hazards."),
    "scenarios": ("scenarios", "List, plan and play test cases of crash avoidance (simulated)."),
    "verify": ("models", "Verify the signature and every file of a bundle."),
    "rollback": ("models", "Withdraw the champion of a model; the one before it is back."),
    "waive": ("models", "Let a release pass a gate until a day: signed and shown."),
    "fleet": ("fleet", "Send releases to vehicles in stages, watch, stop and take back."),
    "monitor": ("monitor", "See what drifted in the fleet; decide about alarms."),
    "keys": ("keys", "List, rotate and revoke the keys that sign."),
    "audit": ("audit", "Show or verify the log of who did what; write an audit pack."),
    "lineage": ("models", "Show what a record was made from or, with --forward, used for."),
    "reproduce": ("models", "Rebuild a model from its lineage and compare digests."),
    "run-step": ("pipelines", "Run one step from a spec file (called by executors)."),
}
"""Command name to its module below ``workbench.cli`` and its line in the list of commands."""


_NOT_WRITABLE = 0o022
"""Whatever the user's umask, only the owner writes what the workbench creates."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"workbench.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.NoSuchCommand(args[0], possibilities=_COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """From an edge case on the road to a signed INT8 model.

    Every command has --help. With --json a command prints one JSON object on standard output and
    everything else on standard error.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run a command; print an expected error as a message and exit with its status.

    Args:
        arguments: Command line without the program's name, by default that of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    os.umask(os.umask(0) | _NOT_WRITABLE)
    try:
        cli.main(args=arguments, prog_name="workbench")
    except WorkbenchError as error:
        _print_error(error, as_json="--json" in arguments)
        sys.exit(error.exit_code)
    except OSError as error:
        translated = system_error(error)
        _print_error(translated, as_json="--json" in arguments)
        sys.exit(translated.exit_code)


def _print_error(error: WorkbenchError, *, as_json: bool) -> None:
    lines = [f"error: {error.what}"]
    if error.where:
        lines.append(f"   in: {error.where}")
    if error.reason:
        lines.append(f" code: {error.reason}")
    if error.hint:
        lines.append(f" next: {error.hint}")
    click.echo(terminal_text("\n".join(lines)), err=True)
    if as_json:
        body = {
            "kind": error.kind,
            "message": error.what,
            "where": error.where,
            "hint": error.hint,
            "reason": error.reason,
        }
        click.echo(json.dumps({"error": body}))
