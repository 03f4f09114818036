"""Metrics equal the reference implementation exactly, also for resampled drives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data import resampling
from workbench.data.slices import ALL_FRAMES, STANDARD_SLICES
from workbench.detection.model import Predictions
from workbench.evaluation import matching, metrics
from workbench.evaluation.coco import coco_metrics, pool_metrics
from workbench.evaluation.matching import IOU_THRESHOLDS, match_slice
from workbench.evaluation.metrics import evaluate


def test_metrics_equal_a_plain_coco_run_exactly(build, quick, plain_coco):
    case = build.random(1)
    metrics = evaluate(Predictions(case.dataset, case.predictions), settings=quick).metrics
    theirs = plain_coco(case)
    assert 0 < theirs["AP_all"] < 1
    row = metrics.at()
    assert row.ap.value == theirs["AP_all"]
    assert row.ap50.value == theirs["AP_50"]
    assert row.ar.value == theirs["AR_all"]
    for size in ("small", "medium", "large"):
        row = metrics.at(f"size={size}")
        assert (row.ap.value, row.ar.value) == (theirs[f"AP_{size}"], theirs[f"AR_{size}"])


def test_frame_slices_equal_a_plain_run_on_those_frames(build, quick, plain_coco):
    case = build.random(2)
    night = case.dataset.where(lambda frame: frame.conditions.light == "night")
    kept = {frame.id for frame in night.frames}
    alone = type(case)(night, tuple(each for each in case.predictions if each.frame in kept))
    row = evaluate(Predictions(case.dataset, case.predictions), settings=quick).metrics.at(
        "light=night"
    )
    assert row.ap.value == plain_coco(alone)["AP_all"]
    assert row.frames == len(night.frames)


def test_predictions_are_limited_to_one_hundred_as_in_coco(build, quick, plain_coco):
    frame = build.frame()
    labels = [build.label(frame, "car", (20 * position, 0, 20, 20)) for position in range(10)]
    random = np.random.default_rng(0)
    alarms = [
        build.prediction(frame, "car", (20 * (position % 10), 12, 20, 20), 0.9 - position / 1000)
        for position in range(140)
    ]
    late = [build.prediction(frame, "car", (0, 0, 20, 20), 0.05), *alarms]
    case = build.random().with_predictions(late[position] for position in random.permutation(141))
    case = type(case)(build.dataset([frame], labels), case.predictions)
    row = evaluate(Predictions(case.dataset, case.predictions), settings=quick).metrics.at()
    assert row.ar.value == plain_coco(case)["AR_all"] == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), part=st.sampled_from(STANDARD_SLICES))
def test_match_tables_equal_the_reference_even_with_ties(build, seed, part):
    case = build.random(seed, drives=6, each=3, coarse=True)
    whole = matching.build_evaluation_set(case.dataset, case.predictions)
    table = match_slice(whole, part)
    groups = metrics.cluster_frames(whole.frames, table.frames)
    ours = pool_metrics(table, groups.of, np.ones((1, groups.count)), 0.3)
    theirs = coco_metrics(whole, part)
    for name in ("ap", "ap50", "ar"):
        np.testing.assert_allclose(
            getattr(ours, name)[0], getattr(theirs, name), rtol=0, atol=1e-12
        )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_resampled_metrics_equal_coco_on_the_resampled_drives(build, plain_coco, seed):
    case = build.random(seed)
    whole = matching.build_evaluation_set(case.dataset, case.predictions)
    table = match_slice(whole, ALL_FRAMES)
    groups = metrics.cluster_frames(whole.frames, table.frames)
    weights = resampling.draw_resamples(groups.count, 5, seed)
    ours = pool_metrics(table, groups.of, weights, 0.3)
    names = sorted({frame.drive for frame in case.dataset.frames})
    for row in (1, 5):
        times = dict(zip(names, weights[row].astype(int), strict=True))
        theirs = plain_coco(build.repeated(case, times))
        assert np.nanmean(ours.ap[row]) == pytest.approx(theirs["AP_all"], abs=1e-12)
        assert np.nanmean(ours.ap50[row]) == pytest.approx(theirs["AP_50"], abs=1e-12)
        assert np.nanmean(ours.ar[row]) == pytest.approx(theirs["AR_all"], abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_results_do_not_depend_on_the_order_of_inputs(build, quick, seed):
    case = build.random(seed, coarse=True)
    other = build.shuffled(case, seed + 1)
    first = evaluate(Predictions(case.dataset, case.predictions), settings=quick)
    second = evaluate(Predictions(other.dataset, other.predictions), settings=quick)
    assert first.metrics == second.metrics


def test_repeating_every_drive_keeps_metrics_and_narrows_the_interval(build, quick):
    case = build.random(3)
    names = {frame.drive for frame in case.dataset.frames}
    fourfold = build.repeated(case, dict.fromkeys(sorted(names), 4))
    once = evaluate(
        Predictions(case.dataset, case.predictions), [ALL_FRAMES], settings=quick
    ).metrics.at()
    more = evaluate(
        Predictions(fourfold.dataset, fourfold.predictions), [ALL_FRAMES], settings=quick
    ).metrics.at()
    assert more.ap.value == pytest.approx(once.ap.value, abs=1e-12)
    assert (more.tp, more.fp, more.fn) == (4 * once.tp, 4 * once.fp, 4 * once.fn)
    assert more.recall.high - more.recall.low < once.recall.high - once.recall.low


def test_recall_thresholds_are_multiples_of_one_step():
    from workbench.evaluation.matching import RECALL_THRESHOLDS

    assert (np.arange(101) * RECALL_THRESHOLDS[1] == RECALL_THRESHOLDS).all()
    assert IOU_THRESHOLDS[0] == 0.5
