"""`workbench audit`: the log of who did what, and the audit pack of a release."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from workbench.cli.common import info, json_option, print_result
from workbench.core.errors import RecordError
from workbench.core.text import counted
from workbench.core.workspace import find_workspace
from workbench.records.base import short_ref

__all__ = ()


@click.group()
def audit() -> None:
    """Show or verify the log of who did what; write the audit pack of a release."""


@audit.command("log")
@click.option("--of", metavar="REF", help="Only entries about this record, by any reference.")
@json_option
def show_log(of: str | None, as_json: bool) -> None:
    """Print the entries, oldest first: number, time, event, who, records."""
    from workbench.audit.log import read_log
    from workbench.records.references import resolve_reference

    workspace = find_workspace()
    ref = resolve_reference(workspace, of) if of else None
    damaged: list[str] = []
    entries = list(read_log(workspace, ref, damaged))
    for problem in damaged:
        info(f"left out: {problem}; `workbench audit verify` lists all that is wrong")
    lines = [
        f"{entry.number:>5}  {entry.at}  {entry.event:<14} {entry.by}  "
        + " ".join(_short(subject) for subject in entry.subjects)
        + "".join(f"  {name}={value}" for name, value in entry.detail.items())
        for entry in entries
    ]
    body = {
        "entries": [entry.model_dump(mode="json") for entry in entries],
        "damaged": damaged,
    }
    print_result(body, as_json=as_json, text="\n".join(lines) or "no entries")


def _short(subject: str) -> str:
    try:
        return short_ref(subject)
    except RecordError:  # of a changed entry
        return subject


@audit.command("verify")
@json_option
def verify_entries(as_json: bool) -> None:
    """Check every entry and the signed checkpoint.

    Exit status: 0 only if no entry was changed, removed, reordered or cut off.
    """
    from workbench.audit.log import verify_log

    report = verify_log(find_workspace())
    whole = f"{counted(report.entries, 'entry', 'entries')}, signed up to {report.checkpoint}"
    text = "\n".join([*report.problems, whole])
    body = {
        "ok": not report.problems,
        "entries": report.entries,
        "checkpoint": report.checkpoint,
        "problems": list(report.problems),
    }
    print_result(body, as_json=as_json, text=text)
    if report.problems:
        sys.exit(1)


@audit.command("pack")
@click.argument("model")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The file to write.",
)
@click.option("--by", help="Who writes it.  [default: the current user]")
@json_option
def write_audit_pack(model: str, output: Path, by: str | None, as_json: bool) -> None:
    """Write everything about a release into one file that can be verified offline.

    MODEL is a model's name, for its champion (its candidate where it has none), models:/NAME@ALIAS
    or release/PREFIX. Open index.html in the pack to read it; `workbench verify` checks it.
    """
    from workbench.records.store import Store
    from workbench.release.pack import write_pack

    written = write_pack(Store(find_workspace()), model, output, by=by)
    body = {
        "pack": str(written.path),
        "sha256": written.sha256,
        "release": written.release,
        "model": written.model,
        "version": written.version,
        "files": written.files,
        "notes": list(written.notes),
    }
    lines = [
        f"{output}: {written.model} version {written.version}, {written.files} files, verified"
    ]
    lines += [f"note: {note}" for note in written.notes]
    print_result(body, as_json=as_json, text="\n".join(lines))
