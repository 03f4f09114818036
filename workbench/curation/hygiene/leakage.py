"""Leakage: frames of one drive, time, position or scene on both sides of a split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workbench.curation.hygiene.duplicates import (
    FrameFeatures,
    SimilarityThreshold,
    measure_threshold,
    similar_pairs,
)
from workbench.records.base import Digest, FrozenModel, GateResult, Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import UNKNOWN, Drive, Frame, Role

SIDE_OF_ROLE: dict[Role, str] = {
    Role.SEED: "learned",
    Role.TRAIN: "learned",
    Role.POOL: "learned",
    Role.VAL: "tuned",
    Role.SAFETY: "judged",
    Role.BLIND: "judged",
}
"""Frames of a pool count as learned from: they may be next."""

EARTH_RADIUS_M = 6_371_000.0
_UNIX_CLOCK_US = 10**15  # microseconds since 1970 passed this in 2001; clocks from zero never do


def split_side(frame: Frame) -> str:
    """The side of a split that a frame is on; empty for a frame without a role."""
    return SIDE_OF_ROLE[frame.role] if frame.role else ""


def describe_sides(one: Frame, other: Frame) -> str:
    return f"{one.role} of {one.drive} and {other.role} of {other.drive}"


def recording_time(frame: Frame, drive: Drive | None) -> tuple[str, float] | None:
    """The recording a frame belongs to and its seconds in it; None where it tells no time.

    Drives of one known vehicle share a clock when they say when they began, or count from 1970.
    """
    if frame.timestamp_us is None:
        return None
    seconds = frame.timestamp_us / 1e6
    if drive is None or drive.vehicle == UNKNOWN:
        return frame.drive, seconds
    if frame.timestamp_us >= _UNIX_CLOCK_US:
        return f"vehicle {drive.vehicle}", seconds
    if drive.started_at != UNKNOWN:
        try:
            started = datetime.fromisoformat(drive.started_at)
        except ValueError:
            return frame.drive, seconds
        if started.tzinfo is not None:
            return f"vehicle {drive.vehicle}", started.timestamp() + seconds
    return frame.drive, seconds


def points_on_sphere(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Points on the unit sphere, float64 ``[n, 3]``, of frames that tell their position."""
    degrees = np.array([frame.position or (math.nan, math.nan) for frame in frames])
    latitude, longitude = np.radians(degrees).T
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], 1)


# ---- Leakage: frames of one moment, place or scene on both sides of a split.
#
# What a model learned from must not come back in what it is judged by. Frames are on one of three
# sides: learned from (``seed``, ``train``, and ``pool``, which may be next), tuned on (``val``) and
# judged by (``safety``, ``blind``). Four checks, each a gate with its evidence:
#
# drive      no drive has frames on two sides, unless drives were cut into blocks of time
# time       frames of one drive, or of two drives that one vehicle recorded in one go, lie
#            a gap apart
# place      frames that tell their position lie a distance apart
# embedding  no frame is as alike to one across a side as consecutive frames are


_MAX_NAMED_LEAKS = 3  # leaks that a gate names; all are in the inspection

LeakKind = Literal["drive", "time", "place", "embedding"]


class LeakageRules(FrozenModel):
    """How far apart sides have to be.

    Attributes:
        gap_s: Seconds between frames of one recording; the split's own gap is asked for where it
            states a smaller one.
        radius_m: Metres between frames that tell their position.
        share: Of consecutive pairs, how many are at least as alike as two frames may be.
    """

    gap_s: float = Field(default=10.0, ge=0)
    radius_m: float = Field(default=25.0, ge=0)
    share: float = Field(default=0.5, gt=0, lt=1)


class Leak(FrozenModel):
    """Two frames on different sides that are too near, by one measure.

    ``value`` is seconds, metres, or cosine distance (hash bits without a model); for ``drive`` it
    is the number of frames on the smaller side.
    """

    kind: LeakKind
    first: Digest
    second: Digest
    value: float
    why: str


@dataclass(frozen=True)
class LeakageResult:
    """Four gates and the pairs they rest on, worst first in each kind, one a frame."""

    gates: tuple[GateResult, ...]
    leaks: tuple[Leak, ...]
    yardstick: SimilarityThreshold

    @property
    def verdict(self) -> Verdict:
        """FAIL when a required gate fails; INSUFFICIENT when likeness could not be judged."""
        asked = [gate.verdict for gate in self.gates if gate.required]
        for verdict in (Verdict.FAIL, Verdict.INSUFFICIENT):
            if verdict in asked:
                return verdict
        return Verdict.PASS


