"""Send a batch to Label Studio: every frame becomes exactly one task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from workbench.audit import log as audit
from workbench.core.errors import ServiceError
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace
from workbench.labeling import client, label_config, projects, sync
from workbench.labeling.answers import labelers_needed
from workbench.labeling.batches import BatchContents
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.labeling.server import LabelStudio, Task
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.store import Store
from workbench.records.types import RANDOM_SAMPLE_REASON, LabelBatch

__all__ = ["SentBatch", "send"]

TASKS_PER_CALL = 1000
"""Tasks in one import call: many enough to be fast, few enough to bound memory."""

_BLIND_REASON = "chosen for labeling"
"""Reason shown in all tasks of a blind batch."""

_CANDIDATES_VERSION = "candidates"
"""Model version of boxes that come from labelers instead of a model."""

_IMPORT_ATTEMPTS = 3

# Pauses between checks whether an import without a response has arrived. If the server responded
# with an error, it is no longer processing the import.
_IMPORT_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_ANSWERED_WAITS_S = (0.5, 1.0)


@dataclass(frozen=True)
class SentBatch:
    """Result of `send`.

    Attributes:
        project: Label Studio's project id.
        sent: Number of tasks created now.
        already: Number of tasks that existed before.
        several: Number of frames that more than one labeler has to answer.
    """

    batch: Ref
    project: int
    title: str
    url: str
    sent: int
    already: int
    several: int = 0


def send(
    workspace: Workspace,
    server: LabelStudio,
    batch_ref: Ref,
    project: str | None = None,
    *,
    progress: Progress | None = None,
) -> SentBatch:
    """Send a batch to Label Studio; existing tasks are not written again.

    Safe to repeat after any interruption: the server's tasks decide what is missing. Deleted tasks
    are created again; of duplicate tasks, the one without annotations is deleted.

    Args:
        project: Title of the project, 3 to 50 characters; by default made from dataset and batch.
            Batches with compatible schemas may share a project.

    Raises:
        ParameterError: The project's schema is not compatible with the batch's.
        DataError: Image files are missing.
        ServiceError: The server is not reachable.
    """
    title = projects.project_title(workspace, batch_ref, project)
    with sync.batch_lock(workspace, batch_ref):
        contents = BatchContents(Store(workspace), batch_ref)
        batch, count = contents.batch, len(contents.batch.frames)
        several = sum(needed > 1 for needed in labelers_needed(batch).values())
        target = projects.find_project(workspace, server, batch_ref, title)
        entry = sync.read_entry(workspace, batch_ref)
        if target and entry and entry.complete:
            totals = server.totals(target.id, digest_of(batch_ref))
            if totals.tasks == count:
                return SentBatch(batch_ref, target.id, title, target.url, 0, count, several)
        if target is None:
            target = projects.create_project(server, title, batch)
            projects.link_guide(workspace, server, target, batch)
        projects.fit_schema(server, target, batch.label_schema)
        projects.attach_images(server, target.id, workspace)
        started = sync.IndexEntry(
            batch=batch_ref,
            project=target.id,
            title=title,
            collected=entry.collected if entry else None,
        )
        sync.write_entry(workspace, started)
        sent = _import_missing(server, target.id, contents, progress)
        audit.append(
            workspace,
            "frames-read",
            subjects=(batch.dataset, batch_ref),
            why="labeling",
            frames=count,
        )
        sync.write_entry(workspace, started.model_copy(update={"complete": True}))
    return SentBatch(batch_ref, target.id, title, target.url, sent, count - sent, several)


def _import_missing(
    server: LabelStudio, project_id: int, contents: BatchContents, progress: Progress | None
) -> int:
    """Import the tasks that the server lacks; their number.

    An import succeeds or fails as a whole, so after a failed call the server's tasks show what
    arrived.
    """
    batch, frames = digest_of(contents.ref), priority_order(contents.batch)
    tasks = _one_task_per_frame(server, project_id, batch)
    lacking = sum(frame not in tasks for frame in frames)
    uncertain = False
    for attempt in range(_IMPORT_ATTEMPTS):
        try:
            missing = [frame for frame in frames if frame not in tasks]
            _import_tasks(server, project_id, contents, missing, progress)
            break
        except ServiceError as error:
            if attempt == _IMPORT_ATTEMPTS - 1 or not client.may_have_landed(error):
                raise
            uncertain = True
            tasks = _one_task_per_frame(server, project_id, batch)
    shared = {frame: n for frame, n in labelers_needed(contents.batch).items() if n > 1}
    if uncertain or shared:
        tasks = _one_task_per_frame(server, project_id, batch)
    for frame, labelers in shared.items():
        server.set_overlap(tasks[frame], labelers)
    return lacking


def _import_tasks(
    server: LabelStudio,
    project_id: int,
    contents: BatchContents,
    missing: list[Digest],
    progress: Progress | None,
) -> None:
    batch, total = digest_of(contents.ref), len(contents.batch.frames)
    done = total - len(missing)
    for chunk in task_chunks(make_tasks(contents, missing), TASKS_PER_CALL):
        try:
            server.import_tasks(project_id, chunk)
        except ServiceError as error:
            if not client.may_have_landed(error):
                raise
            waits = _ANSWERED_WAITS_S if client.server_answered(error) else _IMPORT_WAITS_S
            if not _import_landed(server, project_id, batch, done + len(chunk), waits):
                raise
        done += len(chunk)
        if progress:
            progress(done, total)


def _import_landed(
    server: LabelStudio, project_id: int, batch: str, expected: int, waits: Sequence[float]
) -> bool:
    """Whether an import without a response has arrived, possibly after a while."""
    for wait in waits:
        if server.totals(project_id, batch).tasks >= expected:
            return True
        time.sleep(wait)
    return server.totals(project_id, batch).tasks >= expected


def _one_task_per_frame(server: LabelStudio, project_id: int, batch: str) -> dict[Digest, int]:
    """The task of each frame; duplicates without annotations and drafts are deleted."""
    ids = server.task_ids(project_id, batch)
    duplicates = {frame: several for frame, several in ids.items() if len(several) > 1}
    tasks = {frame: several[0] for frame, several in ids.items()}
    if duplicates:
        exported = server.export_tasks(
            project_id, [one for ids in duplicates.values() for one in ids]
        )
        worked_on = {task["id"] for task in exported if task["annotations"] or task["drafts"]}
        for frame, several in duplicates.items():
            tasks[frame] = next((one for one in several if one in worked_on), several[0])
            server.delete_tasks(
                [one for one in several if one != tasks[frame] and one not in worked_on]
            )
    return tasks


def priority_order(batch: LabelBatch) -> Sequence[Digest]:
    """The batch's frames by descending priority, else as selected."""
    priority = {need.frame: need.priority for need in batch.needs}
    return sorted(batch.frames, key=lambda frame: -priority.get(frame, 0))


