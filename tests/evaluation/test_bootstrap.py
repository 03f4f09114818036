"""Units of resampling, width of intervals, and cases without an interval."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.data import resampling
from workbench.detection.model import Predictions
from workbench.evaluation import metrics
from workbench.evaluation.metrics import evaluate


def test_ten_drives_are_resampled_as_drives_and_may_decide(build):
    frames = [build.frame(f"d{drive}", index) for drive in range(10) for index in range(3)]
    groups = metrics.cluster_frames(frames, np.arange(30))
    assert (groups.count, groups.drives, groups.usable) == (10, 10, True)
    assert [len(set(groups.of[3 * d : 3 * d + 3])) for d in range(10)] == [1] * 10


def test_few_drives_are_resampled_as_time_blocks_and_are_descriptive(build):
    frames = [build.frame(f"d{drive}", index) for drive in range(9) for index in range(50)]
    groups = metrics.cluster_frames(frames, np.arange(len(frames)))
    assert not groups.usable
    assert groups.count == 9 * 3  # 25 s of frames in blocks of 10 s
    assert groups.method.startswith("descriptive")


def test_drive_without_timestamps_is_divided_into_tenths(build):
    frames = [build.frame("d", index, timestamp_us=None) for index in range(40)]
    groups = metrics.cluster_frames(frames, np.arange(40))
    assert np.bincount(groups.of).tolist() == [4] * 10


def test_frames_outside_the_slice_belong_to_no_cluster(build):
    frames = [build.frame(f"d{drive}") for drive in range(12)]
    groups = metrics.cluster_frames(frames, np.array([0, 5]))
    assert (groups.of >= 0).sum() == 2
    assert groups.drives == 2


def test_resamples_are_reproducible_and_have_constant_size():
    first, second = (
        resampling.draw_resamples(7, 50, seed=3),
        resampling.draw_resamples(7, 50, seed=3),
    )
    assert (first == second).all()
    assert (first[0] == 1).all()
    assert (first.sum(axis=1) == 7).all()
    assert (resampling.draw_resamples(7, 50, seed=4) != first).any()


def test_intervals_of_few_clusters_are_wider_than_plain_percentiles():
    samples = np.random.default_rng(0).normal(size=2000)
    few = metrics.percentile_interval(samples, 10, 0.95)
    many = metrics.percentile_interval(samples, 10_000, 0.95)
    plain = np.quantile(samples, [0.025, 0.975])
    assert few[0] < plain[0] and few[1] > plain[1]
    assert many == pytest.approx(tuple(plain), abs=0.01)


def test_no_interval_from_one_cluster_or_mostly_missing_values():
    assert metrics.percentile_interval(np.ones(100), 1, 0.95) is None
    assert metrics.percentile_interval(np.array([]), 5, 0.95) is None
    mostly_missing = np.where(np.arange(100) < 60, np.nan, 1.0)
    assert metrics.percentile_interval(mostly_missing, 10, 0.95) is None


def test_one_frame_gives_values_without_intervals(build, quick):
    frame = build.frame()
    dataset = build.dataset([frame], [build.label(frame, "car", (0, 0, 50, 50))])
    row = evaluate(
        Predictions(dataset, [build.prediction(frame, "car", (0, 0, 50, 50))]), settings=quick
    ).metrics.at()
    assert row.recall.value == 1
    assert (row.recall.low, row.recall.high, row.usable) == (None, None, False)


@pytest.mark.slow
def test_intervals_of_ten_drives_have_about_nominal_coverage():
    random = np.random.default_rng(1)
    held = 0
    trials = 1000
    for trial in range(trials):
        boxes = random.poisson(40, 10) + 1
        # Every drive has a recall of its own; over all drives it is 0.7.
        hits = random.binomial(boxes, random.beta(7, 3, 10))
        weights = resampling.draw_resamples(10, 500, seed=trial)
        samples = (weights @ hits) / (weights @ boxes)
        low, high = metrics.percentile_interval(samples[1:], 10, 0.95)
        held += low <= 0.7 <= high
    assert 0.91 <= held / trials <= 0.98
