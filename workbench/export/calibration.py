"""Calibration: which frames set the INT8 ranges, and which method makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.data.slices import check_slice_name, frame_conditions, light_and_weather
from workbench.detection.preprocessing import Pixels, load_rgb
from workbench.export.parity import Fidelity, ReferenceSample
from workbench.export.quantization import (
    OBSERVERS,
    RANGE_METHODS,
    CalibratedModel,
    Observer,
    RangeMethod,
    export_int8_target,
)
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame, Role
from workbench.records.model_types import CalibrationSet, QuantizationResult
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.detection.predictor import TorchPredictor


TRAINING_ROLES = (Role.SEED, Role.TRAIN)
EVALUATION_ROLES = (Role.VAL, Role.SAFETY, Role.BLIND)
_SPREAD_OVER = ("light", "weather")

SAFETY_SLICES = ("light=night",)
"""Refused when missing, as long as the model is judged on such frames."""

# Few frames reach too few of the extremes that the ranges are made of, and what lies beyond a
# range is cut off. These are changes that training shows the network too; measured with 12
# frames, box agreement on unseen ones rose from 0.84 to 0.90.
_VARIANTS = ((False, 0.6), (True, 1.4), (True, 1.0), (False, 1.4), (True, 0.6))
"""Mirrored or not, and gain."""


def pick_calibration_frames(
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
    frames = [frame for frame in dataset.frames if frame.role in TRAINING_ROLES]
    if not frames:
        raise ParameterError(
            "no frames with the role seed or train to calibrate with",
            where=dataset.ref,
            hint="Frames that a model is judged on, or without a role, are never used for this",
        )
    chosen = sorted(_spread_evenly(frames, n, seed), key=lambda frame: frame.id)
    evaluated = [frame for frame in dataset.frames if frame.role in EVALUATION_ROLES]
    for other in judged:
        evaluated += other.frames
    shared = _check_separate(dataset, chosen, evaluated)
    required, uncovered = _check_coverage(chosen, evaluated, safety_slices)
    slices: dict[str, int] = {}
    for frame in chosen:
        slices[light_and_weather(frame)] = slices.get(light_and_weather(frame), 0) + 1
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


def calibration_images(
    place: Workspace, dataset: Dataset, calibration: CalibrationSet
) -> Iterator[Pixels]:
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
        yield _vary(pixels, mirrored=mirrored, gain=gain)


def unseen_frames(dataset: Dataset, calibration: CalibrationSet, n: int) -> list[Frame]:
    """Up to ``n`` frames to compare methods on: learned from, spread alike, not calibrated with.

    Frames of the calibration itself where there are no others. Evaluation frames are kept for
    judging the one file that was chosen.
    """
    learned = [frame for frame in dataset.frames if frame.role in TRAINING_ROLES]
    used = set(calibration.frames)
    others = [frame for frame in learned if frame.id not in used]
    return _spread_evenly(others or learned, n, calibration.seed + 1)


def refuse_evaluation(frames: Iterable[Frame]) -> None:
    """Raise `ParameterError` when a frame may not shape the model."""
    wrong = [frame for frame in frames if frame.role not in TRAINING_ROLES]
    if wrong:
        roles = sorted({str(frame.role or "no role") for frame in wrong})
        raise ParameterError(
            f"{len(wrong)} frames with the roles {', '.join(roles)} cannot calibrate a model",
            where=wrong[0].id,
            hint="Only seed and train frames can, or evaluation would no longer be evidence",
        )


def save_calibration(store: Store, calibration: CalibrationSet) -> Ref:
    """Keep the choice as a record of its own."""
    return store.put(calibration, {})


def calibration_json(calibration: CalibrationSet) -> dict[str, Any]:
    """What ``calibration.json`` holds."""
    return calibration.model_dump(mode="json")


def _check_separate(dataset: Dataset, chosen: Sequence[Frame], evaluated: Sequence[Frame]) -> int:
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


def _check_coverage(
    chosen: Sequence[Frame], evaluated: Sequence[Frame], safety_slices: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The safety slices that had to be there, and the others that are judged on and are not."""
    for name in safety_slices:
        check_slice_name(name, _SPREAD_OVER)
    here = {name for frame in chosen for name in frame_conditions(frame, _SPREAD_OVER)}
    judged = {name for frame in evaluated for name in frame_conditions(frame, _SPREAD_OVER)}
    required = {name for name in safety_slices if name in judged}
    missing = sorted(required - here)
    if missing:
        raise ParameterError(
            f"no calibration frame of the safety slice {', '.join(missing)}",
            hint="A model calibrated without a condition fails in it: choose more frames, or add "
            "such drives to what is learned from",
        )
    return tuple(sorted(required)), tuple(sorted(judged - here))


