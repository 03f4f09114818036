"""Send a batch to Label Studio: every frame becomes exactly one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace
from workbench.labeling import client, label_config, projects, sync
from workbench.labeling.answers import labelers_needed, region_id
from workbench.labeling.batches import BatchContents
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.labeling.server import LabelStudio, Task
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import RANDOM_SAMPLE_REASON, LabelBatch, Prediction, SelectedFrame

_BLIND_REASON = "chosen for labeling"
"""All that a blind batch says of why a frame is there."""

_PEOPLE_VERSION = "candidates"
"""What stands for the model where the boxes to start from are other labelers'."""


def priority_order(batch: LabelBatch) -> Sequence[Digest]:
    """The batch's frames as labelers are to meet them: the urgent first, else as selected."""
    priority = {need.frame: need.priority for need in batch.needs}
    if not priority:
        return batch.frames
    return sorted(batch.frames, key=lambda frame: -priority.get(frame, 0))


def task_chunks(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Tasks in lists of at most ``size``; no more than one list is made at a time."""
    left = iter(tasks)
    while some := list(islice(left, size)):
        yield some


def make_tasks(contents: BatchContents, frames: Sequence[Digest]) -> Iterator[Task]:
    """The tasks of these frames, made as they are asked for.

    Raises:
        DataError: A frame's image is missing.
    """
    batch = contents.batch
    version = digest_of(batch.model)[:12] if batch.model else _PEOPLE_VERSION
    place, name = contents.store.workspace, digest_of(contents.ref)
    positions = {frame: n for n, frame in enumerate(batch.frames, start=1)} if batch.blind else {}
    for digest in frames:
        frame, choice = contents.frame(digest), contents.choice(digest)
        data = {
            "image": projects.image_address(place, frame),
            # Columns in this order: what labelers read first, what the workbench needs last.
            label_config.NOTE: "",
            "why": _BLIND_REASON if batch.blind else _choice_reason(choice),
            "rank": positions.get(digest) or _choice_rank(choice, batch),
            "drive": frame.drive,
            "frame": frame.id,
            "batch": name,
        }
        yield _make_task(data, contents.started(digest), frame, version)


def _choice_reason(choice: SelectedFrame | None) -> str:
    # A frame that measures labelers has no reason of its own, and must not look different.
    return RANDOM_SAMPLE_REASON if choice is None else "; ".join(choice.reasons) or choice.arm


def _choice_rank(choice: SelectedFrame | None, batch: LabelBatch) -> int:
    return choice.rank if choice else len(batch.frames) - len(batch.gold) + 1


def _make_task(data: Task, predictions: Sequence[Prediction], frame: Frame, version: str) -> Task:
    if not predictions:
        return {"data": data}
    result = [
        region
        for one in predictions
        for region in to_regions(
            DrawnObject(region_id(one), one.cls, one.box, turned=one.turned, polygon=one.polygon),
            frame.width,
            frame.height,
            score=one.score,
        )
    ]
    score = sum(one.score for one in predictions) / len(predictions)
    started = {"model_version": version, "score": score, "result": result}
    return {"data": data, "predictions": [started]}


# ---- Send: frames that were chosen become tasks in a Label Studio project, each exactly once.


ProgressCallback = Callable[[int, int], None]

TASKS_PER_CALL = 1000
"""Tasks in one import call: large enough to cost nothing, small enough to bound memory."""

_IMPORT_ATTEMPTS = 3
_IMPORT_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses between looks for an import whose answer was lost: it may still be under way."""

_ANSWERED_WAITS_S = (0.5, 1.0)
"""The same where the server did answer, if with an error: then it is no longer at work."""


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
    progress: ProgressCallback | None = None,
) -> SentBatch:
    """Bring a batch to Label Studio; what is there already is never written again.

    Safe to repeat after any interruption: what the server holds decides what is missing. Tasks
    that somebody deleted there come back; tasks that came twice lose the copy nobody worked on.

    Args:
        project: Title of the project, at most 50 characters; by default made from the dataset's
            name and the batch. Several batches may share a project, if their schemas fit.

    Raises:
        ParameterError: The title belongs to a project whose schema does not fit.
        DataError: Images of frames are missing.
        ServiceError: The server is away.
    """
    title = projects.project_title(place, batch_ref, project)
    with sync.batch_lock(place, batch_ref):
        contents = BatchContents(Store(place), batch_ref)
        frames = contents.batch.frames
        known = projects.find_project(place, server, batch_ref, title)
        entry = sync.read_entry(place, batch_ref)
        if known and entry and entry.complete:
            there = server.totals(known.id, digest_of(batch_ref))
            if there.tasks == len(frames):
                return SentBatch(batch_ref, known.id, title, known.url, 0, len(frames))
        if known is None:
            known = projects.create_project(server, title, contents.batch)
            projects.link_guide(place, server, known, contents.batch)
        projects.fit_schema(server, known, contents.batch.label_schema)
        projects.attach_images(server, known.id, place)
        collected = entry.collected if entry else None
        opened = sync.IndexEntry(
            batch=batch_ref, project=known.id, title=title, collected=collected
        )
        sync.write_entry(place, opened)
        sent = _import_missing(server, known.id, contents, progress)
        sync.write_entry(place, opened.model_copy(update={"complete": True}))
    return SentBatch(batch_ref, known.id, title, known.url, sent, len(frames) - sent)


