"""Suspects, review batches and labeling effort."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tests.labeling.conftest import MODEL, Sample, make_sample
from workbench.cli.labeling import label
from workbench.core.errors import ParameterError
from workbench.core.workspace import HOME_VARIABLE, Workspace
from workbench.labeling.answers import REPLAY_DOMAIN, AnswerRow
from workbench.labeling.batches import BatchContents, make_batch
from workbench.labeling.first_boxes import starts_empty
from workbench.labeling.review import (
    Suspect,
    labeling_effort,
    select_for_review,
    suspects_from_model,
)
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import ANY_CLASS, Box, Label, Origin, Role
from workbench.records.store import Store
from workbench.records.types import LabelBatch, LabelSet, Prediction, Selection


def trained(sample: Sample, *labels: Label) -> Dataset:
    frames = tuple(one.model_copy(update={"role": Role.TRAIN}) for one in sample.frames)
    return replace(sample.dataset, frames=frames, labels=labels)


def drawn(sample: Sample, x: float, cls: str = "car", *, ignore: bool = False) -> Label:
    box = Box(x=x, y=10, w=20, h=20)
    frame = sample.frames[0].id
    return Label(frame=frame, cls=cls, box=box, origin=Origin.HUMAN, ignore=ignore)


def borne_out(sample: Sample) -> tuple[list[Label], list[Prediction]]:
    """Labels of another frame on which a model is right: what it says is to be believed."""
    frame = sample.frames[1].id
    labels = [drawn(sample, x).model_copy(update={"frame": frame}) for x in range(0, 400, 40)]
    suspects = [Prediction(frame=frame, cls="car", box=one.box, score=0.9) for one in labels]
    return labels, suspects


def seen(sample: Sample, x: float, cls: str = "car", score: float = 0.9) -> Prediction:
    box = Box(x=x, y=10, w=20, h=20)
    return Prediction(frame=sample.frames[0].id, cls=cls, box=box, score=score)


@pytest.mark.parametrize(
    ("labels", "predictions", "kinds"),
    [
        ([0], [(0, "car", 0.9)], []),
        ([], [(0, "car", 0.9)], ["missed"]),
        ([], [(0, "car", 0.05)], []),
        ([0], [(0, "pedestrian", 0.9)], ["class"]),
        ([0], [(8, "car", 0.9)], ["placed"]),
    ],
)
def test_each_kind_of_contradiction(
    sample: Sample,
    labels: list[float],
    predictions: list[tuple[float, str, float]],
    kinds: list[str],
) -> None:
    known, right = borne_out(sample)
    dataset = trained(sample, *known, *(drawn(sample, x) for x in labels))
    suspects = suspects_from_model(dataset, [*right, *(seen(sample, *one) for one in predictions)])
    assert [one.kind for one in suspects] == kinds


def test_ignore_areas_and_unlabeled_frames_are_left_out(sample: Sample) -> None:
    area = drawn(sample, 0, ANY_CLASS, ignore=True)
    assert suspects_from_model(trained(sample, area), [seen(sample, 2)]) == []
    assert suspects_from_model(replace(sample.dataset, labels=()), [seen(sample, 2)]) == []


def test_the_worst_frames_come_first_with_their_reasons(sample: Sample) -> None:
    known, right = borne_out(sample)
    dataset = trained(sample, *known)
    other = seen(sample, 430).model_copy(update={"frame": sample.frames[1].id})
    suspects = suspects_from_model(dataset, [*right, seen(sample, 0), seen(sample, 100), other])
    ref = select_for_review(sample.store, sample.ref, suspects, budget=2)
    selection = sample.store.get(ref, Selection)
    assert [one.frame for one in selection.chosen] == [sample.frames[0].id, sample.frames[1].id]
    assert "model detects car (score 90%) without a label" in selection.chosen[0].reasons
    with pytest.raises(ParameterError, match="no suspicious labels"):
        select_for_review(sample.store, sample.ref, [], budget=2)


def test_a_review_starts_from_the_labels_and_not_from_the_model(sample: Sample) -> None:
    frame = sample.frames[2]
    ref = select_for_review(
        sample.store, sample.ref, [Suspect(frame.id, "missed", 1.0, "why")], 1, MODEL
    )
    batch = make_batch(sample.store, sample.ref, ref)
    assert sample.store.get(batch, LabelBatch).model is None
    started = BatchContents(sample.store, batch).predictions(frame.id)
    assert sorted(one.box.xyxy for one in started.values()) == sorted(
        label.box.xyxy for label in sample.boxes(frame.id)
    )


def labelset(
    sample: Sample, rows: list[AnswerRow], labels: list[Label], batch: Ref | None = None
) -> Ref:
    record = LabelSet(batch=batch or sample.batch(), annotators=(), labels=len(labels))
    return sample.store.put(
        record,
        {
            "labels.jsonl": datasets.to_json_lines(labels),
            "answers.jsonl": datasets.to_json_lines(rows),
        },
    )


def test_effort_counts_people_only(sample: Sample) -> None:
    rows = [
        AnswerRow(frame=frame.id, annotator="ada", boxes=n, minutes=(10 + 5 * n) / 60)
        for n, frame in enumerate(sample.frames)
    ]
    robot = f"replay-1@{REPLAY_DOMAIN}"
    rows.append(AnswerRow(frame=sample.frames[0].id, annotator=robot, boxes=9))
    own = drawn(sample, 0).model_copy(update={"annotator": "ada"})
    suspects = labeling_effort(sample.store, [labelset(sample, rows, [own])])
    assert (suspects.seconds_per_frame, suspects.seconds_per_box) == (10.0, 5.0)
    assert suspects.minutes == pytest.approx((7 * 10 + 5 * 21) / 60, abs=1e-3)
    assert suspects.changed_per_minute == pytest.approx(1 / suspects.minutes, abs=1e-2)
    # A labeler whose time is not known draws many boxes: no minute of another's has them.
    many = [own.model_copy(update={"annotator": "bob"})] * 50
    untimed = AnswerRow(frame=sample.frames[0].id, annotator="bob", boxes=50)
    same = labeling_effort(sample.store, [labelset(sample, [*rows, untimed], [own, *many])])
    assert same.changed_per_minute == suspects.changed_per_minute
    nothing = labeling_effort(sample.store, [])
    assert nothing.seconds_per_frame is None and nothing.changed_per_minute is None


@pytest.mark.parametrize("file", ["record.json", "payload/answers.jsonl", "payload/labels.jsonl"])
def test_a_damaged_label_set_is_named_and_the_others_count(sample: Sample, file: str) -> None:
    rows = [AnswerRow(frame=sample.frames[0].id, annotator="ada", boxes=2, minutes=1)]
    whole = labelset(sample, rows, [])
    broken = labelset(sample, rows, [drawn(sample, 0)])
    (sample.store.folder(broken) / file).write_bytes(b"{")
    store = Store(sample.store.workspace)
    effort = labeling_effort(store, [broken, whole])
    assert (effort.frames, effort.minutes, list(effort.damaged)) == (1, 1.0, [broken])
    done = CliRunner().invoke(
        label, ["effort", "--json"], env={HOME_VARIABLE: str(store.workspace.root)}
    )
    assert (done.exit_code, list(json.loads(done.stdout)["damaged"])) == (0, [broken])
    assert f"left out: {broken}" in done.stderr


@pytest.mark.parametrize(
    ("seconds_with", "verdict"), [(10, "saves time"), (30, "costs time"), (20, "undecided")]
)
def test_first_boxes_are_compared_with_frames_that_start_empty(
    workspace: Workspace, seconds_with: float, verdict: str
) -> None:
    sample = make_sample(workspace, "effort", 60)
    held_out = {frame.id for frame in sample.frames if starts_empty(frame.id)}
    assert 2 <= len(held_out) < 20
    shown = [one for one in sample.predictions if one.frame not in held_out]
    batch = make_batch(sample.store, sample.ref, sample.selection, MODEL, shown)
    rows = []
    for number, frame in enumerate(sample.frames):
        base = 20 if frame.id in held_out else seconds_with
        rows.append(
            AnswerRow(
                frame=frame.id, annotator="ada", boxes=2, minutes=(base + number % 3 - 1) / 60
            )
        )
    effect = labeling_effort(sample.store, [labelset(sample, rows, [], batch)]).first_boxes
    assert effect is not None and effect.interval is not None
    assert (effect.without_boxes, effect.with_boxes) == (len(held_out), 60 - len(held_out))
    assert effect.ratio == pytest.approx(seconds_with / 20, rel=0.06)
    assert effect.interval[0] <= effect.ratio <= effect.interval[1]
    assert effect.verdict == verdict
    # All frames with boxes, as before this was measured: nothing to compare.
    assert labeling_effort(sample.store, [labelset(sample, rows, [])]).first_boxes is None
