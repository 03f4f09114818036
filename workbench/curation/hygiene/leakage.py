"""Leakage: frames of one drive, time, position or scene on both sides of a split.

What a model is judged by must not contain what it learned from. Frames are on one of three sides:
learned from (``seed``, ``train``, and ``pool``, which may be next), tuned on (``val``) and judged
by (``safety``, ``blind``). There are four checks, each a gate with its evidence:

    drive      no drive has frames on two sides, unless drives were split by time
    time       frames of one drive, or of one vehicle's recordings in a row, are a gap apart
    place      frames with a known position are a distance apart
    embedding  no frame is as similar to one on another side as consecutive frames are
"""

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

__all__ = ["LeakageRules"]

_SIDE_OF_ROLE: dict[Role, str] = {
    Role.SEED: "learned",
    Role.TRAIN: "learned",
    Role.POOL: "learned",
    Role.VAL: "tuned",
    Role.SAFETY: "judged",
    Role.BLIND: "judged",
}
"""Frames of the pool count as learned from, because they may be next."""

_EARTH_RADIUS_M = 6_371_000.0
_UNIX_CLOCK_US = 10**15  # reached in 2001 by clocks that count from 1970
_MAX_NAMED_LEAKS = 3  # leaks named by a gate; the inspection has all
_LeakKind = Literal["drive", "time", "place", "embedding"]


class LeakageRules(FrozenModel):
    """Distances that sides must keep.

    Attributes:
        gap_s: Seconds between frames of one recording; the split's own gap counts where it is
            smaller.
        radius_m: Metres between frames with a position.
        share: Share of consecutive pairs that are at least as similar as two frames may be.
    """

    gap_s: float = Field(default=10.0, ge=0)
    radius_m: float = Field(default=25.0, ge=0)
    share: float = Field(default=0.5, gt=0, lt=1)


class Leak(FrozenModel):
    """Two frames on different sides that are too close, by one measure.

    Attributes:
        kind: The measure.
        first: Digest of one frame.
        second: Digest of the other.
        value: Seconds, metres, or cosine distance (hash bits without a model); for ``drive``, the
            number of frames on the smaller side.
        why: The reason in words.
    """

    kind: _LeakKind
    first: Digest
    second: Digest
    value: float
    why: str


@dataclass(frozen=True)
class LeakageResult:
    """Result of the four checks.

    Attributes:
        gates: One per check.
        leaks: The pairs of each kind, closest first, one per frame.
        threshold: Similarity from which a pair leaks.
    """

    gates: tuple[GateResult, ...]
    leaks: tuple[Leak, ...]
    threshold: SimilarityThreshold

    @property
    def verdict(self) -> Verdict:
        """FAIL when a required gate fails, INSUFFICIENT when one could not be judged."""
        required = [gate.verdict for gate in self.gates if gate.required]
        for verdict in (Verdict.FAIL, Verdict.INSUFFICIENT):
            if verdict in required:
                return verdict
        return Verdict.PASS


def check_leakage(
    dataset: Dataset, features: FrameFeatures, rules: LeakageRules | None = None
) -> LeakageResult:
    """Check a split for leaks.

    Args:
        dataset: The dataset version.
        features: Features of its frames.
        rules: Distances to keep.

    Returns:
        Four gates; without a split, as in a pool, evidence is insufficient.
    """
    rules = rules or LeakageRules()
    frames = [frame for frame in dataset.frames if split_side(frame)]
    sides = {split_side(frame) for frame in frames}
    threshold = measure_threshold(features, rules.share)
    if len(sides) < 2:
        roles = ", ".join(sorted({str(frame.role) for frame in frames})) or "none"
        why = f"no split: the only role is {roles}; ingest with roles"
        kinds: tuple[_LeakKind, ...] = get_args(_LeakKind)
        gates = tuple(_insufficient_gate(kind, "frames", "two sides", why) for kind in kinds)
        return LeakageResult(gates, (), threshold)
    results = [
        _check_drives(dataset, frames),
        _check_times(dataset, frames, rules),
        _check_positions(frames, rules),
        _check_similarity(features, threshold),
    ]
    gates = tuple(gate for gate, _ in results)
    leaks = tuple(leak for _, pairs in results for leak in pairs)
    return LeakageResult(gates, leaks, threshold)


def split_side(frame: Frame) -> str:
    """The side of a split that a frame is on; empty without a role."""
    return _SIDE_OF_ROLE[frame.role] if frame.role else ""


