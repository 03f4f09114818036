"""Calibration: which frames set the INT8 ranges, and which method makes them.

A model calibrated on one condition fails in the others (on night only: in fog), so the frames are
spread evenly over light and weather. None may come from what the model is evaluated on, and methods
are compared on frames that were learned from: had the evaluation set chosen the method, it could no
longer judge the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.data.slices import check_slice_name, frame_conditions, light_and_weather
from workbench.detection.preprocessing import Pixels, load_frame
from workbench.export.parity import Fidelity, ReferenceSample
from workbench.export.quantization import (
    OBSERVERS,
    RANGE_METHODS,
    CalibratedModel,
    RangeMethod,
    export_int8_target,
)
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role
from workbench.records.held_out import refuse_held_out
from workbench.records.model_types import CalibrationSet, QuantizationResult
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.detection.predictor import TorchPredictor

__all__ = ()

SAFETY_SLICES = ("light=night",)
"""Slices that must be calibrated with if the model is evaluated on them."""

_TRAINING_ROLES = (Role.SEED, Role.TRAIN)
_EVALUATION_ROLES = (Role.VAL, Role.SAFETY, Role.BLIND)
_SPREAD_OVER = ("light", "weather")
_MIN_GAIN_DB = 1.0  # of another method over the first; a smaller one is chance

# Few frames reach too few of the extremes that ranges are made of, and values beyond a range are
# clipped. These are augmentations that the network was trained with; with 12 frames, box agreement
# on unseen ones rose from 0.84 to 0.90.
_VARIANTS = ((False, 0.6), (True, 1.4), (True, 1.0), (False, 1.4), (True, 0.6))
"""Flipped or not, and gain."""


def pick_calibration_frames(
    dataset: Dataset,
    n: int,
    seed: int = 0,
    *,
    safety_slices: Sequence[str] = SAFETY_SLICES,
    judged: Iterable[Dataset] = (),
) -> CalibrationSet:
    """Pick ``n`` frames to calibrate with; where there are fewer, all of them and variants.

    Every combination of light and weather gets the same number as long as it has that many. The
    choice depends on frame ids and ``seed`` only, not on the order of frames.

    Args:
        dataset: A stored version; frames of the roles seed and train are picked.
        n: Number of frames.
        seed: Of the choice.
        safety_slices: ``light=…`` or ``weather=…``; each that occurs among the evaluation frames
            must be among the frames picked.
        judged: Further evaluation sets, besides the frames of ``dataset`` with such roles.

    Raises:
        ParameterError: ``n`` is below one; the dataset is not a stored version or has no frames to
            learn from; frames or drives are also evaluated on; a safety slice is missing.
    """
    if n < 1:
        raise ParameterError(f"cannot calibrate with {n} frames", hint="Use at least one")
    if dataset.ref is None:
        raise ParameterError("calibration frames must come from a stored dataset version")
    frames = [frame for frame in dataset.frames if frame.role in _TRAINING_ROLES]
    if not frames:
        raise ParameterError(
            "no frames with the role seed or train to calibrate with",
            where=dataset.ref,
            hint="Frames for evaluation, or without a role, are never used for calibration",
        )
    if dataset.workspace is not None:
        refuse_held_out(Store(dataset.workspace), frames, "calibration")
    picked = sorted(_spread_evenly(frames, n, seed), key=lambda frame: frame.id)
    evaluated = [frame for frame in dataset.frames if frame.role in _EVALUATION_ROLES]
    for other in judged:
        evaluated += other.frames
    shared = _check_separate(dataset, picked, evaluated)
    required, uncovered = _check_coverage(picked, evaluated, safety_slices)
    method = dataset.split.get("method")
    return CalibrationSet(
        dataset=dataset.ref,
        seed=seed,
        frames=tuple(frame.id for frame in picked),
        slices=dict(sorted(Counter(light_and_weather(frame) for frame in picked).items())),
        drives=len({frame.drive for frame in picked}),
        available=len(frames),
        variants=min(n - len(picked), len(_VARIANTS) * len(picked)),
        required=required,
        uncovered=uncovered,
        evaluated=len(evaluated),
        apart=method if method in ("drive", "time blocks") else "frame",
        shared_drives=shared,
        simulated=dataset.simulated,
    )


def calibration_images(
    workspace: Workspace, dataset: Dataset, calibration: CalibrationSet
) -> Iterator[Pixels]:
    """The picked frames as RGB pixels, one at a time, followed by their variants.

    Raises:
        ParameterError: A frame is not in the dataset, or has a role for evaluation.
    """
    by_id = {frame.id: frame for frame in dataset.frames}
    missing = [name for name in calibration.frames if name not in by_id]
    if missing:
        raise ParameterError(
            f"{len(missing)} calibration frames are not in the dataset", where=dataset.ref
        )
    picked = [by_id[name] for name in calibration.frames]
    wrong = [frame for frame in picked if frame.role not in _TRAINING_ROLES]
    if wrong:
        roles = sorted({str(frame.role or "no role") for frame in wrong})
        raise ParameterError(
            f"{counted(len(wrong), 'frame')} of role {', '.join(roles)} cannot calibrate a model",
            where=wrong[0].id,
            hint="Use seed and train frames only, else evaluation is no longer evidence",
        )
    for frame in picked:
        yield load_frame(workspace, frame)
    for number in range(calibration.variants):
        flipped, gain = _VARIANTS[number // len(picked)]
        pixels = load_frame(workspace, picked[number % len(picked)])
        pixels = pixels[:, ::-1] if flipped else pixels
        yield np.clip(pixels * np.float32(gain), 0, 255).astype(np.uint8)


def comparison_frames(dataset: Dataset, calibration: CalibrationSet, n: int) -> list[Frame]:
    """Up to ``n`` training frames to compare methods on, that were not calibrated with.

    Frames of the calibration itself where there are no others.
    """
    learned = [frame for frame in dataset.frames if frame.role in _TRAINING_ROLES]
    used = set(calibration.frames)
    others = [frame for frame in learned if frame.id not in used]
    return _spread_evenly(others or learned, n, calibration.seed + 1)


@dataclass(frozen=True)
class CalibrationChoice:
    """The calibration method that was chosen.

    Attributes:
        rows: Results of all methods.
        method: The chosen one.
        why: The reason in words.
        calibrated: The model with its ranges, ready to make files from.
    """

    rows: tuple[QuantizationResult, ...]
    method: RangeMethod
    why: str
    calibrated: CalibratedModel


def choose_method(
    fp32: bytes,
    calibrate_with: Sequence[Pixels],
    compare_on: Sequence[Pixels],
    *,
    methods: Sequence[RangeMethod] = RANGE_METHODS,
    threads: int = 2,
    progress: Progress | None = None,
) -> CalibrationChoice:
    """Make the CPU file with each method and choose the one nearest to the float file.

    ``methods[0]`` is kept unless the worst output of another one is 1 dB better.

    Args:
        fp32: The float ONNX file.
        calibrate_with: RGB uint8 frames that ranges are made from.
        compare_on: Other such frames.
        methods: To compare.
        threads: Of each session.
        progress: Called with the methods done and their total.

    Raises:
        ParameterError: No methods, or an unknown one.
    """
    if not methods:
        raise ParameterError("no calibration method to choose from", hint=", ".join(RANGE_METHODS))
    sample = ReferenceSample(fp32, compare_on, threads=threads)
    models: dict[RangeMethod, CalibratedModel] = {}
    rows: list[QuantizationResult] = []
    for done, method in enumerate(methods, start=1):
        models[method] = CalibratedModel(fp32, calibrate_with, method)
        rows.append(_result(method, sample.compare(models[method].file()), sample.frames))
        if progress:
            progress(done, len(methods))
    best, first = max(rows, key=lambda row: row.sqnr_db), rows[0]
    chosen = best if best.sqnr_db >= first.sqnr_db + _MIN_GAIN_DB else first
    if chosen is not first:
        reason = f"at least {_MIN_GAIN_DB:g} dB better than {first.method}"
    else:
        reason = f"none is {_MIN_GAIN_DB:g} dB better" if len(rows) > 1 else "the only one tried"
    results = ", ".join(f"{row.method} {row.sqnr_db:.1f} dB" for row in rows)
    why = f"{chosen.method}: {reason} (worst raw output on {sample.frames} frames: {results})"
    method = methods[rows.index(chosen)]
    return CalibrationChoice(tuple(rows), method, why, models[method])


def compare_observers(
    predictor: TorchPredictor,
    fp32: bytes,
    calibrate_with: Sequence[Pixels],
    compare_on: Sequence[Pixels],
    *,
    threads: int = 2,
) -> tuple[QuantizationResult, ...]:
    """Results of torchao's observers for the accelerator file; recorded, not chosen from."""
    sample = ReferenceSample(fp32, compare_on, threads=threads)
    return tuple(
        _result(
            f"target/{observer}",
            sample.compare(export_int8_target(predictor, calibrate_with, observer=observer)),
            sample.frames,
        )
        for observer in OBSERVERS
    )


