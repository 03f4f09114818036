"""The project a batch lives in: found, made, or brought up to a newer schema."""

from __future__ import annotations

from workbench.errors import ParameterError, ServiceError
from workbench.labeling import config, guide, ledger, schemas
from workbench.labeling.server import TITLE_LENGTH, LabelStudio, Project
from workbench.records.base import Ref, digest_of
from workbench.records.frames import LabelSchema
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch
from workbench.workspace import Workspace


def find(
    place: Workspace, server: LabelStudio, batch_ref: Ref, title: str | None = None
) -> Project | None:
    """The project that a batch was sent to: by the ledger, else by its title on the server."""
    entry = ledger.read(place, batch_ref)
    if entry and title in (None, entry.title):
        project = server.project(entry.project)
        if project and project.title == entry.title:
            return project
    return server.find_project(title or (entry.title if entry else None) or _own(place, batch_ref))


def title_of(place: Workspace, batch_ref: Ref, wanted: str | None) -> str:
    """The title asked for, or the batch's own.

    Raises:
        ParameterError: Label Studio would not take it.
    """
    if wanted is None:
        return _own(place, batch_ref)
    if not 3 <= len(wanted) <= TITLE_LENGTH:
        raise ParameterError(f"a project's title has 3 to {TITLE_LENGTH} characters", where=wanted)
    return wanted


def create(server: LabelStudio, title: str, batch: LabelBatch) -> Project:
    """A project that asks for a batch's schema."""
    schema = batch.label_schema
    description = (
        f"{len(batch.frames)} frames chosen by the workbench, labeled with schema {schema.name}"
        f" version {schema.version}. `workbench label collect` fetches what is submitted."
    )
    try:
        return server.create_project(
            title,
            config.labeling_config(schema),
            description=description,
            instruction=_instruction(batch),
        )
    except ServiceError:
        # Another workbench on the same server may have been quicker.
        existing = server.find_project(title)
        if existing is None:
            raise
        return existing


def link_guide(place: Workspace, server: LabelStudio, project: Project, batch: LabelBatch) -> None:
    """Link the guide page of a batch's schema from its project's instruction, where it can be.

    A server that does not see this machine's files cannot show the page; labelers then have the
    instruction alone, and whoever wants to hand them `workbench label guide`.
    """
    try:
        address = guide.publish(place, server, project.id, batch.dataset, batch.label_schema)
    except ServiceError:
        return
    link = f'<p><a href="{address}" target="_blank">Guide with examples</a></p>'
    server.update_instruction(project.id, _instruction(batch) + link)


def fit(server: LabelStudio, project: Project, schema: LabelSchema) -> None:
    """Let a project ask for a schema, as long as nothing drawn in it loses its meaning.

    Raises:
        ParameterError: The schema takes something away, and what that is.
    """
    there = config.parse_config(project.config).as_schema()
    older = schema.version <= there.version and not schemas.only_adds(schema, there)
    if older or schemas.asks_the_same(there, schema):
        return
    lost = schemas.only_adds(there, schema)
    if lost:
        raise ParameterError(
            f"project {project.title!r} asks for classes {', '.join(there.classes)};"
            f" in this batch {'; '.join(lost)}",
            where=project.url,
            hint="Send to another project; `workbench label migrate` brings datasets along",
        )
    server.update_config(project.id, config.labeling_config(schema))


def _own(place: Workspace, batch_ref: Ref) -> str:
    store = Store(place)
    dataset = store.get(store.get(batch_ref, LabelBatch).dataset, DatasetVersion).name
    name, batch = "workbench: ", f" {digest_of(batch_ref)[:12]}"
    return f"{name}{dataset[: TITLE_LENGTH - len(name) - len(batch)]}{batch}"


def _instruction(batch: LabelBatch) -> str:
    classes = ", ".join(batch.label_schema.classes)
    if batch.adjudicates:
        start = "Labelers disagreed here; all their boxes are drawn in. Keep what is right. "
    elif batch.model:
        start = "Boxes of the present model are drawn in; check every one. "
    else:
        start = ""
    return (
        f"<p>{start}Draw a tight box around every <b>{classes}</b>, also where"
        " it is partly hidden, and say so below the image. Submit a frame without boxes when"
        " there is nothing to box. Skip a frame that cannot be judged. A line above the image"
        " means that something has to be mended.</p>"
    )