def _describe_sides(one: Frame, other: Frame) -> str:
    """Role and drive of two frames, in words."""
    return f"{one.role} of {one.drive} and {other.role} of {other.drive}"


def recording_time(frame: Frame, drive: Drive | None) -> tuple[str, float] | None:
    """The recording a frame belongs to and its time in it, seconds; None without a timestamp.

    Drives of one known vehicle share a clock when their start is known or they count from 1970.
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
            start = datetime.fromisoformat(drive.started_at)
        except ValueError:
            return frame.drive, seconds
        if start.tzinfo is not None:
            return f"vehicle {drive.vehicle}", start.timestamp() + seconds
    return frame.drive, seconds


def _points_on_sphere(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Points on the unit sphere, float64 ``[n, 3]``, of frames with a position."""
    degrees = np.array([frame.position or (math.nan, math.nan) for frame in frames])
    latitude, longitude = np.radians(degrees).T
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], 1)


def _check_drives(dataset: Dataset, frames: Sequence[Frame]) -> tuple[GateResult, list[Leak]]:
    sides: dict[str, dict[str, list[Frame]]] = {}
    for frame in frames:
        sides.setdefault(frame.drive, {}).setdefault(split_side(frame), []).append(frame)
    leaks = []
    for drive, by_side in sorted(sides.items()):
        if len(by_side) > 1:
            smaller, larger = sorted(by_side.values(), key=len)[:2]
            reason = f"drive {drive} has frames on sides {' and '.join(sorted(by_side))}"
            leaks.append(_make_leak("drive", smaller[0], larger[0], len(smaller), reason))
    is_time_split = dataset.split.get("method") == "time blocks"
    note = (
        "drives were split by time on purpose, so the time check decides"
        if is_time_split and leaks
        else ""
    )
    gate = _leak_gate(
        "drive", len(sides), "drives", leaks, "no drive on two sides", note, not is_time_split
    )
    return gate, leaks


def _check_times(
    dataset: Dataset, frames: Sequence[Frame], rules: LeakageRules
) -> tuple[GateResult, list[Leak]]:
    """Compare each frame with the nearest in time on another side of its recording."""
    gap = min(rules.gap_s, float(dataset.split.get("gap_s", rules.gap_s)))
    recordings: dict[str, list[tuple[float, Frame]]] = {}
    for frame in frames:
        time = recording_time(frame, dataset.drive_by_id.get(frame.drive))
        if time is not None:
            recordings.setdefault(time[0], []).append((time[1], frame))
    leaks = []
    for timed in recordings.values():
        timed.sort(key=lambda pair: (pair[0], pair[1].id))
        if len({split_side(frame) for _, frame in timed}) > 1:
            leaks += _close_in_time(timed, gap)
    method = f"frames of one recording on two sides are ≥ {gap:g} s apart"
    without_time = len(frames) - sum(map(len, recordings.values()))
    note = f"{without_time} frames have no timestamp" if without_time else ""
    if not recordings:
        return _insufficient_gate("time", "frames", method, note, required=False), []
    count = sum(map(len, recordings.values()))
    return _leak_gate("time", count, "frames", leaks, method, note), _worst_first(leaks)


def _close_in_time(timed: Sequence[tuple[float, Frame]], gap: float) -> list[Leak]:
    leaks = []
    for number, (time, frame) in enumerate(timed):
        later = next(
            (pair for pair in timed[number + 1 :] if split_side(pair[1]) != split_side(frame)), None
        )
        if later is not None and later[0] - time < gap:
            seconds = later[0] - time
            reason = f"{seconds:.1f} s apart in one recording, {_describe_sides(frame, later[1])}"
            leaks.append(_make_leak("time", frame, later[1], seconds, reason))
    return leaks


def _check_positions(frames: Sequence[Frame], rules: LeakageRules) -> tuple[GateResult, list[Leak]]:
    method = f"positions on two sides are ≥ {rules.radius_m:g} m apart"
    positioned = [frame for frame in frames if frame.position is not None]
    sides = {split_side(frame) for frame in positioned}
    missing = len(frames) - len(positioned)
    note = f"{missing} of {len(frames)} frames have no position" if missing else ""
    if len(sides) < 2:
        return _insufficient_gate("place", "frames", method, note, required=False), []
    leaks = _close_in_space(positioned, rules.radius_m)
    return _leak_gate("place", len(positioned), "frames", leaks, method, note), _worst_first(leaks)