def _result(method: str, fidelity: Fidelity, frames: int) -> QuantizationResult:
    agreement = None if fidelity.agreement is None else float(f"{fidelity.agreement:.3g}")
    # A tenth of a dB is more than threads and kernels change, so the record is reproducible.
    least = round(fidelity.least_db, 1)
    return QuantizationResult(method=method, frames=frames, sqnr_db=least, agreement=agreement)


def _check_separate(dataset: Dataset, picked: Sequence[Frame], evaluated: Sequence[Frame]) -> int:
    """Number of drives on both sides; where roles were given by drive there must be none."""
    both = {frame.id for frame in picked} & {frame.id for frame in evaluated}
    if both:
        raise ParameterError(
            f"{len(both)} calibration frames are evaluated on too",
            where=min(both),
            hint="Equal images have equal ids in every dataset: give each one role",
        )
    drives = {frame.drive for frame in picked} & {frame.drive for frame in evaluated}
    if drives and dataset.split.get("method") == "drive":
        raise ParameterError(
            f"{counted(len(drives), 'drive')} used both to calibrate and to evaluate",
            where=min(drives),
            hint="Frames of one drive resemble each other: give each drive one role",
        )
    return len(drives)


def _check_coverage(
    picked: Sequence[Frame], evaluated: Sequence[Frame], safety_slices: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The required safety slices, and the other slices that are only evaluated on."""
    for name in safety_slices:
        check_slice_name(name, _SPREAD_OVER)
    calibrated = {name for frame in picked for name in frame_conditions(frame, _SPREAD_OVER)}
    judged = {name for frame in evaluated for name in frame_conditions(frame, _SPREAD_OVER)}
    required = {name for name in safety_slices if name in judged}
    missing = sorted(required - calibrated)
    if missing:
        raise ParameterError(
            f"no calibration frame of the safety slice {', '.join(missing)}",
            hint="A model calibrated without a condition fails in it: pick more frames, or add "
            "such drives to the training data",
        )
    return tuple(sorted(required)), tuple(sorted(judged - calibrated))


def _spread_evenly(frames: list[Frame], n: int, seed: int) -> list[Frame]:
    """Up to ``n`` frames, one from each combination of light and weather in turn."""
    groups: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: digest.of_json([seed, frame.id])):
        groups.setdefault(light_and_weather(frame), []).append(frame)
    picked: list[Frame] = []
    turn = 0
    while len(picked) < min(n, len(frames)):
        for name in sorted(groups):
            if turn < len(groups[name]):
                picked.append(groups[name][turn])
        turn += 1
    return picked[:n]
