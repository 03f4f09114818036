"""Merge: a label set and the dataset it was asked of become a new dataset version."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from workbench.errors import ParameterError
from workbench.labeling.agreement import preferred
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Label, Role
from workbench.records.store import Store
from workbench.records.types import LabelSet


def merge(store: Store, dataset: Dataset, labelset: Ref) -> Dataset:
    """Keep a new version of ``dataset`` in which labelers' answers count, and return it.

    Its parents are the version it came from and the label set. See `merged` for the rules.

    Raises:
        ParameterError: ``dataset`` is no kept version, or lacks frames that were labeled.
    """
    if dataset.ref is None:
        raise ParameterError("only a kept dataset version can be the parent of another")
    record = store.get(labelset, LabelSet)
    labels = datasets.read_lines(store.payload(labelset, "labels.jsonl"), Label)
    answers = datasets.read_lines(store.payload(labelset, "answers.jsonl"), AnswerRow)
    result = merged(dataset, labels, answers)
    result = replace(result, simulated=dataset.simulated or record.simulated)
    ref = datasets.save(store, result, made_by="collect", parents=(dataset.ref, labelset))
    return replace(result, ref=ref)


def merged(dataset: Dataset, labels: tuple[Label, ...], answers: tuple[AnswerRow, ...]) -> Dataset:
    """``dataset`` with the answered frames' labels replaced by what labelers said.

    A frame of role ``pool`` that somebody labeled becomes ``train``, also when the answer is that
    there is nothing to box; other roles stay. A frame that was only skipped stays as it was. Of
    several answers to one frame, one is taken as `agreement.RULE` says.
    """
    people: dict[Digest, list[str]] = defaultdict(list)
    for answer in answers:
        if not answer.skipped:
            people[answer.frame].append(answer.annotator)
    strangers = people.keys() - {frame.id for frame in dataset.frames}
    if strangers:
        raise ParameterError(
            f"{len(strangers)} labeled frames are not in the dataset",
            where=dataset.ref or dataset.name,
            hint="Merge into the version that the batch was made from, or one that came from it",
        )
    taken = {frame: preferred(frame, names) for frame, names in people.items()}
    kept = [label for label in dataset.labels if label.frame not in taken]
    added = [label for label in labels if taken.get(label.frame) == label.annotator]
    frames = tuple(
        frame.model_copy(update={"role": Role.TRAIN})
        if frame.id in taken and frame.role is Role.POOL
        else frame
        for frame in dataset.frames
    )
    return replace(dataset, frames=frames, labels=(*kept, *added), ref=None)
