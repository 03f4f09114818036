"""A frame as a task of Label Studio: its image, why it was chosen, and the boxes to start from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from workbench.labeling import config, media
from workbench.labeling.answers import region_id
from workbench.labeling.contents import Contents
from workbench.labeling.holdings import Task
from workbench.labeling.regions import Drawn, to_regions
from workbench.records.base import Digest, digest_of
from workbench.records.frames import Frame
from workbench.records.types import DRAWN, Choice, LabelBatch, Prediction

_BLIND = "chosen for labeling"
"""All that a blind batch says of why a frame is there."""

_PEOPLE = "candidates"
"""What stands for the model where the boxes to start from are other labelers'."""


def in_order(batch: LabelBatch) -> Sequence[Digest]:
    """The batch's frames as labelers are to meet them: the urgent first, else as selected."""
    priority = {need.frame: need.priority for need in batch.needs}
    if not priority:
        return batch.frames
    return sorted(batch.frames, key=lambda frame: -priority.get(frame, 0))


def chunks(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Tasks in lists of at most ``size``; no more than one list is made at a time."""
    left = iter(tasks)
    while some := list(islice(left, size)):
        yield some


def make_tasks(contents: Contents, frames: Sequence[Digest]) -> Iterator[Task]:
    """The tasks of these frames, made as they are asked for.

    Raises:
        DataError: A frame's image is missing.
    """
    batch = contents.batch
    version = digest_of(batch.model)[:12] if batch.model else _PEOPLE
    place, name = contents.store.workspace, digest_of(contents.ref)
    positions = {frame: n for n, frame in enumerate(batch.frames, start=1)} if batch.blind else {}
    for digest in frames:
        frame, choice = contents.frame(digest), contents.choice(digest)
        data = {
            "image": media.address(place, frame),
            # Columns in this order: what labelers read first, what the workbench needs last.
            config.NOTE: "",
            "why": _BLIND if batch.blind else _why(choice),
            "rank": positions.get(digest) or _rank(choice, batch),
            "drive": frame.drive,
            "frame": frame.id,
            "batch": name,
        }
        yield _task(data, contents.started(digest), frame, version)


def _why(choice: Choice | None) -> str:
    # A frame that measures labelers has no reason of its own, and must not look different.
    return DRAWN if choice is None else "; ".join(choice.reasons) or choice.arm


def _rank(choice: Choice | None, batch: LabelBatch) -> int:
    return choice.rank if choice else len(batch.frames) - len(batch.gold) + 1


def _task(data: Task, predictions: Sequence[Prediction], frame: Frame, version: str) -> Task:
    if not predictions:
        return {"data": data}
    result = [
        region
        for one in predictions
        for region in to_regions(
            Drawn(region_id(one), one.cls, one.box, turned=one.turned, polygon=one.polygon),
            frame.width,
            frame.height,
            score=one.score,
        )
    ]
    score = sum(one.score for one in predictions) / len(predictions)
    started = {"model_version": version, "score": score, "result": result}
    return {"data": data, "predictions": [started]}
