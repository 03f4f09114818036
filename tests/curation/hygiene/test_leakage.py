"""Leaks in synthetic drives fail their own gate, and a clean split passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.curation.hygiene import synthetic
from workbench.core.workspace import Workspace
from workbench.curation import hygiene
from workbench.curation.hygiene import leakage
from workbench.curation.hygiene.duplicates import FrameFeatures
from workbench.curation.hygiene.leakage import LeakageResult
from workbench.data import RolePolicy, assign_roles, widen_gaps
from workbench.records.base import GateResult, Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Drive, Role


def check(
    workspace: Workspace, dataset: Dataset, rules: hygiene.LeakageRules | None = None
) -> LeakageResult:
    found = hygiene.compute_fingerprints(workspace, dataset.frames)
    return leakage.check_leakage(dataset, FrameFeatures(dataset.frames, found.hashes), rules)


def gate(found: LeakageResult, kind: str) -> GateResult:
    return next(one for one in found.gates if one.name == f"leakage-{kind}")


@pytest.fixture
def dataset(workspace: Workspace) -> Dataset:
    return synthetic.clean(workspace)


def test_a_clean_split_passes_with_its_evidence(workspace: Workspace, dataset: Dataset) -> None:
    found = check(workspace, dataset)
    assert found.verdict is Verdict.PASS
    assert not found.leaks
    assert (gate(found, "drive").n, gate(found, "drive").unit) == (10, "drives")
    assert gate(found, "embedding").n == len(dataset.frames)
    assert "of 256 hash bits" in gate(found, "embedding").method
    place_gate = gate(found, "place")
    assert place_gate.verdict is Verdict.INSUFFICIENT
    assert not place_gate.required
    assert "80 of 80 frames have no position" in place_gate.why


def test_a_copy_across_the_split_is_found(workspace: Workspace, dataset: Dataset) -> None:
    image = synthetic.scene(9, step=6.0)  # drive 9 is judged by
    worse = synthetic.encoded(image, "JPEG", quality=60)
    copy = synthetic.frame_of(workspace, worse, "copies", 0, Role.SEED, ".jpg")
    found = check(workspace, synthetic.with_frames(dataset, copy))
    assert found.verdict is Verdict.FAIL
    leaks = [leak for leak in found.leaks if leak.kind == "embedding"]
    assert copy.id in {leak.second for leak in leaks}
    assert "safety of drive-09 and seed of copies" in leaks[0].why
    assert gate(found, "drive").verdict is Verdict.PASS


def test_a_drive_on_two_sides_is_found(workspace: Workspace, dataset: Dataset) -> None:
    moved = [
        frame.model_copy(update={"role": Role.SEED})
        if frame.drive == "drive-09" and frame.index < 3
        else frame
        for frame in dataset.frames
    ]
    found = check(workspace, replace(dataset, frames=tuple(moved)))
    assert gate(found, "drive").verdict is Verdict.FAIL
    assert gate(found, "time").verdict is Verdict.FAIL
    (leak,) = (leak for leak in found.leaks if leak.kind == "drive")
    assert leak.value == 3
    assert "drive-09 has frames on sides judged and learned" in leak.why


def test_blocks_of_time_are_judged_by_their_gap(workspace: Workspace, dataset: Dataset) -> None:
    few = dataset.where(lambda frame: frame.drive in ("drive-00", "drive-01"))
    cut = assign_roles(few, RolePolicy(gap_s=0.5))
    found = check(workspace, cut)
    assert cut.split["method"] == "time blocks"
    assert not gate(found, "drive").required
    assert "the time check decides" in gate(found, "drive").why
    assert gate(found, "time").verdict is Verdict.PASS
    assert "≥ 0.5 s apart" in gate(found, "time").method


def test_two_files_of_one_recording_are_recognised_by_the_vehicles_clock(
    workspace: Workspace, dataset: Dataset
) -> None:
    """A recording cut into drives by name alone: the second half is judged by."""
    drives = []
    for drive in dataset.drives:
        start = {"drive-06": "2026-01-01T10:00:00Z", "drive-08": "2026-01-01T10:00:05Z"}
        about = {"vehicle": "v1", "started_at": start.get(drive.id, "2026-01-02T10:00:00Z")}
        drives.append(drive.model_copy(update=about if drive.id in start else {}))
    found = check(workspace, replace(dataset, drives=tuple(drives)))
    leaks = [leak for leak in found.leaks if leak.kind == "time"]
    assert gate(found, "drive").verdict is Verdict.PASS
    assert gate(found, "time").verdict is Verdict.FAIL
    assert min(leak.value for leak in leaks) == 1.5
    assert "seed of drive-06 and safety of drive-08" in leaks[0].why


def test_one_place_driven_twice_is_found_by_position(
    workspace: Workspace, dataset: Dataset
) -> None:
    def placed(shift_m: float) -> Dataset:
        frames = []
        for frame in dataset.frames:
            north = 48.0 + (0.01 * int(frame.drive[-2:]))
            if frame.drive == "drive-08":
                north = 48.0 + shift_m / 111_195
            frames.append(frame.model_copy(update={"position": (north, 11.0)}))
        return replace(dataset, frames=tuple(frames))

    near = check(workspace, placed(20.0))
    assert gate(near, "place").verdict is Verdict.FAIL
    assert {round(leak.value) for leak in near.leaks if leak.kind == "place"} == {20}
    assert gate(check(workspace, placed(30.0)), "place").verdict is Verdict.PASS
    wider = hygiene.LeakageRules(radius_m=40.0)
    assert gate(check(workspace, placed(30.0), wider), "place").verdict is Verdict.FAIL


def test_a_pool_without_a_split_is_insufficient_evidence(
    workspace: Workspace, dataset: Dataset
) -> None:
    pool = [frame.model_copy(update={"role": Role.POOL}) for frame in dataset.frames]
    found = check(workspace, replace(dataset, frames=tuple(pool)))
    assert found.verdict is Verdict.INSUFFICIENT
    assert "the only role is pool" in found.gates[0].why


def test_too_few_frames_are_insufficient_evidence(workspace: Workspace) -> None:
    found = check(workspace, synthetic.clean(workspace, drives=4, per_drive=3))
    assert found.verdict is Verdict.INSUFFICIENT
    assert "8 consecutive pairs are too few" in gate(found, "embedding").why


def test_vectors_and_hashes_must_agree(workspace: Workspace, dataset: Dataset) -> None:
    """Likeness that the model sees through is no leak; a copy is one, whatever it sees."""
    hashes = hygiene.compute_fingerprints(workspace, dataset.frames).hashes.copy()
    unit = np.zeros((len(dataset.frames), 4), np.float32)
    unit[:, 0] = 1.0
    judged = next(n for n, f in enumerate(dataset.frames) if f.drive == "drive-09")
    hashes[judged] = hashes[0] ^ np.array([2**20 - 1, 0, 0, 0], np.uint64)  # 20 bits of 256
    unit[judged] = (0, 1, 0, 0)
    like = FrameFeatures(dataset.frames, hashes, unit)
    assert not leakage.check_leakage(dataset, like).leaks
    unit[judged] = unit[0]
    assert leakage.check_leakage(dataset, like).leaks
    unit[judged] = (0, 1, 0, 0)
    hashes[judged] = hashes[0]
    (leak,) = leakage.check_leakage(dataset, like).leaks
    assert (leak.kind, leak.first) == ("embedding", dataset.frames[judged].id)


def test_a_drive_of_an_unknown_vehicle_has_its_own_clock() -> None:
    from workbench.curation.hygiene.leakage import recording_time
    from workbench.records.frames import Frame

    frame = Frame(id="0" * 64, drive="d", index=0, timestamp_us=7, width=1, height=1, suffix=".png")
    assert recording_time(frame, None) == ("d", 7e-6)
    assert recording_time(frame, Drive(id="d", vehicle="v", started_at="once")) == ("d", 7e-6)
    assert recording_time(frame.model_copy(update={"timestamp_us": None}), None) is None
    epoch = frame.model_copy(update={"timestamp_us": 1_700_000_000_000_000})
    assert recording_time(epoch, Drive(id="d", vehicle="v")) == ("vehicle v", 1.7e9)


def test_frames_of_a_stop_longer_than_the_gap_join_the_gap(
    workspace: Workspace, dataset: Dataset
) -> None:
    """Drive 0 soon stands: one view on both sides of its cut, however wide the gap."""
    moving = [frame for frame in dataset.frames if frame.drive in ("drive-01", "drive-02")]
    whole = []
    for number in range(24):
        step = 6.0 * min(number, 4)
        image = synthetic.scene(40, step=step)
        image[0, 0] = number  # other bytes, the same view
        whole.append(
            synthetic.frame_of(workspace, synthetic.encoded(image), "drive-00", number, Role.SEED)
        )
    few = replace(
        dataset,
        frames=(*whole, *moving),
        drives=tuple(
            drive for drive in dataset.drives if drive.id in {"drive-00", "drive-01", "drive-02"}
        ),
    )
    shares = {Role.SEED: 0.5, Role.SAFETY: 0.5}
    cut = assign_roles(few, RolePolicy(shares=shares, gap_s=0.6))
    leaking = check(workspace, cut)
    assert gate(leaking, "time").verdict is Verdict.PASS
    assert gate(leaking, "embedding").verdict is Verdict.FAIL
    worst = next(leak for leak in leaking.leaks if leak.kind == "embedding")
    assert worst.first[:12] in gate(leaking, "embedding").why, "the gate names the frames"
    standing = hygiene.similar_across_cuts(workspace, cut)
    mended = widen_gaps(cut, standing)
    assert gate(check(workspace, mended), "embedding").verdict is Verdict.PASS
    assert mended.split["gap_widened_by_frames"] == len(standing) > 0
    assert mended.split["frames"]["none"] == cut.split["frames"]["none"] + len(standing)
    assert hygiene.similar_across_cuts(workspace, dataset) == (), (
        "whole drives: likeness is an alarm"
    )
