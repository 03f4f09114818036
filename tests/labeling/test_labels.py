"""A new dataset version from labelers' answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.labeling.conftest import Sample
from workbench import labeling
from workbench.errors import ParameterError
from workbench.labeling.answers import AnswerRow
from workbench.labeling.consensus import preferred
from workbench.labeling.labels import merged
from workbench.records import dataset as datasets
from workbench.records.base import Digest
from workbench.records.frames import Box, Label, Origin, Role
from workbench.records.types import DatasetVersion, LabelSet


def label(frame: Digest, who: str) -> Label:
    box = Box(x=1, y=2, w=30, h=40)
    return Label(frame=frame, cls="car", box=box, origin=Origin.HUMAN, annotator=who)


def test_answered_frames_are_relabeled_and_become_train(sample: Sample) -> None:
    boxed, empty, skipped, untouched = (frame.id for frame in sample.frames[1:5])
    answers = (
        AnswerRow(frame=boxed, annotator="ada", boxes=1),
        AnswerRow(frame=empty, annotator="ada", boxes=0),
        AnswerRow(frame=skipped, annotator="ada", boxes=0, skipped=True),
    )
    result = merged(sample.dataset, (label(boxed, "ada"),), answers)
    roles = {frame.id: frame.role for frame in result.frames}
    assert (roles[boxed], roles[empty]) == (Role.TRAIN, Role.TRAIN)
    assert (roles[skipped], roles[untouched]) == (Role.POOL, Role.POOL)
    assert result.labels_by_frame[boxed] == (label(boxed, "ada"),)
    assert result.labels_by_frame[empty] == ()
    assert result.labels_by_frame[untouched] == sample.boxes(untouched)


def test_frames_with_a_role_keep_it(sample: Sample) -> None:
    frame = sample.frames[0]
    safety = replace(sample.dataset, frames=(frame.model_copy(update={"role": Role.SAFETY}),))
    result = merged(safety, (), (AnswerRow(frame=frame.id, annotator="ada", boxes=0),))
    assert result.frames[0].role is Role.SAFETY


def test_of_two_answers_one_is_taken_whole(sample: Sample) -> None:
    frame = sample.frames[0].id
    answers = tuple(AnswerRow(frame=frame, annotator=who, boxes=1) for who in ("ada", "bob"))
    result = merged(sample.dataset, (label(frame, "ada"), label(frame, "bob")), answers)
    assert [each.annotator for each in result.labels_by_frame[frame]] == [
        preferred(frame, ["ada", "bob"])
    ]


def test_who_skipped_is_not_asked_for_boxes(sample: Sample) -> None:
    frame = sample.frames[0].id
    answers = (
        AnswerRow(frame=frame, annotator="ada", boxes=0, skipped=True),
        AnswerRow(frame=frame, annotator="bob", boxes=1),
    )
    result = merged(sample.dataset, (label(frame, "bob"),), answers)
    assert [each.annotator for each in result.labels_by_frame[frame]] == ["bob"]


def test_the_version_is_kept_with_its_parents(sample: Sample) -> None:
    frame = sample.frames[2].id
    labels = datasets.lines([label(frame, "ada")])
    answers = datasets.lines([AnswerRow(frame=frame, annotator="ada", boxes=1)])
    ref = sample.store.put(
        LabelSet(batch=sample.batch(), annotators=(), labels=1, simulated=True),
        {"labels.jsonl": labels, "answers.jsonl": answers},
    )
    result = labeling.merge(sample.store, sample.dataset, ref)
    assert result.ref is not None and result.simulated
    record = sample.store.get(result.ref, DatasetVersion)
    assert record.parents == (sample.ref, ref)
    assert record.made_by == "collect"
    again = labeling.merge(sample.store, sample.dataset, ref)
    assert again.ref == result.ref


def test_strangers_are_refused(sample: Sample) -> None:
    with pytest.raises(ParameterError, match="not in the dataset"):
        merged(sample.dataset, (), (AnswerRow(frame="f" * 64, annotator="ada", boxes=0),))
