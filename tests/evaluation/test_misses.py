"""Why a label was missed: score, class, place, a box that another label took, or nothing."""

from __future__ import annotations

import pytest

from workbench.detection.model import Predictions
from workbench.evaluation.metrics import evaluate
from workbench.evaluation.misses import explain_misses, worst_frames

BOX, SHIFTED, AWAY = (100, 50, 40, 80), (120, 50, 40, 80), (300, 50, 40, 80)


@pytest.mark.parametrize(
    ("found", "kind", "words"),
    [
        ([], "nothing", "no box near it"),
        ([("pedestrian", AWAY, 0.9)], "nothing", "no box near it"),
        ([("pedestrian", BOX, 0.1)], "below threshold", "scored too low: pedestrian 0.10 at IoU 1"),
        ([("cyclist", BOX, 0.9)], "class", "as another class: cyclist 0.90 at IoU 1.00"),
        ([("pedestrian", SHIFTED, 0.9)], "place", "wrong place: pedestrian 0.90 at IoU 0.33"),
        # A box of the class that scored too low says more than another class that is sure.
        ([("cyclist", BOX, 0.9), ("pedestrian", BOX, 0.2)], "below threshold", "pedestrian 0.20"),
        # Neither sure nor in place: the nearest is shown, but it is no finding.
        ([("pedestrian", SHIFTED, 0.1)], "nothing", "no box near it"),
    ],
)
def test_each_cause_is_told_with_its_evidence(build, quick, found, kind, words):
    frame = build.frame()
    label = build.label(frame, "pedestrian", BOX, occluded=0.4)
    boxes = [build.prediction(frame, *one) for one in found]
    dataset = build.dataset([frame], [label])
    worst = worst_frames(evaluate(Predictions(dataset, boxes), settings=quick))
    (miss,) = explain_misses(worst, boxes, threshold=quick.threshold)
    assert (miss.label, miss.kind) == (label, kind)
    assert words in miss.why and miss.why.endswith("(40% occluded)")
    assert (miss.nearest is None) == (miss.iou == 0)


def test_a_box_that_another_label_took_and_what_the_other_model_says(build, quick):
    frame = build.frame()
    labels = [
        build.label(frame, "car", (100, 50, 20, 20)),
        build.label(frame, "car", (102, 50, 20, 20)),
    ]
    boxes = [build.prediction(frame, "car", (100, 50, 20, 20))]
    worst = worst_frames(
        evaluate(Predictions(build.dataset([frame], labels), boxes), settings=quick)
    )
    other = [
        build.prediction(frame, "car", (102, 50, 20, 20), 0.7),
        build.prediction(frame, "truck", (102, 50, 20, 20), 0.95),
    ]
    (miss,) = explain_misses(worst, boxes, threshold=quick.threshold, other=other)
    assert miss.label == labels[1] and miss.kind == "taken"
    assert miss.circumstances == ("small: 20x20 px",)
    assert miss.why.endswith("the other model finds it with 0.70")
    assert str(miss).startswith("car 20x20 px at (102, 50) of ")