def _import_missing(
    server: LabelStudio, project: int, contents: BatchContents, progress: ProgressCallback | None
) -> int:
    """Import what the server lacks, and see that each frame is there once; how many were lacking.

    After a failed call the server says what did arrive: an import takes place whole or not at all.
    """
    batch, wanted = digest_of(contents.ref), priority_order(contents.batch)
    there = _one_task_per_frame(server, project, batch)
    lacking = sum(frame not in there for frame in wanted)
    doubtful = False
    for attempt in range(_IMPORT_ATTEMPTS):
        try:
            missing = [frame for frame in wanted if frame not in there]
            _import_tasks(server, project, contents, missing, progress)
            break
        except ServiceError as error:
            if attempt == _IMPORT_ATTEMPTS - 1 or not client.may_have_landed(error):
                raise
            doubtful = True
            there = _one_task_per_frame(server, project, batch)
    shared = {frame: n for frame, n in labelers_needed(contents.batch).items() if n > 1}
    if doubtful or shared:
        there = _one_task_per_frame(server, project, batch)
    for frame, labelers in shared.items():
        server.offer_to(there[frame], labelers)
    return lacking


def _import_tasks(
    server: LabelStudio,
    project: int,
    contents: BatchContents,
    missing: list[Digest],
    progress: ProgressCallback | None,
) -> None:
    batch, total = digest_of(contents.ref), len(contents.batch.frames)
    done = total - len(missing)
    for some in task_chunks(make_tasks(contents, missing), TASKS_PER_CALL):
        try:
            server.import_tasks(project, some)
        except ServiceError as error:
            if not client.may_have_landed(error):
                raise
            pauses = _ANSWERED_WAITS_S if client.server_answered(error) else _IMPORT_WAITS_S
            if not _import_landed(server, project, batch, done + len(some), pauses):
                raise
        done += len(some)
        if progress:
            progress(done, total)


def _import_landed(
    server: LabelStudio, project: int, batch: str, expected: int, pauses: Sequence[float]
) -> bool:
    """Whether an import whose answer was lost has taken place after all; patient, for it may."""
    for pause in pauses:
        if server.totals(project, batch).tasks >= expected:
            return True
        time.sleep(pause)
    return server.totals(project, batch).tasks >= expected


def _one_task_per_frame(server: LabelStudio, project: int, batch: str) -> dict[Digest, int]:
    """The task of each frame; of a frame that came twice, the copy nobody worked on goes."""
    found = server.tasks(project, batch)
    twice = {frame: ids for frame, ids in found.items() if len(ids) > 1}
    if twice:
        ids = [task for several in twice.values() for task in several]
        worked_on = {
            task["id"]
            for task in server.export_tasks(project, ids)
            if task["annotations"] or task["drafts"]
        }
        for frame, several in twice.items():
            keep = next((task for task in several if task in worked_on), several[0])
            server.delete_tasks([one for one in several if one != keep and one not in worked_on])
            found[frame] = [keep]
    return {frame: several[0] for frame, several in found.items()}
