from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import data
from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Conditions, Drive, Frame, Label, Light, Origin, Role


def fleet(drives: int, frames: int, *, step_s: float | None = 1.0) -> Dataset:
    """Drives of equal length, every third by night, a car on each frame."""
    rows = [
        Frame(
            id=digest.of_json([drive, index]),
            drive=f"d{drive:02d}",
            index=index,
            timestamp_us=None if step_s is None else round(index * step_s * 1e6),
            width=64,
            height=48,
            suffix=".jpg",
            conditions=Conditions(light=Light.NIGHT if drive % 3 == 0 else Light.DAY),
        )
        for drive in range(drives)
        for index in range(frames)
    ]
    box = Box(x=1, y=1, w=5, h=5)
    return Dataset(
        name="fleet",
        label_schema=data.FRONT_CAMERA,
        drives=tuple(Drive(id=f"d{drive:02d}") for drive in range(drives)),
        frames=tuple(rows),
        labels=tuple(
            Label(frame=row.id, cls="car", box=box, origin=Origin.IMPORTED) for row in rows
        ),
    )


@given(st.integers(10, 40), st.integers(0, 1000))
def test_many_drives_are_not_cut_and_every_role_gets_frames(drives: int, seed: int) -> None:
    dataset = data.assign_roles(fleet(drives, 3), data.RolePolicy(seed=seed))
    by_drive: dict[str, set[Role | None]] = {}
    for frame in dataset.frames:
        by_drive.setdefault(frame.drive, set()).add(frame.role)
    assert all(len(roles) == 1 for roles in by_drive.values())
    assert {frame.role for frame in dataset.frames} == {
        Role.SEED,
        Role.POOL,
        Role.VAL,
        Role.SAFETY,
    }
    assert dataset.split["method"] == "drive"


def test_shares_are_met_to_within_a_drive() -> None:
    dataset = data.assign_roles(fleet(40, 5))
    counts = dataset.split["frames"]
    for role, share in {"seed": 0.35, "pool": 0.25, "val": 0.1, "safety": 0.3}.items():
        assert abs(counts[role] - share * 200) <= 5


@given(st.integers(1, 9), st.integers(80, 160), st.integers(0, 1000))
def test_blocks_of_a_drive_have_gaps(drives: int, frames: int, seed: int) -> None:
    dataset = data.assign_roles(fleet(drives, frames), data.RolePolicy(seed=seed))
    assert dataset.split["method"] == "time blocks"
    for drive in dataset.drives:
        own = [f for f in dataset.frames if f.drive == drive.id and f.role is not None]
        assert len({frame.role for frame in own}) == 4
        borders = [(a, b) for a, b in pairwise(own) if a.role != b.role]
        assert len(borders) == 3, "each role has one stretch"
        for before, after in borders:
            assert (after.timestamp_us or 0) - (before.timestamp_us or 0) >= 10_000_000


def test_a_drive_too_short_to_cut_is_recorded() -> None:
    dataset = data.assign_roles(fleet(2, 30))
    for drive in ("d00", "d01"):
        assert len({frame.role for frame in dataset.frames if frame.drive == drive}) == 1
    assert dataset.split["drives_too_short_to_cut"] == ["d00", "d01"]


def test_without_timestamps_the_gap_counts_frames() -> None:
    dataset = data.assign_roles(fleet(1, 100, step_s=None))
    roles = [frame.role for frame in dataset.frames]
    assert roles.count(None) == 27 or roles.count(None) == 30
    assert dataset.split["cut_by_frame_number"] == {"drives": ["d00"], "gap_frames": 10}


def test_roles_repeat_and_follow_the_seed() -> None:
    first, again = (data.assign_roles(fleet(20, 2)) for _ in range(2))
    other = data.assign_roles(fleet(20, 2), data.RolePolicy(seed=1))
    assert first == again
    assert first.frames != other.frames


def test_withheld_labels_are_only_in_the_answers() -> None:
    dataset = data.assign_roles(fleet(12, 3))
    kept, answers = data.withhold_labels(dataset)
    pool = {frame.id for frame in dataset.frames if frame.role is Role.POOL}
    assert kept.frames == dataset.frames
    assert not pool & {label.frame for label in kept.labels}
    assert {label.frame for label in answers.labels} == pool
    assert {frame.id for frame in answers.frames} == pool
    assert len(kept.labels) + len(answers.labels) == len(dataset.labels)
    assert kept.split["withheld"] == {"role": "pool", "labels": len(answers.labels)}


def test_invalid_policies_are_errors() -> None:
    for policy in (
        data.RolePolicy(shares={Role.POOL: -1.0, Role.VAL: 2.0}),
        data.RolePolicy(shares={}),
        data.RolePolicy(gap_s=-1),
    ):
        with pytest.raises(ParameterError):
            data.assign_roles(fleet(1, 5), policy)
