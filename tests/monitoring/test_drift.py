"""Drift: whole drives are permuted; false alarms, power, fleet mix, vehicles in both periods."""

import numpy as np
import pytest

from workbench.core.errors import DataError, ParameterError
from workbench.monitoring.drift import DriftRule, DriveSignals, find_drift

ONE_LOOK = DriftRule(false_alarms_a_year=0.05, looks_a_year=1, permutations=400)


def drives(rng, count, *, frames=60, icc=0.3, correlation=0.95, shift=0.0):
    """Frames of drives with standard deviation 1, ``[count, frames]``."""
    own = rng.normal(size=(count, 1)) * np.sqrt(icc)
    noise = rng.normal(size=(count, frames))
    for t in range(1, frames):
        noise[:, t] = correlation * noise[:, t - 1] + np.sqrt(1 - correlation**2) * noise[:, t]
    return own + np.sqrt(1 - icc) * noise + shift


def look(values, reference, *, rule=ONE_LOOK, slices=None, vehicles=None, seed=0, **more):
    count = len(values)
    signals = DriveSignals(
        {"brightness": values, **more},
        np.arange(count) >= reference,
        slices or ["day"] * count,
        vehicles,
    )
    return find_drift(signals, rule, seed=seed)


@pytest.mark.parametrize(("icc", "correlation"), [(0.0, 0.0), (0.5, 0.98)])
def test_unchanged_drives_raise_alarms_at_the_nominal_rate(icc, correlation):
    rng = np.random.default_rng(3)
    alarms = 0
    for seed in range(200):
        frames = drives(rng, 30, icc=icc, correlation=correlation)
        alarms += bool(look(frames.mean(axis=1), 20, seed=seed).found)
    assert 2 <= alarms <= 20  # 5 % of 200 is 10; frames as units would give 150 and more


def test_a_shift_of_one_standard_deviation_is_found():
    rng = np.random.default_rng(4)
    found = 0
    for seed in range(40):
        frames = np.concatenate([drives(rng, 20), drives(rng, 10, shift=1.0)])
        result = look(frames.mean(axis=1), 20, seed=seed)
        found += bool(result.found)
    assert found >= 32


def test_histograms_show_a_change_of_shape_that_keeps_the_mean():
    rng = np.random.default_rng(5)
    edges = np.linspace(-3, 3, 13)[1:-1]
    wide = rng.normal(size=(40, 200)) * np.where(np.arange(40) >= 20, 2.0, 1.0)[:, None]
    counts = np.stack([np.bincount(np.searchsorted(edges, row), minlength=12) for row in wide])
    (found,) = look(counts.astype(float), 20).found
    assert found.what == "shape"
    assert abs(found.current - found.reference) < 0.5


def test_a_changed_fleet_mix_is_no_drift_of_a_signal():
    """Simpson: night is darker, and there is more of it; within slices nothing changed."""
    rng = np.random.default_rng(6)
    slices = ["day"] * 40 + ["night"] * 10 + ["day"] * 12 + ["night"] * 38
    level = np.where(np.array(slices) == "day", 0.6, 0.1)
    result = look(level + rng.normal(size=100) * 0.02, 50, slices=slices)
    assert result.mix_changed
    assert not result.found
    assert result.shares["night"] == (0.2, 0.76)


def test_vehicles_of_both_periods_are_compared_with_themselves():
    """A tenth of the spread between vehicles: lost between groups, plain within vehicles."""
    rng = np.random.default_rng(7)
    level = rng.normal(size=20)
    values = np.concatenate([level, level + 0.1 + rng.normal(size=20) * 0.02])
    vehicles = [f"vehicle-{number}" for number in range(20)] * 2
    assert look(values, 20, vehicles=vehicles).found
    assert not look(values, 20).found


def test_drives_of_one_vehicle_count_once():
    rng = np.random.default_rng(8)
    own = np.repeat(rng.normal(size=12), 10)  # ten drives each of twelve vehicles
    vehicles = [f"vehicle-{number // 10}" for number in range(120)]
    result = look(own + rng.normal(size=120) * 0.01, 60, vehicles=vehicles)
    assert not result.tested  # six vehicles each: too few, though there are 60 drives each
    assert "at least 8" in result.skipped["day"]


def test_missing_values_are_left_out_and_constants_are_not_tested():
    rng = np.random.default_rng(9)
    values = rng.normal(size=60)
    values[rng.permutation(60)[:10]] = np.nan
    result = look(values, 30, constant=np.ones(60), empty=np.zeros((60, 4)))
    assert [one.signal for one in result.tested] == ["brightness"]
    assert sum(result.tested[0].drives) == 50


def test_a_year_of_looks_shares_the_false_alarms():
    rule = DriftRule(false_alarms_a_year=0.52, looks_a_year=52)
    assert rule.alpha == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("values", "reference", "error", "words"),
    [
        (np.array([1.0, np.inf, 2.0]), 1, DataError, "infinite"),
        (np.array([[1.0, -1.0]] * 3), 1, DataError, "negative"),
        (np.ones(3), 3, ParameterError, "a reference and a current period"),
        (np.ones((3, 2, 2)), 1, ParameterError, "do not fit"),
    ],
)
def test_what_cannot_be_tested_is_refused(values, reference, error, words):
    with pytest.raises(error, match=words):
        look(values, reference)


def test_equal_seeds_give_equal_answers():
    values = np.random.default_rng(1).normal(size=40)
    assert look(values, 20) == look(values, 20)