def check_leakage(
    dataset: Dataset, like: FrameFeatures, rules: LeakageRules | None = None
) -> LeakageResult:
    """Judge a split.

    Args:
        like: Fingerprints, and vectors where a model is at hand, of frames of ``dataset``.

    Returns:
        Without a split, as in a pool that nothing was held out of, evidence is insufficient.
    """
    rules = rules or LeakageRules()
    sided = [frame for frame in dataset.frames if split_side(frame)]
    sides = {split_side(frame) for frame in sided}
    yardstick = measure_threshold(like, rules.share)
    if len(sides) < 2:
        roles = ", ".join(sorted({str(frame.role) for frame in sided})) or "none"
        why = f"there is no split to judge, the only role is {roles}: ingest with roles"
        kinds: tuple[LeakKind, ...] = get_args(LeakKind)
        gates = tuple(_insufficient_gate(kind, "frames", "two sides", why) for kind in kinds)
        return LeakageResult(gates, (), yardstick)
    judged = [
        _check_drives(dataset, sided),
        _check_times(dataset, sided, rules),
        _check_positions(sided, rules),
        _check_similarity(like, yardstick),
    ]
    gates = tuple(gate for gate, _ in judged)
    leaks = tuple(leak for _, found in judged for leak in found)
    return LeakageResult(gates, leaks, yardstick)


def _check_drives(dataset: Dataset, frames: Sequence[Frame]) -> tuple[GateResult, list[Leak]]:
    sides: dict[str, dict[str, list[Frame]]] = {}
    for frame in frames:
        sides.setdefault(frame.drive, {}).setdefault(split_side(frame), []).append(frame)
    leaks = []
    for drive, found in sorted(sides.items()):
        if len(found) > 1:
            small, large = sorted(found.values(), key=len)[:2]
            told = f"drive {drive} has frames on sides {' and '.join(sorted(found))}"
            leaks.append(_make_leak("drive", small[0], large[0], len(small), told))
    cut = dataset.split.get("method") == "time blocks"
    why = "drives were cut into blocks of time on purpose: time decides" if cut and leaks else ""
    gate = _leak_gate("drive", len(sides), "drives", leaks, "no drive on two sides", why, not cut)
    return gate, leaks


def _check_times(
    dataset: Dataset, frames: Sequence[Frame], rules: LeakageRules
) -> tuple[GateResult, list[Leak]]:
    """Each frame against the nearest in time on another side of its recording."""
    gap = min(rules.gap_s, float(dataset.split.get("gap_s", rules.gap_s)))
    recordings: dict[str, list[tuple[float, Frame]]] = {}
    for frame in frames:
        at = recording_time(frame, dataset.drive_by_id.get(frame.drive))
        if at is not None:
            recordings.setdefault(at[0], []).append((at[1], frame))
    leaks = []
    for timed in recordings.values():
        timed.sort(key=lambda pair: (pair[0], pair[1].id))
        if len({split_side(frame) for _, frame in timed}) > 1:
            leaks += _close_in_time(timed, gap)
    method = f"frames of one recording on two sides lie {gap:g} s apart"
    clockless = len(frames) - sum(map(len, recordings.values()))
    why = f"{clockless} frames tell no time" if clockless else ""
    if not recordings:
        return _insufficient_gate("time", "frames", method, why, required=False), []
    count = sum(map(len, recordings.values()))
    return _leak_gate("time", count, "frames", leaks, method, why), _worst_first(leaks)


def _close_in_time(timed: Sequence[tuple[float, Frame]], gap: float) -> list[Leak]:
    found = []
    for number, (at, frame) in enumerate(timed):
        later = next(
            (pair for pair in timed[number + 1 :] if split_side(pair[1]) != split_side(frame)), None
        )
        if later is not None and later[0] - at < gap:
            apart = later[0] - at
            why = f"{apart:.1f} s apart in one recording, {describe_sides(frame, later[1])}"
            found.append(_make_leak("time", frame, later[1], apart, why))
    return found


def _check_positions(frames: Sequence[Frame], rules: LeakageRules) -> tuple[GateResult, list[Leak]]:
    method = f"positions on two sides lie {rules.radius_m:g} m apart"
    placed = [frame for frame in frames if frame.position is not None]
    sides = {split_side(frame) for frame in placed}
    missing = len(frames) - len(placed)
    why = f"{missing} of {len(frames)} frames tell no position" if missing else ""
    if len(sides) < 2:
        return _insufficient_gate("place", "frames", method, why, required=False), []
    leaks = _close_in_space(placed, rules.radius_m)
    return _leak_gate("place", len(placed), "frames", leaks, method, why), _worst_first(leaks)


