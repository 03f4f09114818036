"""``lineage``: what anything came from, and what was made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.commands.common import emit, json_option, say

if TYPE_CHECKING:
    from workbench.pipeline.lineage import Graph
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
    models:/NAME@ALIAS, frame/DIGEST or annotator/NAME.
    """
    from workbench import workspace
    from workbench.pipeline import lineage as tracing

    place = workspace.find()
    graph = _graph(place, reference, forward)
    page = tracing.show(graph) if html or svg else None
    if page and html:
        page.write_html(html)
        say(f"wrote {html}")
    if page and svg:
        page.write_svg(svg)
        say(f"wrote {svg}")
    emit(graph.as_json(), as_json=as_json, text=tracing.as_text(graph))


def _graph(place: Workspace, reference: str, forward: bool) -> Graph:
    """Of a record where there is one of this name, else of a frame or an annotator."""
    from workbench.errors import RecordError
    from workbench.pipeline import lineage as tracing
    from workbench.pipeline import lineage_subjects as subjects
    from workbench.pipeline import references
    from workbench.records.store import Store

    store = Store(place)
    subject = subjects.parse(reference)
    try:
        if subject and not reference.startswith("sha256:"):
            return subjects.graph_of(store, subject, forward=forward)
        root = references.resolve(place, reference)
    except RecordError as error:
        if subject is None or not error.what.startswith("no record"):
            raise
        return subjects.graph_of(store, subject, forward=forward)
    return tracing.follow(store, root) if forward else tracing.trace(store, root)