def task_chunks(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Tasks in lists of at most ``size``, made one list at a time."""
    remaining = iter(tasks)
    while chunk := list(islice(remaining, size)):
        yield chunk


def make_tasks(contents: BatchContents, frames: Sequence[Digest]) -> Iterator[Task]:
    """Label Studio tasks of these frames, made one at a time.

    Raises:
        DataError: An image file is missing.
    """
    batch = contents.batch
    version = digest_of(batch.model)[:12] if batch.model else _CANDIDATES_VERSION
    positions = {frame: n for n, frame in enumerate(batch.frames, start=1)} if batch.blind else {}
    # Gold frames are ranked last and must not look different from the others.
    gold_rank = len(batch.frames) - len(batch.gold) + 1
    for frame_id in frames:
        frame, selected = contents.frame(frame_id), contents.selected(frame_id)
        if batch.blind:
            reason = _BLIND_REASON
        elif selected is None:
            reason = RANDOM_SAMPLE_REASON
        else:
            reason = "; ".join(selected.reasons) or selected.arm
        data: Json = {
            "image": projects.image_address(contents.store.workspace, frame),
            # Label Studio shows columns in this order.
            label_config.NOTE: "",
            "why": reason,
            "rank": positions.get(frame_id) or (selected.rank if selected else gold_rank),
            "drive": frame.drive,
            "frame": frame.id,
            "batch": digest_of(contents.ref),
        }
        predictions = contents.predictions(frame_id)
        if not predictions:
            yield {"data": data}
            continue
        result = [
            region
            for name, one in predictions.items()
            for region in to_regions(
                DrawnObject(name, one.cls, one.box, turned=one.turned, polygon=one.polygon),
                frame.width,
                frame.height,
                score=one.score,
            )
        ]
        score = sum(one.score for one in predictions.values()) / len(predictions)
        prediction = {"model_version": version, "score": score, "result": result}
        yield {"data": data, "predictions": [prediction]}
