"""Metrics equal the reference implementation exactly, also for resampled drives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data import resampling
from workbench.data.slices import ALL_FRAMES, STANDARD_SLICES
from workbench.detection.model import Predictions
from workbench.evaluation import bootstrap, matching
from workbench.evaluation.coco import coco_metrics, pool_metrics
from workbench.evaluation.matching import IOU_THRESHOLDS, match_slice
from workbench.evaluation.metrics import evaluate


def test_metrics_equal_a_plain_coco_run_exactly(build, quick, plain_coco):
    made = build.random(1)
    metrics = evaluate(Predictions(made.dataset, made.predictions), settings=quick).metrics
    theirs = plain_coco(made)
    assert 0 < theirs["AP_all"] < 1
    row = metrics.at()
    assert row.ap.value == theirs["AP_all"]
    assert row.ap50.value == theirs["AP_50"]
    assert row.ar.value == theirs["AR_all"]
    for size in ("small", "medium", "large"):
        row = metrics.at(f"size={size}")
        assert (row.ap.value, row.ar.value) == (theirs[f"AP_{size}"], theirs[f"AR_{size}"])


def test_frame_slices_equal_a_plain_run_on_those_frames(build, quick, plain_coco):
    made = build.random(2)
    night = made.dataset.where(lambda frame: frame.conditions.light == "night")
    kept = {frame.id for frame in night.frames}
    alone = type(made)(night, tuple(each for each in made.predictions if each.frame in kept))
    row = evaluate(Predictions(made.dataset, made.predictions), settings=quick).metrics.at(
        "light=night"
    )
    assert row.ap.value == plain_coco(alone)["AP_all"]
    assert row.frames == len(night.frames)


def test_predictions_are_limited_to_one_hundred_as_in_coco(build, quick, plain_coco):
    frame = build.frame()
    labels = [build.label(frame, "car", (20 * place, 0, 20, 20)) for place in range(10)]
    random = np.random.default_rng(0)
    alarms = [
        build.found(frame, "car", (20 * (place % 10), 12, 20, 20), 0.9 - place / 1000)
        for place in range(140)
    ]
    late = [build.found(frame, "car", (0, 0, 20, 20), 0.05), *alarms]
    made = build.random().with_predictions(late[place] for place in random.permutation(141))
    made = type(made)(build.dataset([frame], labels), made.predictions)
    row = evaluate(Predictions(made.dataset, made.predictions), settings=quick).metrics.at()
    assert row.ar.value == plain_coco(made)["AR_all"] == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), part=st.sampled_from(STANDARD_SLICES))
def test_match_tables_equal_the_reference_even_with_ties(build, seed, part):
    made = build.random(seed, drives=6, each=3, coarse=True)
    whole = matching.build_evaluation_set(made.dataset, made.predictions)
    table = match_slice(whole, part)
    groups = bootstrap.cluster_frames(whole.frames, table.frames)
    ours = pool_metrics(table, groups.of, np.ones((1, groups.count)), 0.3)
    theirs = coco_metrics(whole, part)
    for name in ("ap", "ap50", "ar"):
        np.testing.assert_allclose(
            getattr(ours, name)[0], getattr(theirs, name), rtol=0, atol=1e-12
        )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_resampled_metrics_equal_coco_on_the_resampled_drives(build, plain_coco, seed):
    made = build.random(seed)
    whole = matching.build_evaluation_set(made.dataset, made.predictions)
    table = match_slice(whole, ALL_FRAMES)
    groups = bootstrap.cluster_frames(whole.frames, table.frames)
    weights = resampling.draw_resamples(groups.count, 5, seed)
    ours = pool_metrics(table, groups.of, weights, 0.3)
    names = sorted({frame.drive for frame in made.dataset.frames})
    for row in (1, 5):
        times = dict(zip(names, weights[row].astype(int), strict=True))
        theirs = plain_coco(build.repeated(made, times))
        assert np.nanmean(ours.ap[row]) == pytest.approx(theirs["AP_all"], abs=1e-12)
        assert np.nanmean(ours.ap50[row]) == pytest.approx(theirs["AP_50"], abs=1e-12)
        assert np.nanmean(ours.ar[row]) == pytest.approx(theirs["AR_all"], abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_results_do_not_depend_on_the_order_of_inputs(build, quick, seed):
    made = build.random(seed, coarse=True)
    other = build.shuffled(made, seed + 1)
    first = evaluate(Predictions(made.dataset, made.predictions), settings=quick)
    second = evaluate(Predictions(other.dataset, other.predictions), settings=quick)
    assert first.metrics == second.metrics


def test_repeating_every_drive_keeps_metrics_and_narrows_the_interval(build, quick):
    made = build.random(3)
    names = {frame.drive for frame in made.dataset.frames}
    fourfold = build.repeated(made, dict.fromkeys(sorted(names), 4))
    once = evaluate(
        Predictions(made.dataset, made.predictions), [ALL_FRAMES], settings=quick
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
