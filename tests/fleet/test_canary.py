"""The canary judge: how often it is wrong, what missing reports and lies do, its three answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.fleet import CANARY, LOOKS, RULE, simulate
from workbench.core.errors import DataError, ParameterError
from workbench.fleet.canary import CanaryData, CanaryRule, Outcome, judge


def answers(kind: str, shape: float, ratio: float, trials: int) -> Counter[Outcome]:
    rng = np.random.default_rng(5)
    found = enumerate(simulate(kind, shape, ratio, trials, rng))
    return Counter(judge(data, RULE, seed=number // 20).outcome for number, data in found)


def one(ratio: float = 1.0, seed: int = 0, kind: str = "gamma", shape: float = 0.5) -> CanaryData:
    return next(simulate(kind, shape, ratio, 1, np.random.default_rng(seed)))


@pytest.mark.parametrize(("kind", "shape"), [("gamma", 1.0), ("gamma", 2.0), ("pareto", 1.5)])
def test_canaries_that_change_nothing_are_rarely_stopped(kind: str, shape: float) -> None:
    """The benchmark has 10,000 of each kind; here, so many that a rate of 10 % would show."""
    trials = 250
    stopped = answers(kind, shape, 1.0, trials)[Outcome.FAILED]
    assert stats.binomtest(stopped, trials, 0.05, alternative="greater").pvalue > 0.001
    assert stats.binomtest(25, trials, 0.05, alternative="greater").pvalue < 0.001


def test_a_doubled_rate_is_stopped_and_hardly_ever_successful() -> None:
    trials = 200
    found = answers("gamma", 1.0, 2.0, trials)
    assert found[Outcome.FAILED] / trials >= 0.8  # 0.85 in 2,000, see the benchmark
    assert found[Outcome.SUCCESSFUL] / trials <= 0.06


def test_a_canary_that_changes_nothing_can_succeed_but_only_at_the_last_look() -> None:
    data = one()
    for look in range(1, LOOKS):
        assert judge(_until(data, look), RULE).outcome is Outcome.INCONCLUSIVE
    final = judge(data, RULE)
    assert final.outcome is Outcome.SUCCESSFUL and final.look == LOOKS
    assert "ruled out" in final.why


def test_later_looks_do_not_change_an_answer() -> None:
    data = one(ratio=3.0)
    first = judge(data, RULE)
    assert first.outcome is Outcome.FAILED
    assert judge(_until(data, first.look), RULE) == first
    if first.look > 1:
        assert judge(_until(data, first.look - 1), RULE).outcome is Outcome.INCONCLUSIVE


def test_few_vehicles_are_inconclusive_not_successful() -> None:
    data = one(seed=3)
    few = np.r_[np.arange(4), np.arange(CANARY, CANARY + 200)]
    part = CanaryData(data.canary[few], data.events[few], data.exposure[few])
    answer = judge(part, RULE)
    assert answer.outcome is Outcome.INCONCLUSIVE and "4 canary vehicles" in answer.why


def test_silent_canaries_are_missing_never_healthy() -> None:
    """Half of the canaries crash and report nothing; those that report look perfect."""
    data = one()
    events, exposure = data.events.copy(), data.exposure.copy()
    events[: CANARY // 2], exposure[: CANARY // 2] = 0, 0
    answer = judge(CanaryData(data.canary, events, exposure), RULE)
    assert answer.outcome is Outcome.FAILED and answer.why.startswith("silent")
    assert answer.canary == (20, 10)


def test_a_fleet_that_is_silent_as_a_whole_holds_the_stage() -> None:
    data = one()
    nothing = CanaryData(data.canary, data.events * 0, data.exposure * 0)
    answer = judge(nothing, RULE)
    assert answer.outcome is Outcome.INCONCLUSIVE and "20 of 20" in answer.why
    assert answer.metrics[0].canary is None


def test_a_few_silent_vehicles_in_both_groups_hold_the_stage_but_do_not_stop_it() -> None:
    data = one()
    events, exposure = data.events.copy(), data.exposure.copy()
    quiet = np.r_[0:3, 20:50]  # 15 % of both
    events[quiet], exposure[quiet] = 0, 0
    answer = judge(CanaryData(data.canary, events, exposure), RULE)
    assert answer.outcome is Outcome.INCONCLUSIVE and "silent" in answer.why


@pytest.mark.parametrize("lie", [0.0, 1e12])
def test_one_lying_vehicle_changes_no_more_than_an_honest_one_could(lie: float) -> None:
    """A canary that reports any number moves the answers by about one honest vehicle."""
    changed = 0
    for seed in range(60):
        data = one(seed=seed, shape=1.0)
        events = data.events.copy()
        events[0] = lie
        lied = judge(replace(data, events=events), RULE, seed=seed).outcome
        highest = data.events[:, -1, 0].argmax() if lie else data.events[:, -1, 0].argmin()
        honest = data.events.copy()
        honest[0] = honest[highest]
        changed += lied != judge(replace(data, events=honest), RULE, seed=seed).outcome
    assert changed <= 3


def test_one_lying_vehicle_rarely_stops_a_canary_of_twenty() -> None:
    stopped = 0
    for seed in range(80):
        data = one(seed=seed)
        events = data.events.copy()
        events[0] = 1e9
        stopped += judge(replace(data, events=events), RULE, seed=seed).outcome is Outcome.FAILED
    assert stopped <= 20  # the benchmark counts it; by its plain mean all 80 would be stopped


def test_more_metrics_do_not_mean_more_false_stops() -> None:
    rule = CanaryRule(metrics=tuple("abcdef"), looks=LOOKS, permutations=400)
    rng = np.random.default_rng(1)
    stopped, trials = 0, 120
    for number in range(trials):
        several = [next(simulate("gamma", 1.0, 1.0, 1, rng)) for _ in rule.metrics]
        events = np.concatenate([data.events for data in several], axis=2)
        data = replace(several[0], events=events)
        stopped += judge(data, rule, seed=number // 20).outcome is Outcome.FAILED
    assert stats.binomtest(stopped, trials, 0.05, alternative="greater").pvalue > 0.001


def test_events_that_nobody_has_are_judged_by_an_acceptable_rate() -> None:
    data = one()
    none = replace(data, events=data.events * 0)
    assert judge(none, RULE).outcome is Outcome.INCONCLUSIVE
    # 20 vehicles with 50,000 frames each and no event: below 3 in a million, not below 1.
    for rate, expected in ((4e-6, Outcome.SUCCESSFUL), (1e-6, Outcome.INCONCLUSIVE)):
        rule = RULE.model_copy(update={"acceptable": {"fallbacks": rate}})
        assert judge(none, rule).outcome is expected


def test_a_vehicle_that_claims_many_frames_makes_no_rate_acceptable() -> None:
    data = one()
    exposure = data.exposure.copy()
    exposure[0] *= 1e6
    lying = CanaryData(data.canary, data.events * 0, exposure)
    rule = RULE.model_copy(update={"acceptable": {"fallbacks": 1e-6}})
    assert judge(lying, rule).outcome is Outcome.INCONCLUSIVE


def test_the_same_data_gives_the_same_answer_in_any_order_of_vehicles() -> None:
    data = one(ratio=1.6, shape=1.0)
    answer = judge(data, RULE)
    assert judge(data, RULE) == answer
    order = np.random.default_rng(0).permutation(len(data.canary))
    other = judge(CanaryData(data.canary[order], data.events[order], data.exposure[order]), RULE)
    assert other.metrics[0].canary == pytest.approx(answer.metrics[0].canary)


@pytest.mark.parametrize("number", [np.nan, np.inf, -1.0])
def test_impossible_numbers_are_refused(number: float) -> None:
    data = one()
    events = data.events.copy()
    events[0, 0, 0] = number
    with pytest.raises(DataError, match="negative, NaN or infinite"):
        judge(replace(data, events=events), RULE)


def test_a_canary_needs_both_groups_and_fitting_shapes() -> None:
    data = one()
    with pytest.raises(ParameterError, match="without it"):
        judge(replace(data, canary=np.ones_like(data.canary)), RULE)
    with pytest.raises(ParameterError, match="do not fit"):
        judge(replace(data, canary=data.canary[:-1]), RULE)
    with pytest.raises(ParameterError, match="5 looks"):
        judge(data, CanaryRule(metrics=("fallbacks",), looks=3))


def _until(data: CanaryData, look: int) -> CanaryData:
    return CanaryData(data.canary, data.events[:, :look], data.exposure[:, :look])
