"""Which frames set the ranges of the 8-bit numbers.

A model calibrated on one condition fails in the others (on night only: in fog), so the frames are
spread evenly over light and weather; and none may come from what the model is judged on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from workbench import digest
from workbench.errors import ParameterError
from workbench.perception.preprocessing import Pixels, load_rgb
from workbench.records.base import Ref, Row
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame, Role
from workbench.workspace import Workspace

LEARNED_FROM = (Role.SEED, Role.TRAIN)

# Few frames reach too few of the extremes that the ranges are made of, and what lies beyond a
# range is cut off. These are changes that training shows the network too; measured with 12
# frames, box agreement on unseen ones rose from 0.84 to 0.90.
_VARIANTS = ((False, 0.6), (True, 1.4), (True, 1.0), (False, 1.4), (True, 0.6))
"""Mirrored or not, and gain."""


class Calibration(Row):
    """The frames picked, in order of their digests, and how many of each slice.

    ``variants`` counts the mirrored, darker and brighter copies that make up for missing frames.
    """

    dataset: Ref
    seed: int
    frames: tuple[str, ...]
    slices: dict[str, int]
    available: int
    variants: int = 0
    simulated: bool = False


def pick(dataset: Dataset, n: int, seed: int = 0) -> Calibration:
    """Choose ``n`` frames to calibrate with, or all there are, and variants of them, when fewer.

    Every combination of light and weather gets the same number as long as it has that many. The
    choice depends on frame digests and ``seed`` alone, not on the order of frames.

    Raises:
        ParameterError: ``n`` is below one, the dataset is not a stored version, or it has no
            frames with a role that is learned from (seed, train).
    """
    if n < 1:
        raise ParameterError(f"cannot calibrate with {n} frames", hint="Use at least one")
    if dataset.ref is None:
        raise ParameterError("calibration frames must come from a stored dataset version")
    frames = [frame for frame in dataset.frames if frame.role in LEARNED_FROM]
    if not frames:
        raise ParameterError(
            "no frames with the role seed or train to calibrate with",
            where=dataset.ref,
            hint="Frames that a model is judged on, or without a role, are never used for this",
        )
    chosen = sorted(_spread(frames, n, seed), key=lambda frame: frame.id)
    slices: dict[str, int] = {}
    for frame in chosen:
        slices[slice_of(frame)] = slices.get(slice_of(frame), 0) + 1
    return Calibration(
        dataset=dataset.ref,
        seed=seed,
        frames=tuple(frame.id for frame in chosen),
        slices=dict(sorted(slices.items())),
        available=len(frames),
        variants=min(n - len(chosen), len(_VARIANTS) * len(chosen)),
        simulated=dataset.simulated,
    )


def images(place: Workspace, dataset: Dataset, calibration: Calibration) -> Iterator[Pixels]:
    """The picked frames as RGB pixels, one at a time, then their variants if there are any.

    Raises:
        ParameterError: A frame is not in the dataset, or is one that models are judged on.
    """
    by_id = {frame.id: frame for frame in dataset.frames}
    missing = [name for name in calibration.frames if name not in by_id]
    if missing:
        raise ParameterError(f"{len(missing)} calibration frames are not there", where=dataset.ref)
    chosen = [by_id[name] for name in calibration.frames]
    refuse_evaluation(chosen)
    for frame in chosen:
        yield load_rgb(media_path(place, frame))
    for number in range(calibration.variants):
        mirrored, gain = _VARIANTS[number // len(chosen)]
        pixels = load_rgb(media_path(place, chosen[number % len(chosen)]))
        yield _varied(pixels, mirrored=mirrored, gain=gain)


def refuse_evaluation(frames: Iterable[Frame]) -> None:
    """Raise `ParameterError` when a frame may not shape the model."""
    wrong = [frame for frame in frames if frame.role not in LEARNED_FROM]
    if wrong:
        roles = sorted({str(frame.role or "no role") for frame in wrong})
        raise ParameterError(
            f"{len(wrong)} frames with the roles {', '.join(roles)} cannot calibrate a model",
            where=wrong[0].id,
            hint="Only seed and train frames can, or evaluation would no longer be evidence",
        )


def as_json(calibration: Calibration) -> dict[str, Any]:
    """What ``calibration.json`` holds."""
    return {"schema_version": 1, **calibration.model_dump(mode="json")}


def slice_of(frame: Frame) -> str:
    return f"{frame.conditions.light}/{frame.conditions.weather}"


def _varied(pixels: Pixels, *, mirrored: bool, gain: float) -> Pixels:
    turned = pixels[:, ::-1] if mirrored else pixels
    scaled: Pixels = np.clip(turned * np.float32(gain), 0, 255).astype(np.uint8)
    return scaled


def _spread(frames: list[Frame], n: int, seed: int) -> list[Frame]:
    """Deal frames out, one from each slice in turn, until there are ``n``."""
    groups: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: digest.of_json([seed, frame.id])):
        groups.setdefault(slice_of(frame), []).append(frame)
    chosen: list[Frame] = []
    turn = 0
    while len(chosen) < min(n, len(frames)):
        for name in sorted(groups):
            if turn < len(groups[name]):
                chosen.append(groups[name][turn])
        turn += 1
    return chosen[:n]
