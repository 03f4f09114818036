"""Batches: frames, predictions and schema."""

from __future__ import annotations

import pytest

from tests.labeling.conftest import HEIGHT, MODEL, SCHEMA, WIDTH, Sample
from workbench.core.errors import ParameterError
from workbench.labeling.answers import labelers_needed
from workbench.labeling.batches import BatchContents, make_batch, sent_predictions
from workbench.labeling.sender import make_tasks, priority_order
from workbench.records.frames import Box
from workbench.records.types import RANDOM_SAMPLE_REASON, LabelBatch, Prediction, Selection


def predicted(sample: Sample, box: Box, cls: str = "car") -> Prediction:
    return Prediction(frame=sample.frames[0].id, cls=cls, box=box, score=0.5)


def test_equal_batches_are_one_record(sample: Sample) -> None:
    again = make_batch(
        sample.store, sample.ref, sample.selection, MODEL, reversed(sample.predictions)
    )
    assert again == sample.batch()
    batch = sample.store.get(again, LabelBatch)
    assert batch.frames == tuple(frame.id for frame in sample.frames)
    assert batch.label_schema == SCHEMA


def test_labelers_cannot_tell_the_arms_of_an_experiment_apart(sample: Sample) -> None:
    selection = sample.store.get(sample.selection, Selection)
    arms = [
        one.model_copy(update={"arm": "control" if one.rank >= 4 else "mined"})
        for one in selection.chosen
    ]
    ref = sample.store.put(selection.model_copy(update={"chosen": tuple(arms)}))
    ref = make_batch(sample.store, sample.ref, ref, MODEL, sample.predictions)
    batch = sample.store.get(ref, LabelBatch)
    assert batch.blind
    assert sorted(batch.frames) == sorted(frame.id for frame in sample.frames)
    assert batch.frames != tuple(frame.id for frame in sample.frames), "in order of rank"
    tasks = list(make_tasks(BatchContents(sample.store, ref), priority_order(batch)))
    assert [task["data"]["rank"] for task in tasks] == list(range(1, len(tasks) + 1))
    assert {task["data"]["why"] for task in tasks} == {"chosen for labeling"}
    columns = {key for task in tasks for key in task["data"]}
    assert columns == {"image", "note", "why", "rank", "drive", "frame", "batch"}


def test_a_gold_frame_looks_like_one_drawn_at_random(sample: Sample) -> None:
    contents = BatchContents(sample.store, sample.batch())
    contents.selected = lambda frame: None  # type: ignore[method-assign]
    (task,) = make_tasks(contents, [sample.frames[0].id])
    assert task["data"]["why"] == RANDOM_SAMPLE_REASON


def test_predictions_are_clipped_to_the_image_and_duplicates_dropped(sample: Sample) -> None:
    over = predicted(sample, Box(x=-5, y=HEIGHT - 10, w=20, h=50))
    outside = predicted(sample, Box(x=WIDTH + 1, y=0, w=20, h=20))
    ref = make_batch(sample.store, sample.ref, sample.selection, MODEL, [over, outside, over])
    predictions = sent_predictions(sample.store, ref)
    assert list(predictions) == [sample.frames[0].id]
    assert [one.box for one in predictions[sample.frames[0].id]] == [
        Box(x=0, y=HEIGHT - 10, w=15, h=10)
    ]


def test_predictions_of_other_frames_are_left_out(sample: Sample) -> None:
    stranger = Prediction(frame="f" * 64, cls="car", box=Box(x=1, y=1, w=9, h=9), score=0.5)
    ref = make_batch(sample.store, sample.ref, sample.selection, None, [stranger])
    assert sent_predictions(sample.store, ref) == {}


def test_an_unknown_class_is_named(sample: Sample) -> None:
    bus = predicted(sample, Box(x=1, y=1, w=9, h=9), "bus")
    with pytest.raises(ParameterError, match="bus"):
        make_batch(sample.store, sample.ref, sample.selection, MODEL, [bus])


def test_predictions_need_their_model(sample: Sample) -> None:
    with pytest.raises(ParameterError, match="model"):
        make_batch(sample.store, sample.ref, sample.selection, None, sample.predictions)


@pytest.mark.parametrize("overlap", [-0.1, 1.5])
def test_overlap_is_a_share(sample: Sample, overlap: float) -> None:
    with pytest.raises(ParameterError, match="between 0 and 1"):
        sample.batch(overlap)


def test_overlap_doubles_its_share_of_frames_always_the_same(sample: Sample) -> None:
    batch = sample.store.get(sample.batch(3 / 7), LabelBatch)
    needed = labelers_needed(batch)
    assert sorted(needed.values()) == [1, 1, 1, 1, 2, 2, 2]
    shuffled = batch.model_copy(update={"frames": tuple(reversed(batch.frames))})
    assert labelers_needed(shuffled) == needed
