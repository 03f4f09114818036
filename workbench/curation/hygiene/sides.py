"""What a frame is for, when and where it was taken: what tells the sides of a split apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from workbench.records.frames import UNKNOWN, Drive, Frame, Role

SIDES: dict[Role, str] = {
    Role.SEED: "learned",
    Role.TRAIN: "learned",
    Role.POOL: "learned",
    Role.VAL: "tuned",
    Role.SAFETY: "judged",
    Role.BLIND: "judged",
}
"""Frames of a pool count as learned from: they may be next."""

EARTH_M = 6_371_000.0
_EPOCH_US = 10**15  # microseconds since 1970 passed this in 2001; clocks from zero never do


def side_of(frame: Frame) -> str:
    """The side of a split that a frame is on; empty for a frame without a role."""
    return SIDES[frame.role] if frame.role else ""


def sides_in_words(one: Frame, other: Frame) -> str:
    return f"{one.role} of {one.drive} and {other.role} of {other.drive}"


def clock(frame: Frame, drive: Drive | None) -> tuple[str, float] | None:
    """The recording a frame belongs to and its seconds in it; None where it tells no time.

    Drives of one known vehicle share a clock when they say when they began, or count from 1970.
    """
    if frame.timestamp_us is None:
        return None
    seconds = frame.timestamp_us / 1e6
    if drive is None or drive.vehicle == UNKNOWN:
        return frame.drive, seconds
    if frame.timestamp_us >= _EPOCH_US:
        return f"vehicle {drive.vehicle}", seconds
    if drive.started_at != UNKNOWN:
        try:
            started = datetime.fromisoformat(drive.started_at)
        except ValueError:
            return frame.drive, seconds
        if started.tzinfo is not None:
            return f"vehicle {drive.vehicle}", started.timestamp() + seconds
    return frame.drive, seconds


def on_sphere(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Points on the unit sphere, float64 ``[n, 3]``, of frames that tell their position."""
    degrees = np.array([frame.position or (math.nan, math.nan) for frame in frames])
    latitude, longitude = np.radians(degrees).T
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], 1)
