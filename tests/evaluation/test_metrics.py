"""Cases with a result counted by hand, and invalid inputs."""

from __future__ import annotations

import pytest

from workbench.core.errors import DataError, ParameterError
from workbench.data.slices import ALL_FRAMES
from workbench.detection.model import Predictions
from workbench.evaluation.metrics import evaluate, paired_difference
from workbench.evaluation.results import EvaluationSettings
from workbench.records.frames import ANY_CLASS, Origin


def test_no_predictions_give_zero_recall_and_undefined_precision(build, quick):
    frame = build.frame()
    dataset = build.dataset([frame], [build.label(frame, "car", (0, 0, 50, 50))])
    row = evaluate(Predictions(dataset, []), settings=quick).metrics.at()
    assert (row.ap.value, row.ar.value, row.recall.value) == (0, 0, 0)
    assert row.precision.value is None
    assert (row.tp, row.fp, row.fn) == (0, 0, 1)


def test_class_without_ground_truth_has_no_metrics_but_false_positives_count(build, quick):
    frame = build.frame()
    dataset = build.dataset([frame], [build.label(frame, "car", (0, 0, 50, 50))])
    found = [
        build.prediction(frame, "car", (0, 0, 50, 50)),
        build.prediction(frame, "truck", (0, 0, 9, 9)),
    ]
    metrics = evaluate(Predictions(dataset, found), settings=quick).metrics
    truck = metrics.at(cls="truck")
    assert (truck.ap.value, truck.recall.value, truck.f1.value) == (None, None, None)
    assert (truck.fp, truck.boxes) == (1, 0)
    assert metrics.at().ap.value == pytest.approx(1)
    assert metrics.at().precision.value == 0.5


def test_only_ignore_regions_leave_metrics_undefined(build, quick):
    frame = build.frame()
    region = build.label(frame, "car", (0, 0, 200, 200), ignore=True)
    inside = [
        build.prediction(frame, "car", (10 * workspace, 10, 30, 30)) for workspace in range(3)
    ]
    row = evaluate(
        Predictions(build.dataset([frame], [region]), inside), settings=quick
    ).metrics.at()
    assert (row.boxes, row.ap.value, row.recall.value) == (0, None, None)
    assert row.fp == 0


def test_ignore_region_of_any_class_ignores_predictions_of_every_class(build, quick):
    frame = build.frame()
    region = build.label(frame, ANY_CLASS, (0, 0, 200, 200), ignore=True)
    found = [build.prediction(frame, cls, (10, 10, 30, 30)) for cls in build.schema.classes]
    outside = build.prediction(frame, "car", (300, 10, 30, 30))
    evaluated = evaluate(
        Predictions(build.dataset([frame], [region]), [*found, outside]), settings=quick
    )
    assert evaluated.metrics.at().fp == 1
    assert evaluated.metrics.ignore_regions == 1


def test_label_slices_ignore_other_labels_and_count_unmatched_predictions(build, quick):
    frame = build.frame()
    hidden = build.label(frame, "car", (0, 0, 60, 60), occluded=0.7)
    clear = build.label(frame, "car", (200, 0, 60, 60), occluded=0.0)
    unknown = build.label(frame, "car", (300, 0, 60, 60))
    found = [
        build.prediction(frame, "car", (0, 0, 60, 60), 0.9),
        build.prediction(frame, "car", (200, 0, 60, 60), 0.8),
        build.prediction(frame, "car", (300, 0, 60, 60), 0.8),
        build.prediction(frame, "car", (100, 100, 60, 60), 0.7),
    ]
    dataset = build.dataset([frame], [hidden, clear, unknown])
    row = evaluate(Predictions(dataset, found), settings=quick).metrics.at("occluded")
    assert (row.boxes, row.tp, row.fp, row.fn) == (1, 1, 1, 0)
    assert row.ap.value == pytest.approx(1)


def test_size_slices_leave_out_false_positives_of_other_sizes(build, quick):
    frame = build.frame()
    dataset = build.dataset([frame], [build.label(frame, "car", (0, 0, 20, 20))])
    found = [
        build.prediction(frame, "car", (0, 0, 20, 20)),
        build.prediction(frame, "car", (0, 99, 120, 120)),
    ]
    metrics = evaluate(Predictions(dataset, found), settings=quick).metrics
    assert (metrics.at("size=small").tp, metrics.at("size=small").fp) == (1, 0)
    assert (metrics.at("size=large").boxes, metrics.at("size=large").fp) == (0, 1)


