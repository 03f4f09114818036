"""Roles: what each frame is for, given so that no near-duplicate lies on both sides.

Frames of one drive resemble each other, so whole drives get a role where there are ten or more.
With fewer, each drive is cut into one stretch of time a role, with a gap between stretches whose
frames get no role. What was done is written into ``Dataset.split``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role

MIN_DRIVES_FOR_SPLIT = 10
_MIN_USABLE_SHARE = 0.5  # of a drive must be left once the gaps are taken out

DEFAULT_SHARES: dict[Role, float] = {
    Role.SEED: 0.15,
    Role.POOL: 0.5,
    Role.VAL: 0.1,
    Role.SAFETY: 0.25,
}


@dataclass(frozen=True)
class RolePolicy:
    """How frames are shared out.

    ``shares`` are relative. ``gap_s`` is in seconds; ``gap_frames`` takes its place in drives
    without a clock.
    """

    shares: dict[Role, float] = field(default_factory=lambda: dict(DEFAULT_SHARES))
    gap_s: float = 10.0
    gap_frames: int = 10
    seed: int = 0


def assign_roles(dataset: Dataset, policy: RolePolicy | None = None) -> Dataset:
    """``dataset`` with a role for every frame outside a gap. Same input, same roles.

    Raises:
        ParameterError: Shares that cannot be shared out.
    """
    policy = policy or RolePolicy()
    shares = _normalized_shares(policy)
    by_drive: dict[str, list[Frame]] = {drive.id: [] for drive in dataset.drives}
    for frame in dataset.frames:
        by_drive[frame.drive].append(frame)
    whole = len(by_drive) >= MIN_DRIVES_FOR_SPLIT
    uncut = by_drive if whole else {d: f for d, f in by_drive.items() if not _can_be_cut(f, policy)}
    roles: dict[Digest, Role | None] = _assign_drives(uncut, shares, policy.seed)
    for drive, frames in by_drive.items():
        if drive not in uncut:
            roles.update(_assign_time_blocks(drive, frames, shares, policy))
    counts = Counter(role.value if role else "none" for role in roles.values())
    split: dict[str, Any] = {
        "method": "drive" if whole else "time blocks",
        "shares": {role.value: share for role, share in shares.items()},
        "seed": policy.seed,
        "drives": len(by_drive),
        "frames": dict(counts),
    }
    if not whole:
        clockless = sorted(
            d for d, f in by_drive.items() if d not in uncut and not _has_timestamps(f)
        )
        split["gap_s"] = policy.gap_s
        split["drives_too_short_to_cut"] = sorted(uncut)
        split["cut_by_frame_number"] = {"drives": clockless, "gap_frames": policy.gap_frames}
    given = tuple(frame.model_copy(update={"role": roles[frame.id]}) for frame in dataset.frames)
    return replace(dataset, frames=given, split=split, ref=None)


def widen_gaps(dataset: Dataset, frames: Collection[Digest]) -> Dataset:
    """``dataset`` with these frames in the gaps too, so without a role; the split says how many."""
    if not frames:
        return dataset
    aside = set(frames)
    given = tuple(
        frame.model_copy(update={"role": None}) if frame.id in aside else frame
        for frame in dataset.frames
    )
    counts = Counter(frame.role.value if frame.role else "none" for frame in given)
    split = {**dataset.split, "frames": dict(counts), "gap_widened_by_frames": len(aside)}
    return replace(dataset, frames=given, split=split, ref=None)


def withhold_labels(dataset: Dataset, role: Role = Role.POOL) -> tuple[Dataset, Dataset]:
    """Take the labels of ``role`` away, as if nobody had labelled these frames yet.

    Returns:
        The dataset without them, and the answers: just those frames with their labels, for a
        replay of the labelling.
    """
    held = {frame.id for frame in dataset.frames if frame.role is role}
    answers = dataset.where(lambda frame: frame.id in held)
    labels = tuple(label for label in dataset.labels if label.frame not in held)
    split = {**dataset.split, "withheld": {"role": role.value, "labels": len(answers.labels)}}
    kept = replace(dataset, labels=labels, ref=None, split=split)
    return kept, replace(answers, name=f"{dataset.name}-answers", ref=None)


def _normalized_shares(policy: RolePolicy) -> dict[Role, float]:
    shares = {Role(role): share for role, share in policy.shares.items() if share > 0}
    total = sum(shares.values())
    if not shares or not math.isfinite(total) or min(policy.shares.values()) < 0:
        raise ParameterError("shares of roles must be positive", where=dict(policy.shares))
    if policy.gap_s < 0 or policy.gap_frames < 0:
        raise ParameterError("a gap between roles cannot be negative", where=policy.gap_s)
    return {role: share / total for role, share in shares.items()}


def _assign_drives(
    drives: dict[str, list[Frame]], shares: dict[Role, float], seed: int
) -> dict[Digest, Role | None]:
    """Each drive to the role that lacks most, drives of one kind after another.

    Going kind by kind (light, then weather) spreads each kind over the roles.
    """

    def place(drive: str) -> tuple[str, str, str]:
        conditions = drives[drive][0].conditions
        shuffled = digest.of_json([seed, drive])
        return (conditions.light.value, conditions.weather.value, shuffled)

    roles: dict[Digest, Role | None] = {}
    got = dict.fromkeys(shares, 0)
    seen = 0
    for drive in sorted((drive for drive in drives if drives[drive]), key=place):
        seen += len(drives[drive])
        role = max(shares, key=lambda role: shares[role] * seen - got[role])
        got[role] += len(drives[drive])
        roles.update({frame.id: role for frame in drives[drive]})
    return roles


def _has_timestamps(frames: list[Frame]) -> bool:
    return all(frame.timestamp_us is not None for frame in frames)


def _timeline(frames: list[Frame], policy: RolePolicy) -> tuple[dict[Digest, float], float]:
    """A place on a line for each frame, and the gap in the same unit."""
    if _has_timestamps(frames):
        return {frame.id: (frame.timestamp_us or 0) / 1e6 for frame in frames}, policy.gap_s
    ordered = sorted(frames, key=lambda frame: (frame.index, frame.id))
    return {frame.id: float(n) for n, frame in enumerate(ordered)}, float(policy.gap_frames)


def _can_be_cut(frames: list[Frame], policy: RolePolicy) -> bool:
    roles = len(_normalized_shares(policy))
    if len(frames) < 2 * roles:
        return False
    times, gap = _timeline(frames, policy)
    span = max(times.values()) - min(times.values())
    return span > 0 and span - gap * (roles - 1) >= _MIN_USABLE_SHARE * span


def _assign_time_blocks(
    drive: str, frames: list[Frame], shares: dict[Role, float], policy: RolePolicy
) -> dict[Digest, Role | None]:
    """One stretch a role, in an order drawn for this drive so that no role is always last."""
    times, gap = _timeline(frames, policy)
    order = sorted(shares, key=lambda role: digest.of_json([policy.seed, drive, role.value]))
    start, end = min(times.values()), max(times.values())
    usable = (end - start) - gap * (len(order) - 1)
    roles: dict[Digest, Role | None] = dict.fromkeys(times)
    for number, role in enumerate(order):
        stop = end if number == len(order) - 1 else start + shares[role] * usable
        # Half-open, so that two stretches are never closer than the gap, to the microsecond.
        inside = [i for i, at in times.items() if start <= at and (at < stop or at == end == stop)]
        roles.update(dict.fromkeys(inside, role))
        start = stop + gap
    return roles
