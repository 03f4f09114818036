"""Send: frames that were chosen become tasks in a Label Studio project, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workbench.errors import DataError, ParameterError, ServiceError
from workbench.labeling import config, ledger
from workbench.labeling.answers import answers_needed, region_id
from workbench.labeling.batches import sent_predictions
from workbench.labeling.regions import Drawn, to_regions
from workbench.labeling.server import TITLE_LENGTH, LabelStudio, Project, Task
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.dataset import media_path
from workbench.records.frames import Frame, LabelSchema
from workbench.records.store import Store
from workbench.records.types import Choice, LabelBatch, Prediction, Selection
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]

CHUNK = 2000
"""Tasks in one import call: large enough to cost nothing, small enough to bound memory."""

_ATTEMPTS = 3


@dataclass(frozen=True)
class SentBatch:
    """``sent`` tasks were written now, ``already`` were there before."""

    batch: Ref
    project: int
    title: str
    url: str
    sent: int
    already: int


def send(
    place: Workspace,
    server: LabelStudio,
    batch_ref: Ref,
    project: str | None = None,
    *,
    progress: Progress | None = None,
) -> SentBatch:
    """Bring a batch to Label Studio; what is there already is never written again.

    Safe to repeat after any interruption: what the server holds decides what is missing.

    Args:
        project: Title of the project, at most 50 characters; by default made from the dataset's
            name and the batch. Several batches of one schema may share a project.

    Raises:
        ParameterError: The title belongs to a project with another schema.
        DataError: Images of frames are missing.
        ServiceError: The server is away.
    """
    store = Store(place)
    batch = store.get(batch_ref, LabelBatch)
    dataset = datasets.load(store, batch.dataset)
    title = _title(project, dataset.name, batch_ref)
    with ledger.locked(place, batch_ref):
        known = find_project(place, server, batch_ref, title)
        entry = ledger.read(place, batch_ref)
        if known and entry and entry.complete and known.tasks == len(batch.frames):
            return SentBatch(batch_ref, known.id, title, known.url, 0, len(batch.frames))
        target = known or _create(server, title, batch)
        _same_schema(target, batch.label_schema)
        server.attach_media(target.id, place.media)
        open_entry = ledger.Entry(
            batch=batch_ref,
            project=target.id,
            title=title,
            collected=entry.collected if entry else None,
        )
        ledger.write(place, open_entry)
        tasks = _tasks(store, batch_ref, batch, {frame.id: frame for frame in dataset.frames})
        sent = _import_missing(server, target.id, batch_ref, tasks, progress)
        if batch.overlap:
            _offer_doubled(server, target.id, batch_ref, batch)
        ledger.write(place, open_entry.model_copy(update={"complete": True}))
    return SentBatch(batch_ref, target.id, title, target.url, sent, len(tasks) - sent)


def find_project(
    place: Workspace, server: LabelStudio, batch_ref: Ref, title: str | None = None
) -> Project | None:
    """The project that a batch was sent to: by the ledger, else by its title on the server."""
    entry = ledger.read(place, batch_ref)
    if entry and title in (None, entry.title):
        project = server.project(entry.project)
        if project and project.title == entry.title:
            return project
    wanted = title or (entry.title if entry else None)
    if wanted is None:
        store = Store(place)
        dataset = store.load(store.get(batch_ref, LabelBatch).dataset)
        wanted = _title(None, getattr(dataset, "name", ""), batch_ref)
    return server.find_project(wanted)


def _title(project: str | None, dataset: str, batch_ref: Ref) -> str:
    if project is not None:
        if not 3 <= len(project) <= TITLE_LENGTH:
            raise ParameterError(f"a project's title has 3 to {TITLE_LENGTH} characters")
        return project
    name, batch = "workbench: ", f" {digest_of(batch_ref)[:12]}"
    return f"{name}{dataset[: TITLE_LENGTH - len(name) - len(batch)]}{batch}"


def _create(server: LabelStudio, title: str, batch: LabelBatch) -> Project:
    schema = batch.label_schema
    start = "Boxes of the present model are drawn in; check every one. " if batch.model else ""
    instruction = (
        f"<p>{start}Draw a tight box around every <b>{', '.join(schema.classes)}</b>, also where"
        " it is partly hidden, and say so below the image. Submit a frame without boxes when"
        " there is nothing to box. Skip a frame that cannot be judged.</p>"
    )
    description = (
        f"{len(batch.frames)} frames chosen by the workbench, labeled with schema {schema.name}"
        f" version {schema.version}. `workbench label collect` fetches what is submitted."
    )
    try:
        return server.create_project(
            title,
            config.labeling_config(schema),
            description=description,
            instruction=instruction,
        )
    except ServiceError:
        # Another workbench on the same server may have been quicker.
        existing = server.find_project(title)
        if existing is None:
            raise
        return existing


def _same_schema(project: Project, schema: LabelSchema) -> None:
    there = config.parse_config(project.config).classes
    if there != schema.classes:
        raise ParameterError(
            f"project {project.title!r} has classes {', '.join(there)};"
            f" this batch has {', '.join(schema.classes)}",
            where=project.url,
            hint="Send to another project, or rename that one",
        )


def _tasks(
    store: Store, batch_ref: Ref, batch: LabelBatch, frames: Mapping[Digest, Frame]
) -> dict[Digest, Task]:
    """A task a frame, in the order of the selection."""
    selection = store.get(batch.selection, Selection)
    choices = {choice.frame: choice for choice in selection.chosen}
    predictions = sent_predictions(store, batch_ref)
    images = (media_path(store.workspace, frames[frame]) for frame in batch.frames)
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise DataError(
            f"images of {len(missing)} frames are missing",
            where=missing[0],
            hint="Ingest the drives again; frames keep their names",
        )
    version = digest_of(batch.model)[:12] if batch.model else "none"
    place = store.workspace
    return {
        frame: _task(
            _address(place, frames[frame]),
            frames[frame],
            choices[frame],
            predictions.get(frame, ()),
            batch_ref,
            version,
        )
        for frame in batch.frames
    }


def _address(place: Workspace, frame: Frame) -> str:
    """Where Label Studio serves a frame from, relative to itself."""
    path = media_path(place, frame).relative_to(place.served)
    return f"/data/local-files/?d={path.as_posix()}"


def _task(
    address: str,
    frame: Frame,
    choice: Choice,
    predictions: Sequence[Prediction],
    batch_ref: Ref,
    version: str,
) -> Task:
    data = {
        "image": address,
        # Columns in this order: what labelers read comes first, what the workbench needs last.
        "why": "; ".join(choice.reasons) or choice.arm,
        "rank": choice.rank,
        "drive": frame.drive,
        "frame": frame.id,
        "batch": digest_of(batch_ref),
    }
    if not predictions:
        return {"data": data}
    result = [
        region
        for one in predictions
        for region in to_regions(
            Drawn(region_id(one), one.cls, one.box), frame.width, frame.height, score=one.score
        )
    ]
    score = sum(one.score for one in predictions) / len(predictions)
    return {
        "data": data,
        "predictions": [{"model_version": version, "score": score, "result": result}],
    }


def _import_missing(
    server: LabelStudio,
    project: int,
    batch_ref: Ref,
    tasks: Mapping[Digest, Task],
    progress: Progress | None,
) -> int:
    """Import what the server lacks. After a failed call the server says what did arrive."""
    batch = digest_of(batch_ref)
    there = server.frames(project, batch)
    before = len(there.keys() & tasks.keys())
    for attempt in range(_ATTEMPTS):
        missing = [task for frame, task in tasks.items() if frame not in there]
        try:
            for start in range(0, len(missing), CHUNK):
                server.import_tasks(project, missing[start : start + CHUNK])
                if progress:
                    done = len(tasks) - len(missing) + min(start + CHUNK, len(missing))
                    progress(done, len(tasks))
            return len(tasks) - before
        except ServiceError:
            if attempt == _ATTEMPTS - 1:
                raise
            there = server.frames(project, batch)
    raise AssertionError("the last attempt returns or raises")


def _offer_doubled(server: LabelStudio, project: int, batch_ref: Ref, batch: LabelBatch) -> None:
    tasks = server.frames(project, digest_of(batch_ref))
    for frame, labelers in answers_needed(batch).items():
        if labelers > 1:
            server.offer_to(tasks[frame], labelers)
