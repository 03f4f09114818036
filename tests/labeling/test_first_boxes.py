"""First boxes: sent from a measured precision on, capped, or not at all."""

from __future__ import annotations

import numpy as np

from tests.labeling.conftest import Sample
from workbench.labeling.first_boxes import choose_first_boxes, starts_empty
from workbench.records.frames import Box
from workbench.records.types import Prediction

AWAY = Box(x=200, y=100, w=9, h=9)


def judged(sample: Sample, wrong_below: float, count: int = 30) -> list[Prediction]:
    """Boxes with falling scores: on a label above a score, beside it below."""
    labels = list(sample.dataset.labels)
    rows = []
    for number, score in enumerate(np.linspace(0.95, 0.05, count).tolist()):
        label = labels[number % len(labels)]
        box = label.box if score >= wrong_below and number < len(labels) else AWAY
        rows.append(Prediction(frame=label.frame, cls="car", box=box, score=score))
    return rows


def boxes(sample: Sample, scores: list[float]) -> list[Prediction]:
    frame = next(frame.id for frame in sample.frames if not starts_empty(frame.id))
    return [Prediction(frame=frame, cls="car", box=AWAY, score=score) for score in scores]


def test_boxes_are_sent_from_the_measured_score_on(sample: Sample) -> None:
    found = boxes(sample, [0.9, 0.6, 0.2])
    first = choose_first_boxes(found, judged(sample, 0.0), sample.dataset, precision=0.3)
    assert first.score is not None and first.precision is not None
    assert first.precision >= 0.3
    assert len(first.boxes) == sum(one.score >= first.score for one in found)
    assert 0 < len(first.boxes) < 3


def test_labelers_see_the_measured_precision_and_not_the_score(sample: Sample) -> None:
    measured = judged(sample, 0.0)
    first = choose_first_boxes(
        boxes(sample, [0.95, 0.5, 0.05]), measured, sample.dataset, precision=0
    )
    hits = len(sample.dataset.labels)  # the boxes with the highest scores, all right
    assert [box.score for box in first.boxes] == [1.0, 0.0, 0.0] and hits < len(measured) // 2
    # A score that says nothing is worth the same everywhere: the share of right boxes.
    flat = [box.model_copy(update={"score": 0.99}) for box in measured]
    first = choose_first_boxes(boxes(sample, [0.99]), flat, sample.dataset, precision=0)
    assert first.boxes[0].score == round(hits / len(flat), 4)


def test_a_tenth_of_the_frames_starts_empty(sample: Sample) -> None:
    names = [f"{number:064x}" for number in range(1000)]
    found = [Prediction(frame=name, cls="car", box=AWAY, score=0.9) for name in names]
    first = choose_first_boxes(found, judged(sample, 0.0), sample.dataset, precision=0)
    assert {box.frame for box in first.boxes} == {n for n in names if not starts_empty(n)}
    assert first.held_out == len(names) - len(first.boxes) and 70 < first.held_out < 130
    assert f"{first.held_out} frames without boxes" in str(first)


def test_a_bad_model_sends_none_and_says_why(sample: Sample) -> None:
    found = boxes(sample, [0.99] * 100)
    first = choose_first_boxes(found, judged(sample, 1.0), sample.dataset)
    assert first.boxes == () and first.score is None and first.precision == 0
    assert str(first).startswith("no first boxes: at best precision 0.00 of")


def test_without_labeled_frames_none_are_sent(sample: Sample) -> None:
    first = choose_first_boxes(boxes(sample, [0.99]), (), sample.dataset)
    assert first.boxes == ()
    assert "too few to measure the model's precision (0 boxes)" in str(first)


def test_a_frame_gets_its_best_boxes_only(sample: Sample) -> None:
    found = boxes(sample, np.linspace(0.5, 0.99, 100).tolist())
    first = choose_first_boxes(
        found, judged(sample, 0.0), sample.dataset, precision=0, per_frame=20
    )
    assert len(first.boxes) == 20
    best = choose_first_boxes(found[-20:], judged(sample, 0.0), sample.dataset, precision=0)
    assert first.boxes == best.boxes
