"""``lineage``: what anything came from, and what was made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.commands.common import emit, json_option, say

if TYPE_CHECKING:
    from workbench.pipeline.lineage.tracing import Graph
    from workbench.workspace import Workspace


@click.command()
@click.argument("reference")
@click.option("--forward", is_flag=True, help="What was made of it, instead of what it came from.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page here.")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture here."
)
@json_option
def lineage(
    reference: str, forward: bool, html: Path | None, svg: Path | None, as_json: bool
) -> None:
    """Show what REFERENCE came from, down to drives and annotators.

    REFERENCE is sha256:DIGEST, KIND/PREFIX, NAME or NAME@N of a dataset, models:/NAME/VERSION,
    models:/NAME@ALIAS, frame/DIGEST, annotator/NAME, or a file of a record, such as the model of a
    bundle: by its digest or as a path.
    """
    from workbench import workspace
    from workbench.pipeline.lineage import as_text, show

    place = workspace.find()
    graph = _graph(place, reference, forward)
    page = show(graph) if html or svg else None
    if page and html:
        page.write_html(html)
        say(f"wrote {html}")
    if page and svg:
        page.write_svg(svg)
        say(f"wrote {svg}")
    emit(graph.as_json(), as_json=as_json, text=as_text(graph))


def _graph(place: Workspace, reference: str, forward: bool) -> Graph:
    """Of a record where one is named; else of a frame, an annotator, or who holds a file."""
    from workbench import digest
    from workbench.errors import RecordError
    from workbench.pipeline.lineage import references, subjects, tracing
    from workbench.records.store import Store

    store = Store(place)
    file = Path(reference)
    if len(file.parts) > 1 and file.is_file():
        root = subjects.holder_of_file(store, digest.of_file(file), reference)
        return tracing.of(store, root, forward=forward)
    subject = subjects.parse(reference)
    if subject is None:
        return tracing.of(store, references.resolve(place, reference), forward=forward)
    if not reference.startswith("sha256:"):
        return subjects.graph_of(store, subject, forward=forward)
    looks: tuple[Callable[[], Graph], ...] = (
        lambda: tracing.of(store, references.resolve(place, reference), forward=forward),
        lambda: subjects.graph_of(store, subject, forward=forward),
    )
    for look in looks:
        try:
            return look()
        except RecordError as error:
            if not error.what.startswith(("no record", "no frame")):
                raise
    root = subjects.holder_of_file(store, subject.name, reference)
    return tracing.of(store, root, forward=forward)
