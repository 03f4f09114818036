"""Spending a budget: arms, events, quotas, diversity, labelers' minutes, a large pool."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.errors import DataError, ParameterError
from workbench.curation.selection.allocation import allocate
from workbench.curation.selection.candidates import Budget, Candidates, LabelingPace, SelectionRules

PLAIN = {"random_share": 0.0, "diversity": 0.0, "drive_share": 1.0}


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def pool(drives: int = 10, per_drive: int = 60, **changed: Any) -> Candidates:
    """Two frames a second; odd drives by night; scores at random."""
    n = drives * per_drive
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "frames": [name(i) for i in range(n)],
        "drives": [f"d{i // per_drive}" for i in range(n)],
        "index": np.arange(n) % per_drive,
        "time_s": (np.arange(n) % per_drive) / 2,
        "conditions": ["night, rain" if i // per_drive % 2 else "day" for i in range(n)],
        "score": rng.random(n),
        "faults": [""] * n,
        "boxes": rng.integers(0, 12, n),
        "reasons": lambda row: (),
        "signals": lambda row: {},
    }
    return Candidates(**{**columns, **changed})


def shuffled(candidates: Candidates, seed: int) -> Candidates:
    rows = np.random.default_rng(seed).permutation(len(candidates))
    vectors = candidates.vectors
    return Candidates(
        frames=[candidates.frames[row] for row in rows],
        drives=[candidates.drives[row] for row in rows],
        index=candidates.index[rows],
        time_s=candidates.time_s[rows],
        conditions=[candidates.conditions[row] for row in rows],
        score=candidates.score[rows],
        faults=[candidates.faults[row] for row in rows],
        boxes=candidates.boxes[rows],
        reasons=lambda row: candidates.reasons(rows[row]),
        signals=lambda row: candidates.signals(rows[row]),
        vectors=None if vectors is None else vectors[rows],
    )


def test_the_control_arm_is_independent_of_scores() -> None:
    candidates = pool()
    rules = SelectionRules(control=True)
    result = allocate(candidates, Budget(frames=30), 1, rules)
    assert Counter(choice.arm for choice in result.chosen) == {"mined": 30, "control": 30}
    reversed_scores = pool(score=1 - candidates.score)
    again = allocate(reversed_scores, Budget(frames=30), 1, rules)
    assert {c.frame for c in result.of("control")} == {c.frame for c in again.of("control")}
    assert not {c.frame for c in result.of("control")} & {c.frame for c in result.of("mined")}
    assert {choice.probability for choice in result.of("control")} == {30 / 600}
    assert {choice.probability for choice in result.of("mined")} == {None}


def test_every_usable_frame_is_as_likely_to_be_in_the_control_arm() -> None:
    candidates = pool(drives=2, per_drive=20, faults=["dark"] * 4 + [""] * 36)
    counts: Counter[str] = Counter()
    for seed in range(400):
        result = allocate(candidates, Budget(frames=9), seed, SelectionRules(control=True))
        counts.update(choice.frame for choice in result.of("control"))
    assert len(counts) == 36
    # 400 draws with probability 9/36: a standard deviation of 8.7 frames, 36 frames looked at.
    assert all(abs(count - 100) < 4 * 8.7 for count in counts.values())


def test_two_arms_share_a_pool_that_is_too_small() -> None:
    result = allocate(pool(2, 20), Budget(frames=30), 0, SelectionRules(control=True))
    assert Counter(choice.arm for choice in result.chosen) == {"mined": 20, "control": 20}
    assert "each arm has 20" in result.notes[0]


def test_a_budget_above_the_pool_is_all_of_it_with_a_note() -> None:
    result = allocate(pool(2, 20), Budget(frames=41), 0)
    assert len(result.chosen) == 40
    assert result.notes == ("the budget pays for more than the 40 usable frames; all were chosen",)
    assert allocate(pool(2, 20), Budget(frames=40), 0).notes == ()


def test_an_event_gives_its_best_frame_only() -> None:
    score = np.full(600, 0.1)
    score[100:112] = np.linspace(0.8, 0.9, 12)  # six seconds of one drive
    score[107] = 0.99
    score[300:304] = 0.7
    rules = SelectionRules(**PLAIN, gap_s=1.0)
    result = allocate(pool(score=score), Budget(frames=2), 0, rules)
    assert [choice.frame for choice in result.chosen] == [
        name(107),
        min(map(name, range(300, 304))),
    ]


def test_long_events_are_split_and_a_scene_change_ends_an_event() -> None:
    score = np.full(600, 0.1)
    score[0:50] = 0.9  # 25 seconds
    rules = SelectionRules(**PLAIN, event_s=10.0, gap_s=1.0)
    result = allocate(pool(score=score), Budget(frames=4), 0, rules)
    assert sum(choice.score == 0.9 for choice in result.chosen) == 3
    score = np.full(600, 0.1)
    score[0:6] = 0.9
    vectors = np.tile(np.eye(2, 4), (300, 1))  # neighbours look in two directions...
    vectors[0:3], vectors[3:6] = np.eye(4)[2], np.eye(4)[3]  # ...and the scene changes once
    result = allocate(pool(score=score, vectors=vectors), Budget(frames=3), 0, rules)
    assert sum(choice.score == 0.9 for choice in result.chosen) == 2


def test_drives_without_times_keep_their_distance_in_frames() -> None:
    candidates = pool(time_s=np.full(600, np.nan))
    chosen = allocate(candidates, Budget(frames=40), 0, SelectionRules(random_share=0)).chosen
    at = {
        f: (d, i)
        for f, d, i in zip(candidates.frames, candidates.drives, candidates.index, strict=True)
    }
    positions = sorted(at[choice.frame] for choice in chosen)
    same = [b[1] - a[1] for a, b in pairwise(positions) if a[0] == b[0]]
    assert min(same) >= 5
    assert "frames from the nearest chosen frame" in chosen[0].reasons[-1]


def test_quotas_bring_conditions_that_rank_low() -> None:
    score = np.where(np.arange(600) // 60 % 2, 0.1, 0.9) + np.arange(600) / 10_000
    candidates = pool(score=score)
    night = {
        f
        for f, c in zip(candidates.frames, candidates.conditions, strict=True)
        if c == "night, rain"
    }
    without = allocate(candidates, Budget(frames=20), 0, SelectionRules(**PLAIN))
    assert not {choice.frame for choice in without.chosen} & night
    rules = SelectionRules(**PLAIN, quotas={"night": 7})
    result = allocate(candidates, Budget(frames=20), 0, rules)
    assert len({choice.frame for choice in result.chosen} & night) == 7
    assert len(result.chosen) == 20


def test_impossible_quotas_are_reported() -> None:
    with pytest.raises(ParameterError, match="no frame of the pool has condition 'nigth'"):
        allocate(pool(), Budget(frames=20), 0, SelectionRules(quotas={"nigth": 5}))
    with pytest.raises(ParameterError, match="quotas ask for 25 frames"):
        rules = SelectionRules(random_share=0, quotas={"night": 15, "day": 10})
        allocate(pool(), Budget(frames=20), 0, rules)
    few = pool(conditions=["fog"] * 3 + ["day"] * 597)
    result = allocate(few, Budget(frames=20), 0, SelectionRules(random_share=0, quotas={"fog": 9}))
    assert result.notes == ("quota fog=9: only 1 frame, the pool has no more",)


def test_diversity_prefers_what_is_not_chosen_yet() -> None:
    # The best 30 frames look similar, the next 30 each like nothing else; all far apart in time.
    rng = np.random.default_rng(1)
    n = 400
    vectors = rng.normal(size=(n, 32))
    vectors[:30] = np.ones(32) * 5 + rng.normal(size=(30, 32)) * 0.01
    candidates = pool(
        drives=n, per_drive=1, score=np.linspace(1, 0, n), vectors=vectors.astype(np.float16)
    )
    similar = {name(i) for i in range(30)}
    counts = []
    for weight in (0.0, 0.6):
        rules = SelectionRules(random_share=0, diversity=weight)
        chosen = allocate(candidates, Budget(frames=30), 0, rules).chosen
        counts.append(len({choice.frame for choice in chosen} & similar))
    assert counts[0] == 30
    assert counts[1] < 10


def test_minutes_are_spent_and_not_more() -> None:
    pace = LabelingPace(seconds_per_frame=20, seconds_per_box=5)
    candidates = pool()
    boxes = dict(zip(candidates.frames, candidates.boxes.tolist(), strict=True))
    result = allocate(candidates, Budget(minutes=30, pace=pace), 0)
    minutes = sum(20 + 5 * boxes[choice.frame] for choice in result.chosen) / 60
    assert 29.5 < minutes <= 30
    assert result.cost == pytest.approx(minutes)
    both = allocate(candidates, Budget(minutes=30, pace=pace), 0, SelectionRules(control=True))
    arms = {
        arm: sum(20 + 5 * boxes[choice.frame] for choice in both.of(arm)) / 60
        for arm in ("mined", "control")
    }
    assert arms["mined"] == pytest.approx(30, abs=0.6)
    assert arms["control"] == pytest.approx(30, abs=1.4)


def test_minutes_without_a_pace_are_rejected() -> None:
    with pytest.raises(ParameterError, match="not measured yet"):
        allocate(pool(), Budget(minutes=30), 0)
    with pytest.raises(ParameterError, match="takes no time"):
        allocate(pool(), Budget(minutes=30, pace=LabelingPace(seconds_per_frame=0)), 0)
    with pytest.raises(ParameterError, match="either frames or minutes"):
        allocate(pool(), Budget(), 0)
    with pytest.raises(ParameterError, match="must be > 0 minutes"):
        allocate(pool(), Budget(minutes=0, pace=LabelingPace(seconds_per_frame=1)), 0)


def test_a_score_with_nan_is_rejected() -> None:
    with pytest.raises(DataError, match="not finite"):
        pool(score=np.full(600, np.nan))


def test_identical_frames_are_spread_like_any_others() -> None:
    candidates = pool(score=np.full(600, 0.5), vectors=np.ones((600, 8), np.float16))
    assert len({c.frame for c in allocate(candidates, Budget(frames=50), 0).chosen}) == 50


@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(1, 130),
    seed=st.integers(0, 5),
    control=st.booleans(),
    share=st.floats(0, 1),
    order=st.integers(0, 3),
)
def test_the_budget_is_never_exceeded(
    frames: int, seed: int, control: bool, share: float, order: int
) -> None:
    rng = np.random.default_rng(5)
    candidates = pool(4, 30, vectors=rng.normal(size=(120, 6)))
    rules = SelectionRules(control=control, random_share=share)
    result = allocate(shuffled(candidates, order), Budget(frames=frames), seed, rules)
    assert result == allocate(candidates, Budget(frames=frames), seed, rules)
    names = [choice.frame for choice in result.chosen]
    assert len(names) == len(set(names))
    expected = min(frames, 60) * 2 if control else min(frames, 120)
    assert len(names) == expected
    assert [choice.rank for choice in result.chosen] == list(range(1, len(names) + 1))


def test_two_hundred_thousand_frames_take_seconds() -> None:
    n = 200_000
    candidates = pool(
        100, n // 100, vectors=np.random.default_rng(0).normal(size=(n, 64)).astype(np.float16)
    )
    started = time.process_time()
    rules = SelectionRules(control=True, quotas={"night": 50})
    assert len(allocate(candidates, Budget(frames=500), 0, rules).chosen) == 1000
    assert time.process_time() - started < 10