def test_vulnerable_road_users_are_a_slice_of_classes(build, quick):
    frame = build.frame()
    labels = [
        build.label(frame, "car", (0, 0, 50, 50)),
        build.label(frame, "cyclist", (99, 0, 50, 50)),
    ]
    found = [build.prediction(frame, "car", (200, 0, 50, 50))]
    row = evaluate(Predictions(build.dataset([frame], labels), found), settings=quick).metrics.at(
        "vru"
    )
    assert (row.boxes, row.fp, row.fn) == (1, 0, 1)


def test_threshold_sets_the_operating_point(build):
    frame = build.frame()
    dataset = build.dataset([frame], [build.label(frame, "car", (0, 0, 50, 50))])
    found = [
        build.prediction(frame, "car", (0, 0, 50, 50), 0.3),
        build.prediction(frame, "car", (99, 0, 9, 9), 0.29),
    ]
    at = {
        threshold: evaluate(
            Predictions(dataset, found),
            settings=EvaluationSettings(threshold=threshold, resamples=100),
        ).metrics.at()
        for threshold in (0.2, 0.3, 0.31)
    }
    assert [(row.tp, row.fp) for row in at.values()] == [(1, 1), (1, 0), (0, 0)]
    assert at[0.2].ap.value == at[0.31].ap.value


def test_simulated_truth_is_marked(build, quick):
    frame = build.frame()
    replayed = build.label(frame, "car", (0, 0, 50, 50), origin=Origin.REPLAYED)
    metrics = evaluate(Predictions(build.dataset([frame], [replayed]), []), settings=quick).metrics
    assert metrics.simulated
    assert metrics.truth == {"replayed": 1}
    real = build.label(frame, "car", (0, 0, 50, 50))
    assert not evaluate(
        Predictions(build.dataset([frame], [real]), []), settings=quick
    ).metrics.simulated


def test_model_compared_with_itself_has_zero_difference(build, quick):
    case = build.random(4)
    evaluated = evaluate(Predictions(case.dataset, case.predictions), settings=quick)
    figure = paired_difference(evaluated, evaluated, "ap").estimate
    assert (figure.value, figure.low, figure.high) == (0, 0, 0)


def test_paired_intervals_are_narrower_than_single_intervals(build):
    case = build.random(5, drives=20)
    settings = EvaluationSettings(resamples=300)
    best = evaluate(Predictions(case.dataset, case.predictions), settings=settings)
    fewer = [each for position, each in enumerate(case.predictions) if position % 10]
    worse = evaluate(
        Predictions(case.dataset, fewer, model="worse"),
        settings=settings,
    )
    change = paired_difference(best, worse, "recall").estimate
    assert change.value > 0
    alone = best.metrics.at().recall
    assert change.high - change.low < alone.high - alone.low


def test_models_on_other_frames_or_settings_are_not_compared(build, quick):
    case, other = build.random(6), build.random(7)
    first = evaluate(Predictions(case.dataset, case.predictions), settings=quick)
    with pytest.raises(ParameterError, match="different frames"):
        paired_difference(
            first, evaluate(Predictions(other.dataset, other.predictions), settings=quick), "ap"
        )
    strict = EvaluationSettings(resamples=100, confidence=0.9)
    with pytest.raises(ParameterError, match="settings"):
        paired_difference(
            first, evaluate(Predictions(case.dataset, case.predictions), settings=strict), "ap"
        )


def test_invalid_inputs_are_rejected_with_the_reason(build, quick):
    frame, other = build.frame(), build.frame("elsewhere")
    truth = [build.label(frame, "car", (0, 0, 50, 50))]
    dataset = build.dataset([frame], truth)
    cases = [
        (build.dataset([]), [], "no frames"),
        (dataset, [build.prediction(other, "car", (0, 0, 9, 9))], "outside the evaluation set"),
        (dataset, [build.prediction(frame, "tram", (0, 0, 9, 9))], "'tram'"),
        (dataset, [build.prediction(frame, "car", (float("nan"), 0, 9, 9))], "NaN or infinite"),
        (
            build.dataset([frame], [build.label(frame, "car", (0, 0, 9, 9), origin="model")]),
            [],
            "made by a model",
        ),
        (build.dataset([frame], [build.label(frame, "tram", (0, 0, 9, 9))]), [], "'tram'"),
    ]
    for data, predictions, message in cases:
        with pytest.raises(DataError, match=message):
            evaluate(Predictions(data, predictions), settings=quick)


def test_a_slice_that_was_not_evaluated_is_an_error(build, quick):
    case = build.random(0, drives=2)
    metrics = evaluate(
        Predictions(case.dataset, case.predictions), (ALL_FRAMES,), settings=quick
    ).metrics
    with pytest.raises(ParameterError, match="not evaluated"):
        metrics.at("vru")
