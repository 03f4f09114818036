"""Assign roles so that no near-duplicates are on both sides of a split.

Frames of a drive resemble each other, so with ten drives or more each drive gets one role. With
fewer, each drive is cut into one block of time per role, with gaps between blocks whose frames get
no role. ``Dataset.split`` records the method.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role

__all__ = ["RolePolicy", "assign_roles", "widen_gaps", "withhold_labels"]

_MIN_DRIVES = 10
_MIN_USABLE_SHARE = 0.5  # of a drive, without its gaps

_DEFAULT_SHARES: dict[Role, float] = {
    Role.SEED: 0.35,
    Role.POOL: 0.25,
    Role.VAL: 0.1,
    Role.SAFETY: 0.3,
}
"""For drives with labels: most frames are learned from, and enough judge the model."""


@short_repr
@dataclass(frozen=True)
class RolePolicy:
    """How frames are divided among roles.

    Attributes:
        shares: Relative share of each role.
        gap_s: Gap between blocks of a drive, s.
        gap_frames: Gap between blocks of a drive without timestamps, in frames.
    """

    shares: dict[Role, float] = field(default_factory=lambda: dict(_DEFAULT_SHARES))
    gap_s: float = 10.0
    gap_frames: int = 10
    seed: int = 0


def assign_roles(dataset: Dataset, policy: RolePolicy | None = None) -> Dataset:
    """Give every frame outside a gap a role; the result depends on the input only.

    Raises:
        ParameterError: A share or gap is invalid.
    """
    policy = policy or RolePolicy()
    shares = _normalized_shares(policy)
    by_drive: dict[str, list[Frame]] = {drive.id: [] for drive in dataset.drives}
    for frame in dataset.frames:
        by_drive[frame.drive].append(frame)
    whole = len(by_drive) >= _MIN_DRIVES
    uncut = by_drive if whole else {d: f for d, f in by_drive.items() if not _can_be_cut(f, policy)}
    roles: dict[Digest, Role | None] = _assign_drives(uncut, shares, policy.seed)
    for drive, frames in by_drive.items():
        if drive not in uncut:
            roles.update(_assign_time_blocks(drive, frames, shares, policy))
    counts = Counter(role.value if role else "none" for role in roles.values())
    split: Json = {
        "method": "drive" if whole else "time blocks",
        "shares": {role.value: share for role, share in shares.items()},
        "seed": policy.seed,
        "drives": len(by_drive),
        "frames": dict(counts),
    }
    if not whole:
        untimed = sorted(
            d for d, f in by_drive.items() if d not in uncut and not _has_timestamps(f)
        )
        split["gap_s"] = policy.gap_s
        split["drives_too_short_to_cut"] = sorted(uncut)
        split["cut_by_frame_number"] = {"drives": untimed, "gap_frames": policy.gap_frames}
    frames_with_roles = tuple(
        frame.model_copy(update={"role": roles[frame.id]}) for frame in dataset.frames
    )
    return replace(dataset, frames=frames_with_roles, split=split, ref=None)


def widen_gaps(dataset: Dataset, frames: Collection[Digest]) -> Dataset:
    """Remove the role of some frames; the split records how many.

    Args:
        frames: Ids of frames that are too similar to frames of another role.
    """
    if not frames:
        return dataset
    removed = set(frames)
    frames_with_roles = tuple(
        frame.model_copy(update={"role": None}) if frame.id in removed else frame
        for frame in dataset.frames
    )
    counts = Counter(frame.role.value if frame.role else "none" for frame in frames_with_roles)
    split = {**dataset.split, "frames": dict(counts), "gap_widened_by_frames": len(removed)}
    return replace(dataset, frames=frames_with_roles, split=split, ref=None)


def withhold_labels(dataset: Dataset, role: Role = Role.POOL) -> tuple[Dataset, Dataset]:
    """Remove the labels of the frames of a role, as if they were not labeled yet.

    Returns:
        The dataset without these labels, and the answers: only these frames, with their labels,
        to simulate labeling.
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
        raise ParameterError("shares of roles must be ≥ 0, and one > 0", where=dict(policy.shares))
    if policy.gap_s < 0 or policy.gap_frames < 0:
        raise ParameterError(
            f"gaps must be ≥ 0, not {policy.gap_s:g} s, {policy.gap_frames} frames"
        )
    return {role: share / total for role, share in shares.items()}


def _assign_drives(
    drives: dict[str, list[Frame]], shares: dict[Role, float], seed: int
) -> dict[Digest, Role | None]:
    """Assign each drive to the role that has the fewest frames relative to its share.

    Drives are sorted by light and weather, which spreads these over the roles.
    """

    def order(drive: str) -> tuple[str, str, str]:
        conditions = drives[drive][0].conditions
        shuffled = digest.of_json([seed, drive])
        return (conditions.light.value, conditions.weather.value, shuffled)

    roles: dict[Digest, Role | None] = {}
    assigned = dict.fromkeys(shares, 0)
    seen = 0
    for drive in sorted((drive for drive in drives if drives[drive]), key=order):
        seen += len(drives[drive])
        role = max(shares, key=lambda role: shares[role] * seen - assigned[role])
        assigned[role] += len(drives[drive])
        roles.update({frame.id: role for frame in drives[drive]})
    return roles


def _has_timestamps(frames: list[Frame]) -> bool:
    return all(frame.timestamp_us is not None for frame in frames)


def _timeline(frames: list[Frame], policy: RolePolicy) -> tuple[dict[Digest, float], float]:
    """The time of each frame (s, or frames without timestamps), and the gap in the same unit."""
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
    """One block per role, in an order drawn for this drive so that no role is always last."""
    times, gap = _timeline(frames, policy)
    order = sorted(shares, key=lambda role: digest.of_json([policy.seed, drive, role.value]))
    start, end = min(times.values()), max(times.values())
    usable = (end - start) - gap * (len(order) - 1)
    roles: dict[Digest, Role | None] = dict.fromkeys(times)
    for number, role in enumerate(order):
        stop = end if number == len(order) - 1 else start + shares[role] * usable
        # Half-open, so that blocks are never closer than the gap.
        inside = [i for i, at in times.items() if start <= at and (at < stop or at == end == stop)]
        roles.update(dict.fromkeys(inside, role))
        start = stop + gap
    return roles