def _vary(pixels: Pixels, *, mirrored: bool, gain: float) -> Pixels:
    turned = pixels[:, ::-1] if mirrored else pixels
    scaled: Pixels = np.clip(turned * np.float32(gain), 0, 255).astype(np.uint8)
    return scaled


def _spread_evenly(frames: list[Frame], n: int, seed: int) -> list[Frame]:
    """Deal frames out, one from each slice in turn, until there are ``n``."""
    groups: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: digest.of_json([seed, frame.id])):
        groups.setdefault(light_and_weather(frame), []).append(frame)
    chosen: list[Frame] = []
    turn = 0
    while len(chosen) < min(n, len(frames)):
        for name in sorted(groups):
            if turn < len(groups[name]):
                chosen.append(groups[name][turn])
        turn += 1
    return chosen[:n]


# ---- Ways of making 8-bit ranges, compared on frames that none of them saw, and the choice explained.
#
# Compared on frames that were learned from: had the evaluation set chosen the method, it could no
# longer judge the file.


ProgressCallback = Callable[[int, int], None]
MIN_GAIN_DB = 1.0
"""What another method must win over the simplest to be taken: less is luck of the sample."""
_TARGET_PREFIX = "target/"


@dataclass(frozen=True)
class CalibrationChoice:
    """The methods' figures, the one taken, why, and its ranges, ready to make files from."""

    rows: tuple[QuantizationResult, ...]
    method: RangeMethod
    why: str
    calibrated: CalibratedModel

    def beside(self, rows: Sequence[QuantizationResult]) -> CalibrationChoice:
        """With other files' figures to look at; the choice stays."""
        return replace(self, rows=(*self.rows, *rows))

    def noted(self, calibration: CalibrationSet) -> CalibrationSet:
        """The calibration set with what was compared and chosen."""
        given = {"methods": self.rows, "chosen": self.method, "why": self.why}
        return calibration.model_copy(update=given)


def choose_method(
    fp32: bytes,
    calibrate_with: Sequence[Pixels],
    compare_on: Sequence[Pixels],
    *,
    methods: Sequence[RangeMethod] = RANGE_METHODS,
    threads: int = 2,
    progress: ProgressCallback | None = None,
) -> CalibrationChoice:
    """Make the CPU file with each method and take the one that is nearest to the float file.

    ``methods[0]`` is kept unless another's worst output is `WORTH_DB` better.

    Args:
        calibrate_with: RGB uint8 frames that ranges are made from.
        compare_on: Other such frames.

    Raises:
        ParameterError: No methods, or one that is not known.
    """
    if not methods:
        raise ParameterError("no calibration method to choose from", hint=", ".join(RANGE_METHODS))
    sample = ReferenceSample(fp32, compare_on, threads=threads)
    made: dict[RangeMethod, CalibratedModel] = {}
    rows: list[QuantizationResult] = []
    for done, method in enumerate(methods, start=1):
        made[method] = CalibratedModel(fp32, calibrate_with, method)
        rows.append(_quantizer_row(method, sample.compare(made[method].file()), sample.frames))
        if progress:
            progress(done, len(methods))
    best = max(rows, key=lambda row: row.sqnr_db)
    first = rows[0]
    taken = best if best.sqnr_db >= first.sqnr_db + MIN_GAIN_DB else first
    figures = ", ".join(f"{row.method} {row.sqnr_db:.1f} dB" for row in rows)
    reason = (
        f"at least {MIN_GAIN_DB:g} dB better than {first.method}"
        if taken is not first
        else f"none is {MIN_GAIN_DB:g} dB better"
        if len(rows) > 1
        else "the only one tried"
    )
    why = f"{taken.method}: {reason} (worst raw output on {sample.frames} frames: {figures})"
    index = [row.method for row in rows].index(taken.method)
    return CalibrationChoice(tuple(rows), methods[index], why, made[methods[index]])


def compare_observers(
    predictor: TorchPredictor,
    fp32: bytes,
    calibrate_with: Sequence[Pixels],
    compare_on: Sequence[Pixels],
    *,
    observers: Sequence[Observer] = OBSERVERS,
    threads: int = 2,
) -> tuple[QuantizationResult, ...]:
    """The same for the file for accelerators, whose ranges torchao makes. A look, not a choice."""
    sample = ReferenceSample(fp32, compare_on, threads=threads)
    return tuple(
        _quantizer_row(
            f"{_TARGET_PREFIX}{observer}",
            sample.compare(export_int8_target(predictor, calibrate_with, observer=observer)),
            sample.frames,
        )
        for observer in observers
    )


def _quantizer_row(method: str, found: Fidelity, frames: int) -> QuantizationResult:
    agreement = None if found.agreement is None else float(f"{found.agreement:.3g}")
    # A tenth of a dB is above what threads and kernels change, so the record repeats.
    least = round(found.least_db, 1)
    return QuantizationResult(method=method, frames=frames, sqnr_db=least, agreement=agreement)
