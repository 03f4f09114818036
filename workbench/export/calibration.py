"""Which frames set the ranges of the 8-bit numbers.

A model calibrated on one condition fails in the others (on night only: in fog), so the frames are
spread evenly over light and weather; and none may come from what the model is judged on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from workbench import digest
from workbench.errors import ParameterError
from workbench.perception.preprocessing import Pixels, load_rgb
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame, Light, Role, Weather
from workbench.records.store import Store
from workbench.records.types import CalibrationSet
from workbench.workspace import Workspace

LEARNED_FROM = (Role.SEED, Role.TRAIN)
JUDGED_ON = (Role.VAL, Role.SAFETY, Role.BLIND)
SAFETY_SLICES = ("light=night",)
"""Refused when missing, as long as the model is judged on such frames."""

# Few frames reach too few of the extremes that the ranges are made of, and what lies beyond a
# range is cut off. These are changes that training shows the network too; measured with 12
# frames, box agreement on unseen ones rose from 0.84 to 0.90.
_VARIANTS = ((False, 0.6), (True, 1.4), (True, 1.0), (False, 1.4), (True, 0.6))
"""Mirrored or not, and gain."""


def pick(
    dataset: Dataset,
    n: int,
    seed: int = 0,
    *,
    safety_slices: Sequence[str] = SAFETY_SLICES,
    judged: Iterable[Dataset] = (),
) -> CalibrationSet:
    """Choose ``n`` frames to calibrate with, or all there are, and variants of them, when fewer.

    Every combination of light and weather gets the same number as long as it has that many. The
    choice depends on frame digests and ``seed`` alone, not on the order of frames.

    Args:
        safety_slices: ``light=…`` or ``weather=…``; each that evaluation frames are in must be
            among the frames chosen.
        judged: More evaluation sets, beside the frames of ``dataset`` with such roles.

    Raises:
        ParameterError: ``n`` is below one; the dataset is not a stored version or has no frames
            to learn from (role seed or train); frames or drives are evaluated on too; a safety
            slice is missing.
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
    evaluated = [frame for frame in dataset.frames if frame.role in JUDGED_ON]
    for other in judged:
        evaluated += other.frames
    shared = _apart(dataset, chosen, evaluated)
    required, uncovered = _covered(chosen, evaluated, safety_slices)
    slices: dict[str, int] = {}
    for frame in chosen:
        slices[slice_of(frame)] = slices.get(slice_of(frame), 0) + 1
    method = dataset.split.get("method")
    return CalibrationSet(
        dataset=dataset.ref,
        seed=seed,
        frames=tuple(frame.id for frame in chosen),
        slices=dict(sorted(slices.items())),
        drives=len({frame.drive for frame in chosen}),
        available=len(frames),
        variants=min(n - len(chosen), len(_VARIANTS) * len(chosen)),
        required=required,
        uncovered=uncovered,
        evaluated=len(evaluated),
        apart=method if method in ("drive", "time blocks") else "frame",
        shared_drives=shared,
        simulated=dataset.simulated,
    )


def images(place: Workspace, dataset: Dataset, calibration: CalibrationSet) -> Iterator[Pixels]:
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


def unseen(dataset: Dataset, calibration: CalibrationSet, n: int) -> list[Frame]:
    """Up to ``n`` frames to compare methods on: learned from, spread alike, not calibrated with.

    Frames of the calibration itself where there are no others. Evaluation frames are kept for
    judging the one file that was chosen.
    """
    learned = [frame for frame in dataset.frames if frame.role in LEARNED_FROM]
    used = set(calibration.frames)
    others = [frame for frame in learned if frame.id not in used]
    return _spread(others or learned, n, calibration.seed + 1)


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


def save(store: Store, calibration: CalibrationSet) -> Ref:
    """Keep the choice as a record of its own."""
    return store.put(calibration, {})


def as_json(calibration: CalibrationSet) -> dict[str, Any]:
    """What ``calibration.json`` holds."""
    return calibration.model_dump(mode="json")


def slice_of(frame: Frame) -> str:
    return f"{frame.conditions.light}/{frame.conditions.weather}"


def _names(frame: Frame) -> set[str]:
    """The slices a frame is in; what is not known is in none."""
    light, weather = frame.conditions.light, frame.conditions.weather
    known = {f"light={light}"} if light is not Light.UNKNOWN else set()
    return known | ({f"weather={weather}"} if weather is not Weather.UNKNOWN else set())


def _apart(dataset: Dataset, chosen: Sequence[Frame], evaluated: Sequence[Frame]) -> int:
    """How many drives both sides have, where roles were not given by drive; else there are none."""
    both = {frame.id for frame in chosen} & {frame.id for frame in evaluated}
    if both:
        raise ParameterError(
            f"{len(both)} calibration frames are evaluated on too",
            where=min(both),
            hint="Equal frames have equal ids, whichever dataset they came by: give each one role",
        )
    drives = {frame.drive for frame in chosen} & {frame.drive for frame in evaluated}
    if drives and dataset.split.get("method") == "drive":
        raise ParameterError(
            f"{len(drives)} drives are both calibrated with and evaluated on",
            where=min(drives),
            hint="Frames of one drive resemble each other: give each drive one role",
        )
    return len(drives)


def _covered(
    chosen: Sequence[Frame], evaluated: Sequence[Frame], safety_slices: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The safety slices that had to be there, and the others that are judged on and are not."""
    known = {f"light={kind}" for kind in Light} | {f"weather={kind}" for kind in Weather}
    unknown = sorted(set(safety_slices) - known)
    if unknown:
        raise ParameterError(
            f"no slice named {unknown[0]!r}", hint=f"Known are {', '.join(sorted(known))}"
        )
    here = set().union(*(_names(frame) for frame in chosen))
    judged = set().union(*(_names(frame) for frame in evaluated))
    required = {name for name in safety_slices if name in judged}
    missing = sorted(required - here)
    if missing:
        raise ParameterError(
            f"no calibration frame of the safety slice {', '.join(missing)}",
            hint="A model calibrated without a condition fails in it: choose more frames, or add "
            "such drives to what is learned from",
        )
    return tuple(sorted(required)), tuple(sorted(judged - here))


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
