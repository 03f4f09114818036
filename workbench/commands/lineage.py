"""``lineage``: what anything came from."""

from __future__ import annotations

import click

from workbench.commands.common import emit, json_option


@click.command()
@click.argument("reference")
@json_option
def lineage(reference: str, as_json: bool) -> None:
    """Show what REFERENCE came from, down to drives and annotators.

    REFERENCE is sha256:DIGEST, KIND/PREFIX, NAME or NAME@N of a dataset, models:/NAME/VERSION or
    models:/NAME@ALIAS.
    """
    from workbench import workspace
    from workbench.pipeline import lineage as tracing
    from workbench.pipeline import references
    from workbench.records.store import Store

    place = workspace.find()
    root = references.resolve(place, reference)
    graph = tracing.trace(Store(place), root)
    emit(graph.as_json(), as_json=as_json, text=tracing.as_text(graph, root))
