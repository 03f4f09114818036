"""New dataset versions from answers and withdrawals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.labeling.conftest import Sample
from workbench import labeling
from workbench.audit import log as audit
from workbench.core.errors import ParameterError
from workbench.labeling.agreement import preferred_labeler
from workbench.labeling.answers import AnswerRow
from workbench.labeling.versions import merge_answers
from workbench.records import dataset
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Label, Origin, Role
from workbench.records.model_types import Checkpoint, ExportBundle
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
    result = merge_answers(sample.dataset, (label(boxed, "ada"),), answers)
    roles = {frame.id: frame.role for frame in result.frames}
    assert (roles[boxed], roles[empty]) == (Role.TRAIN, Role.TRAIN)
    assert (roles[skipped], roles[untouched]) == (Role.POOL, Role.POOL)
    assert result.labels_by_frame[boxed] == (label(boxed, "ada"),)
    assert result.labels_by_frame[empty] == ()
    assert result.labels_by_frame[untouched] == sample.boxes(untouched)


def test_frames_with_a_role_keep_it(sample: Sample) -> None:
    frame = sample.frames[0]
    safety = replace(sample.dataset, frames=(frame.model_copy(update={"role": Role.SAFETY}),))
    result = merge_answers(safety, (), (AnswerRow(frame=frame.id, annotator="ada", boxes=0),))
    assert result.frames[0].role is Role.SAFETY


def test_of_two_answers_one_is_used(sample: Sample) -> None:
    frame = sample.frames[0].id
    answers = tuple(AnswerRow(frame=frame, annotator=who, boxes=1) for who in ("ada", "bob"))
    result = merge_answers(sample.dataset, (label(frame, "ada"), label(frame, "bob")), answers)
    assert [each.annotator for each in result.labels_by_frame[frame]] == [
        preferred_labeler(frame, ["ada", "bob"])
    ]


def test_skips_do_not_count_as_answers(sample: Sample) -> None:
    frame = sample.frames[0].id
    answers = (
        AnswerRow(frame=frame, annotator="ada", boxes=0, skipped=True),
        AnswerRow(frame=frame, annotator="bob", boxes=1),
    )
    result = merge_answers(sample.dataset, (label(frame, "bob"),), answers)
    assert [each.annotator for each in result.labels_by_frame[frame]] == ["bob"]


def test_the_version_is_saved_with_its_parents(sample: Sample) -> None:
    frame = sample.frames[2].id
    labels = dataset.to_json_lines([label(frame, "ada")])
    answers = dataset.to_json_lines([AnswerRow(frame=frame, annotator="ada", boxes=1)])
    ref = sample.store.put(
        LabelSet(batch=sample.batch(), annotators=(), labels=1, simulated=True),
        {"labels.jsonl": labels, "answers.jsonl": answers},
    )
    result = labeling.merge(sample.store, sample.dataset, ref)
    assert result.ref is not None
    record = sample.store.get(result.ref, DatasetVersion)
    assert record.parents == (sample.ref, ref)
    assert record.made_by == "collect"
    again = labeling.merge(sample.store, sample.dataset, ref)
    assert again.ref == result.ref


def test_replayed_answers_do_not_make_recorded_drives_simulated(sample: Sample) -> None:
    frame = sample.frames[2].id
    replayed = label(frame, "replay-1").model_copy(update={"origin": Origin.REPLAYED})
    ref = sample.store.put(
        LabelSet(batch=sample.batch(), annotators=(), labels=1, simulated=True),
        {
            "labels.jsonl": dataset.to_json_lines([replayed]),
            "answers.jsonl": dataset.to_json_lines(
                [AnswerRow(frame=frame, annotator="replay-1", boxes=1)]
            ),
        },
    )
    for simulated in (False, True):
        recorded = replace(sample.dataset, simulated=simulated)
        result = labeling.merge(sample.store, recorded, ref)
        # Gates, the detector and the way to mine follow from it; the labels say what they are.
        assert result.simulated is simulated
        assert result.labels_by_frame[frame][0].origin is Origin.REPLAYED


def test_unknown_frames_are_errors(sample: Sample) -> None:
    with pytest.raises(ParameterError, match="not in the dataset"):
        merge_answers(sample.dataset, (), (AnswerRow(frame="f" * 64, annotator="ada", boxes=0),))


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
    payload = {
        "labels.jsonl": datasets.to_json_lines(labels),
        "answers.jsonl": datasets.to_json_lines(rows),
    }
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
    left = datasets.load_dataset(sample.store, done.dataset)
    roles = [left.frames[n].role for n in range(3)]
    assert roles == [Role.POOL, Role.POOL, Role.TRAIN]
    assert "ada" not in {label.annotator for label in left.labels}
    assert (done.frames_removed, done.labels_removed, done.frames_back_in_pool) == (0, 1, 2)
    record = sample.store.get(done.dataset, DatasetVersion)
    assert record.parents == (version.ref, done.withdrawal) and record.made_by == "withdraw"
    (entry,) = audit.read_log(sample.store.workspace, done.withdrawal)
    assert (entry.event, entry.detail["annotators"]) == ("withdrew", ["ada"])


def test_evaluation_frames_are_removed_instead(sample: Sample) -> None:
    version = merged(sample)
    frames = tuple(one.model_copy(update={"role": Role.SAFETY}) for one in version.frames)
    ref = datasets.save_dataset(
        sample.store, replace(version, frames=frames), made_by="test", parents=(version.ref or "",)
    )
    done = labeling.withdraw(sample.store, ref, annotators=["ada"], reason=REASON)
    assert done.frames_removed == 2 and done.frames_back_in_pool == 0


def test_affected_models_bundles_and_releases_are_named(sample: Sample) -> None:
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
    assert frame not in {one.id for one in datasets.load_dataset(sample.store, gone.dataset).frames}


def test_nothing_to_withdraw_is_an_error(sample: Sample) -> None:
    with pytest.raises(ParameterError, match="contains none of these"):
        labeling.withdraw(sample.store, sample.ref, annotators=["nobody"], reason=REASON)
    with pytest.raises(ParameterError, match="reason is empty"):
        labeling.withdraw(sample.store, sample.ref, annotators=["ada"], reason=" ")