def _close_in_space(placed: Sequence[Frame], radius: float) -> list[Leak]:
    """Each frame's nearest on another side, on a sphere: chords of unit vectors in a k-d tree."""
    from scipy.spatial import cKDTree

    points = points_on_sphere(placed)
    sides = np.array([split_side(frame) for frame in placed])
    found: dict[tuple[str, str], Leak] = {}
    for side in np.unique(sides):
        mine, others = np.flatnonzero(sides == side), np.flatnonzero(sides != side)
        chords, nearest = cKDTree(points[others]).query(points[mine])
        metres = 2 * EARTH_RADIUS_M * np.arcsin(np.clip(chords / 2, 0, 1))
        for row, near, apart in zip(mine.tolist(), nearest.tolist(), metres.tolist(), strict=True):
            if apart < radius:
                one, other = placed[row], placed[int(others[near])]
                one, other = sorted((one, other), key=lambda frame: frame.id)
                why = f"{apart:.0f} m apart, {describe_sides(one, other)}"
                found[one.id, other.id] = _make_leak("place", one, other, apart, why)
    return list(found.values())


def _check_similarity(
    like: FrameFeatures, yardstick: SimilarityThreshold
) -> tuple[GateResult, list[Leak]]:
    method = f"no frame as alike to one on another side as {yardstick.told}"
    judged = sum(split_side(frame) != "" for frame in like.frames)
    if not yardstick.measured:
        why = f"{yardstick.told}: ingest drives with more frames"
        return _insufficient_gate("embedding", "frames", method, why), []
    why = "" if like.directions is not None else "by hash alone: no model was given"
    leaks = _worst_first(_similar_across_sides(like, yardstick))
    return _leak_gate("embedding", judged, "frames", leaks, method, why), leaks


def _similar_across_sides(like: FrameFeatures, yardstick: SimilarityThreshold) -> list[Leak]:
    """The closest partner on another side of each frame that has one; one leak a frame.

    A frame that met its own hash looks no further, so that a pool of one picture is no square.
    """
    sides = np.array([split_side(frame) for frame in like.frames])
    best: dict[int, tuple[float, int, int]] = {}
    for side, others in (("judged", ("learned", "tuned")), ("tuned", ("learned",))):
        mine = np.flatnonzero(sides == side)
        theirs = np.flatnonzero(np.isin(sides, others))
        settled = np.zeros(len(mine), bool)
        found = similar_pairs(
            like.rows(mine.tolist()), yardstick, like.rows(theirs.tolist()), settled
        )
        for block in found:
            settled[block.first[block.bits == 0]] = True  # nothing is nearer than the same hash
            apart = block.distance if block.distance is not None else block.bits
            for row in _smallest_per_row(block.first, apart):
                one = int(mine[block.first[row]])
                pair = (float(apart[row]), int(theirs[block.second[row]]), int(block.bits[row]))
                best[one] = min(best.get(one, pair), pair)
    leaks = []
    for row, (value, other, bits) in sorted(best.items()):
        frame, twin = like.frames[row], like.frames[other]
        far = "" if like.directions is None else f"cosine distance {value:.4f} and "
        why = f"{far}{bits} hash bits apart, {describe_sides(frame, twin)}"
        leaks.append(_make_leak("embedding", frame, twin, value, why))
    return leaks


def _smallest_per_row(rows: NDArray[np.int64], apart: NDArray[np.generic]) -> list[int]:
    """Where each row's smallest value stands."""
    order = np.lexsort((apart, rows))
    _, first = np.unique(rows[order], return_index=True)
    return [int(where) for where in order[first]]


def _worst_first(leaks: Sequence[Leak]) -> list[Leak]:
    return sorted(leaks, key=lambda leak: (leak.value, leak.first, leak.second))


def _make_leak(kind: LeakKind, first: Frame, second: Frame, value: float, why: str) -> Leak:
    return Leak(kind=kind, first=first.id, second=second.id, value=round(value, 6), why=why)


def _leak_gate(
    kind: LeakKind,
    n: int,
    unit: str,
    leaks: Sequence[Leak],
    method: str,
    why: str = "",
    required: bool = True,
) -> GateResult:
    named = [
        f"{leak.first[:12]} and {leak.second[:12]}: {leak.why}" for leak in leaks[:_MAX_NAMED_LEAKS]
    ]
    return GateResult(
        name=f"leakage-{kind}",
        verdict=Verdict.FAIL if leaks else Verdict.PASS,
        n=n,
        unit=unit,
        value=float(len(leaks)),
        bound=0.0,
        method=method,
        required=required,
        why="; ".join(part for part in (why, *named) if part),
    )


def _insufficient_gate(
    kind: LeakKind, unit: str, method: str, why: str, *, required: bool = True
) -> GateResult:
    return GateResult(
        name=f"leakage-{kind}",
        verdict=Verdict.INSUFFICIENT,
        n=0,
        unit=unit,
        value=None,
        bound=0.0,
        method=method,
        required=required,
        why=why,
    )
