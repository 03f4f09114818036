"""What is withdrawn is gone from the next version, and whoever learned from it is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.labeling.conftest import Sample
from workbench import labeling
from workbench.errors import ParameterError
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Label, Origin, Role
from workbench.records.types import Checkpoint, DatasetVersion, ExportBundle, LabelSet

REASON = "consent withdrawn"


def merged(sample: Sample) -> Dataset:
    """Ada labels the first and the second frame (nothing there), Bob the third."""
    first, second, third = (frame.id for frame in sample.frames[:3])
    rows = [
        AnswerRow(frame=first, annotator="ada", boxes=1),
        AnswerRow(frame=second, annotator="ada", boxes=0),
        AnswerRow(frame=third, annotator="bob", boxes=1),
    ]
    labels = [by("ada", first), by("bob", third)]
    record = LabelSet(batch=sample.batch(), annotators=(), labels=2)
    payload = {"labels.jsonl": datasets.lines(labels), "answers.jsonl": datasets.lines(rows)}
    return labeling.merge(sample.store, sample.dataset, sample.store.put(record, payload))


def by(who: str, frame: Digest) -> Label:
    box = Box(x=1, y=2, w=30, h=40)
    return Label(frame=frame, cls="car", box=box, origin=Origin.HUMAN, annotator=who)


def model(sample: Sample, dataset: Ref, parent: Ref | None = None) -> Ref:
    record = Checkpoint(
        dataset=dataset,
        parent=parent,
        classes=("car",),
        architecture={},
        training={"of": dataset},
        preprocessing={},
    )
    return sample.store.put(record)


def test_a_labelers_frames_go_back_to_the_pool_empty_answers_included(sample: Sample) -> None:
    version = merged(sample)
    assert version.ref is not None
    done = labeling.withdraw(sample.store, version.ref, annotators=["ada"], reason=REASON)
    left = datasets.load(sample.store, done.dataset)
    roles = [left.frames[n].role for n in range(3)]
    assert roles == [Role.POOL, Role.POOL, Role.TRAIN]
    assert "ada" not in {label.annotator for label in left.labels}
    assert (done.frames_removed, done.labels_removed, done.frames_back_in_pool) == (0, 1, 2)
    record = sample.store.get(done.dataset, DatasetVersion)
    assert record.parents == (version.ref, done.withdrawal) and record.made_by == "withdraw"


def test_a_frame_that_judges_models_is_left_out_instead(sample: Sample) -> None:
    version = merged(sample)
    frames = tuple(one.model_copy(update={"role": Role.SAFETY}) for one in version.frames)
    ref = datasets.save(
        sample.store, replace(version, frames=frames), made_by="test", parents=(version.ref or "",)
    )
    done = labeling.withdraw(sample.store, ref, annotators=["ada"], reason=REASON)
    assert done.frames_removed == 2 and done.frames_back_in_pool == 0


def test_models_that_learned_are_named_with_what_was_made_of_them(sample: Sample) -> None:
    version = merged(sample)
    assert version.ref is not None
    clean = model(sample, sample.ref)
    tainted = model(sample, version.ref)
    offspring = model(sample, sample.ref, parent=tainted)
    bundle = sample.store.put(
        ExportBundle(checkpoint=tainted, calibration=sample.ref, classes=("car",), parity={})
    )
    done = labeling.withdraw(sample.store, version.ref, annotators=["ada"], reason=REASON)
    assert set(done.models) == {tainted, offspring, bundle} and clean not in done.models

    frame = sample.frames[2].id
    gone = labeling.withdraw(sample.store, version.ref, frames=[frame], reason=REASON)
    assert set(gone.models) == {tainted, offspring, bundle}
    assert frame not in {one.id for one in datasets.load(sample.store, gone.dataset).frames}


def test_what_is_not_there_cannot_be_withdrawn(sample: Sample) -> None:
    with pytest.raises(ParameterError, match="nothing of what is withdrawn"):
        labeling.withdraw(sample.store, sample.ref, annotators=["nobody"], reason=REASON)
    with pytest.raises(ParameterError, match="needs a reason"):
        labeling.withdraw(sample.store, sample.ref, annotators=["ada"], reason=" ")