def _close_in_space(positioned: Sequence[Frame], radius: float) -> list[Leak]:
    """Each frame's nearest on another side, by chords of unit vectors in a k-d tree."""
    from scipy.spatial import cKDTree

    points = _points_on_sphere(positioned)
    sides = np.array([split_side(frame) for frame in positioned])
    leaks: dict[tuple[str, str], Leak] = {}
    for side in np.unique(sides):
        own, others = np.flatnonzero(sides == side), np.flatnonzero(sides != side)
        chords, nearest = cKDTree(points[others]).query(points[own])
        metres = 2 * _EARTH_RADIUS_M * np.arcsin(np.clip(chords / 2, 0, 1))
        for row, near, distance in zip(
            own.tolist(), nearest.tolist(), metres.tolist(), strict=True
        ):
            if distance < radius:
                one, other = positioned[row], positioned[int(others[near])]
                one, other = sorted((one, other), key=lambda frame: frame.id)
                reason = f"{distance:.0f} m apart, {_describe_sides(one, other)}"
                leaks[one.id, other.id] = _make_leak("place", one, other, distance, reason)
    return list(leaks.values())


def _check_similarity(
    features: FrameFeatures, threshold: SimilarityThreshold
) -> tuple[GateResult, list[Leak]]:
    method = f"no frame as similar to one on another side as {threshold.description}"
    count = sum(split_side(frame) != "" for frame in features.frames)
    if not threshold.measured:
        note = f"{threshold.description}: ingest drives with more frames"
        return _insufficient_gate("embedding", "frames", method, note), []
    note = "" if features.directions is not None else "by hash only: no model was given"
    leaks = _worst_first(_similar_across_sides(features, threshold))
    return _leak_gate("embedding", count, "frames", leaks, method, note), leaks


def _similar_across_sides(features: FrameFeatures, threshold: SimilarityThreshold) -> list[Leak]:
    """The closest partner on another side of each frame that has one; one leak per frame.

    A frame with a partner of equal hash is not compared further, so that a pool of one image does
    not take quadratic time.
    """
    sides = np.array([split_side(frame) for frame in features.frames])
    best: dict[int, tuple[float, int, int]] = {}
    for side, others in (("judged", ("learned", "tuned")), ("tuned", ("learned",))):
        own = np.flatnonzero(sides == side)
        partners = np.flatnonzero(np.isin(sides, others))
        settled = np.zeros(len(own), bool)
        blocks = similar_pairs(
            features.rows(own.tolist()), threshold, features.rows(partners.tolist()), settled
        )
        for block in blocks:
            settled[block.first[block.bits == 0]] = True  # nothing is nearer than an equal hash
            distance = block.distance if block.distance is not None else block.bits
            for row in _smallest_per_row(block.first, distance):
                one = int(own[block.first[row]])
                pair = (
                    float(distance[row]),
                    int(partners[block.second[row]]),
                    int(block.bits[row]),
                )
                best[one] = min(best.get(one, pair), pair)
    leaks = []
    for row, (value, other, bits) in sorted(best.items()):
        frame, partner = features.frames[row], features.frames[other]
        prefix = "" if features.directions is None else f"cosine distance {value:.4f} and "
        reason = f"{prefix}{bits} hash bits apart, {_describe_sides(frame, partner)}"
        leaks.append(_make_leak("embedding", frame, partner, value, reason))
    return leaks


def _smallest_per_row(rows: NDArray[np.int64], values: NDArray[np.generic]) -> list[int]:
    """Index of each row's smallest value."""
    order = np.lexsort((values, rows))
    _, first = np.unique(rows[order], return_index=True)
    return [int(where) for where in order[first]]


def _worst_first(leaks: Sequence[Leak]) -> list[Leak]:
    return sorted(leaks, key=lambda leak: (leak.value, leak.first, leak.second))


def _make_leak(kind: _LeakKind, first: Frame, second: Frame, value: float, reason: str) -> Leak:
    return Leak(kind=kind, first=first.id, second=second.id, value=round(value, 6), why=reason)


def _leak_gate(
    kind: _LeakKind,
    n: int,
    unit: str,
    leaks: Sequence[Leak],
    method: str,
    note: str = "",
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
        why="; ".join(part for part in (note, *named) if part),
    )


def _insufficient_gate(
    kind: _LeakKind, unit: str, method: str, note: str, *, required: bool = True
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
        why=note,
    )
