from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from workbench.core.errors import DataError, ParameterError
from workbench.curation.selection.allocation import allocate
from workbench.curation.selection.candidates import Budget, Candidates, SelectionRules
from workbench.records.types import SelectedFrame

NO_RANDOM = SelectionRules(random_share=0)


@dataclasses.dataclass(frozen=True)
class Candidate:
    frame: str
    drive: str
    index: int
    time_s: float | None
    condition: str
    score: float
    reasons: tuple[str, ...] = ()
    fault: str = ""


def select_frames(
    rows: list[Candidate], budget: int, seed: int, rules: SelectionRules | None = None
) -> tuple[SelectedFrame, ...]:
    candidates = Candidates(
        frames=[one.frame for one in rows],
        drives=[one.drive for one in rows],
        index=np.array([one.index for one in rows], np.int64),
        time_s=np.array([np.nan if one.time_s is None else one.time_s for one in rows], float),
        conditions=[one.condition for one in rows],
        score=np.array([one.score for one in rows], float),
        faults=[one.fault for one in rows],
        boxes=np.zeros(len(rows), np.int64),
        reasons=lambda row: rows[row].reasons,
        signals=lambda row: {},
    )
    return allocate(candidates, Budget(frames=budget), seed, rules).chosen


def pool(drives: int = 5, per_drive: int = 40, *, timed: bool = True) -> list[Candidate]:
    rng = np.random.default_rng(0)
    return [
        Candidate(
            frame=f"{drive:02x}{index:062x}",
            drive=f"d{drive}",
            index=index,
            time_s=index * 0.5 if timed else None,
            condition="night, rain",
            score=float(rng.random()),
        )
        for drive in range(drives)
        for index in range(per_drive)
    ]


def test_order_of_candidates_does_not_matter() -> None:
    candidates = pool()
    shuffled = [candidates[row] for row in np.random.default_rng(3).permutation(len(candidates))]
    assert select_frames(candidates, 20, 7) == select_frames(shuffled, 20, 7)


def test_the_seed_changes_the_random_arm_only() -> None:
    first, second = select_frames(pool(), 20, 1), select_frames(pool(), 20, 2)
    random_arms = [{c.frame for c in chosen if c.arm == "random"} for chosen in (first, second)]
    assert len(random_arms[0]) == len(random_arms[1]) == 3
    assert random_arms[0] != random_arms[1]
    assert select_frames(pool(), 20, 5, NO_RANDOM) == select_frames(pool(), 20, 6, NO_RANDOM)


def test_the_random_arm_is_independent_of_scores() -> None:
    candidates = pool()
    reversed_scores = [dataclasses.replace(one, score=1 - one.score) for one in candidates]
    drawn = [
        {c.frame for c in select_frames(some, 20, 0) if c.arm == "random"}
        for some in (candidates, reversed_scores)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("timed", [True, False])
def test_mined_frames_of_a_drive_keep_their_distance(timed: bool) -> None:
    candidates = {one.frame: one for one in pool(timed=timed)}
    chosen = [
        candidates[c.frame] for c in select_frames(list(candidates.values()), 20, 0, NO_RANDOM)
    ]
    for one in chosen:
        for other in chosen:
            if one.drive == other.drive and one.frame != other.frame:
                assert abs(one.index - other.index) >= (4 if timed else 5)
    assert max(sum(o.drive == one.drive for o in chosen) for one in chosen) == 4


def test_the_best_frame_comes_first_and_ranks_count_on() -> None:
    candidates = pool()
    chosen = select_frames(candidates, 20, 0)
    assert [choice.rank for choice in chosen] == list(range(1, 21))
    mined = [choice for choice in chosen if choice.arm == "mined"]
    free = [c for c in candidates if c.frame not in {o.frame for o in chosen if o.arm == "random"}]
    assert mined[0].frame == max(free, key=lambda c: c.score).frame
    assert [c.score for c in mined] == sorted((c.score for c in mined), reverse=True)


def test_a_pool_of_one_drive_still_spends_the_budget() -> None:
    assert len(select_frames(pool(drives=1, per_drive=30), 25, 0)) == 25


def test_a_budget_above_the_pool_takes_all_of_it() -> None:
    candidates = pool(drives=2, per_drive=3)
    assert {c.frame for c in select_frames(candidates, 100, 0)} == {c.frame for c in candidates}


def test_broken_frames_are_never_chosen_not_even_at_random() -> None:
    candidates = [dataclasses.replace(one, fault="dark" if one.index % 2 else "") for one in pool()]
    usable = {one.frame for one in candidates if not one.fault}
    for seed in range(5):
        rules = SelectionRules(random_share=0.5)
        assert {c.frame for c in select_frames(candidates, 60, seed, rules)} <= usable


def test_a_pool_without_usable_frames_is_an_error() -> None:
    with pytest.raises(DataError, match="quality gate: dark"):
        select_frames([dataclasses.replace(one, fault="dark") for one in pool()], 5, 0)
    with pytest.raises(DataError, match="none of 0 frames"):
        select_frames([], 5, 0)
    with pytest.raises(ParameterError, match="must be ≥ 1 frame"):
        select_frames(pool(), 0, 0)


def test_reasons_are_readable() -> None:
    candidates = [
        Candidate("a" * 64, "d0", 0, 0.0, "night", 0.985, ("2 boxes with an uncertain score",)),
        Candidate("b" * 64, "d0", 18, 9.0, "night", 0.9),
        Candidate("c" * 64, "d1", 0, None, "all", 0.5),
    ]
    first, second, third = select_frames(candidates, 3, 0, NO_RANDOM)
    assert first.reasons == (
        "rarest 2 % among night frames",
        "2 boxes with an uncertain score",
        "9.0 s from the nearest chosen frame",
    )
    assert second.reasons[0] == "rarest 10 % among night frames"
    assert third.reasons == ("rarest 50 % among all frames", "the only chosen frame of its drive")
    (drawn,) = select_frames(candidates, 1, 0, SelectionRules(random_share=1))
    assert "random" in drawn.reasons[0]
