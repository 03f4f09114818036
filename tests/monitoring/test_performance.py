"""Performance without labels: near what labels say, and refuted by them where scores lie."""

import numpy as np
import pytest

from workbench.core.errors import DataError, ParameterError
from workbench.monitoring.performance import (
    ScoredDrive,
    check_estimate,
    estimate_performance,
)

THRESHOLD = 0.5


def drive(rng, *, harder=0.0, lies=0.0):
    """A drive whose boxes are right with a chance that grows with the score."""
    own = rng.normal() * 0.05
    scores = np.clip(rng.beta(2, 2, 60) + own - harder, 0, 1)
    right = rng.random(60) < np.clip(scores**1.5 - lies, 0, 1)
    return ScoredDrive(scores, right, objects=int(right.sum() + rng.binomial(right.sum(), 0.2)))


def unlabelled(drives):
    return [ScoredDrive(one.scores) for one in drives]


def test_intervals_on_harder_drives_cover_what_labels_say():
    rng = np.random.default_rng(1)
    precisions = recalls = 0
    for seed in range(40):
        reference = [drive(rng) for _ in range(60)]
        current = [drive(rng, harder=0.2) for _ in range(40)]
        found = estimate_performance(
            reference, unlabelled(current), THRESHOLD, resamples=60, seed=seed
        )
        right = np.concatenate([one.right[one.scores >= THRESHOLD] for one in current])
        recall = right.sum() / sum(one.objects for one in current)
        precisions += found.precision.low <= right.mean() <= found.precision.high
        recalls += found.recall.low <= recall <= found.recall.high
        assert found.precision.high - found.precision.low < 0.15
    assert min(precisions, recalls) >= 33  # 95 % of 40 is 38


def test_the_check_holds_where_nothing_changed():
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(60):
        reference = [drive(rng) for _ in range(30)]
        current = [drive(rng) for _ in range(20)]
        check = check_estimate(reference, current, THRESHOLD, resamples=100, seed=seed)
        covered += check.precision.low <= 0 <= check.precision.high
    assert covered >= 50


def test_scores_that_lie_are_found_out_by_labels_and_not_before():
    rng = np.random.default_rng(3)
    reference = [drive(rng) for _ in range(60)]
    current = [drive(rng, lies=0.3) for _ in range(40)]
    honest = estimate_performance(reference, unlabelled(reference), THRESHOLD, resamples=100)
    found = estimate_performance(reference, unlabelled(current), THRESHOLD, resamples=100)
    assert found.precision.value > honest.precision.value - 0.05  # nothing shows in the scores
    check = check_estimate(reference, current, THRESHOLD, resamples=100)
    assert not check.holds
    assert check.precision.high < 0


def test_too_little_is_refused():
    rng = np.random.default_rng(4)
    reference = [drive(rng) for _ in range(12)]
    with pytest.raises(DataError, match="12 reference and 3 current drives"):
        estimate_performance(reference, unlabelled(reference[:3]), THRESHOLD)
    with pytest.raises(ParameterError, match="every reference drive needs labels"):
        estimate_performance(unlabelled(reference), reference, THRESHOLD)
