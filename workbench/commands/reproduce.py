"""``reproduce``: rebuild a model from its lineage and compare, digest for digest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from workbench.commands.common import Progress, emit, json_option, progress_bar, say

_DIFFERS = 3
_CANCELLED = 130


class _Lines:
    """A line a step on standard error, and a bar while one is at work."""

    def say(self, message: str) -> None:
        say(message)

    @contextmanager
    def following(self, step: str) -> Iterator[Progress]:
        say(f"  → {step}")
        with progress_bar(f"    {step}") as progress:
            yield progress


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Clean folder to rebuild in. Default: a fresh one below .workbench/reproduce.",
)
@json_option
def reproduce(model: str, output: Path | None, as_json: bool) -> None:
    """Rebuild MODEL from its lineage alone, in a clean folder, and compare digests.

    MODEL is models:/NAME/VERSION, or any reference to a release, bundle, checkpoint, gate report
    or dataset that a pipeline made. Raw frames, label sets and the champion compared with are
    copied, never rebuilt; no server is started and nobody is asked. Stopped half-way, the same
    command goes on where it was.

    Exit status: 0 every digest is the same, 3 one differs, anything else a failure.
    """
    from workbench import workspace
    from workbench.pipeline import reproduction
    from workbench.pipeline.lineage import references
    from workbench.pipeline.reproduction import folders
    from workbench.pipeline.reproduction import report as reports
    from workbench.records.store import Store

    place = workspace.find()
    target = references.resolve(place, model)
    ancestry = reproduction.trace(Store(place), target)
    folder = folders.choose(place, target, output)
    say(f"{target[: target.index('/') + 13]}: {len(ancestry.steps)} steps, in {folder}")
    try:
        made = reproduction.reproduce(place, ancestry, folder, _Lines())
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        sys.exit(_CANCELLED)
    text = reports.as_text(made)
    emit(made.model_dump(mode="json"), as_json=as_json, text=text)
    if as_json:
        say(text)
    sys.exit({"reproduced": 0, "differs": _DIFFERS, "failed": 1}[made.status])
