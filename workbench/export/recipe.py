"""The whole export in one call; the export notebook does the same, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError, WorkbenchError
from workbench.export import bundle, calibration, latency, parity
from workbench.export.onnx_file import export_fp32
from workbench.export.quantise import int8_cpu
from workbench.export.target_file import int8_target
from workbench.export.targets import Target, lint_symmetric
from workbench.perception.predictor import OnnxPredictor, TorchPredictor
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role
from workbench.records.types import CalibrationSet
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]
JUDGED_ON = (Role.VAL, Role.SAFETY)


@dataclass(frozen=True)
class ExportConfig:
    """How to export.

    Args:
        calibration_frames: How many frames set the 8-bit ranges.
        seed: Of their choice.
        target: Also make the symmetric file for accelerators; about 15 s on two cores.
        parity_frames: Most evaluation frames to compare the files on.
        score: Boxes below are not compared.
    """

    calibration_frames: int = 128
    seed: int = 0
    target: bool = True
    parity_frames: int = 100
    score: float = parity.SCORE


@dataclass(frozen=True)
class Exported:
    """The models by file name, and all that was found out about them."""

    models: dict[str, bytes]
    targets: tuple[Target, ...]
    calibration: CalibrationSet
    parity: dict[str, Any]
    latency: dict[str, Any]


def export(
    place: Workspace,
    predictor: TorchPredictor,
    dataset: Dataset,
    config: ExportConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Exported:
    """Export, quantise, compare and time a trained detector.

    Args:
        predictor: The trained network.
        dataset: Calibrated on its seed and train frames, compared on its val and safety frames.
        progress: Called for the frames of the comparison.

    Raises:
        ParameterError: The dataset lacks frames to calibrate with or to compare on.
        ContractError: The float file does not compute what the network does.
    """
    config = config or ExportConfig()
    picked = calibration.pick(dataset, config.calibration_frames, config.seed)
    models = quantised(place, predictor, dataset, picked, target=config.target)
    report = parity.compare(
        place,
        predictor,
        {name: OnnxPredictor(content) for name, content in models.items()},
        frames_to_compare(dataset),
        limit=config.parity_frames,
        score=config.score,
        progress=progress,
    )
    parity.require_float_parity(report, bundle.FP32)
    timed = {name: models[name] for name in (bundle.FP32, bundle.INT8_CPU)}
    return Exported(models, targets_of(models), picked, report, latency.measure(timed))


def quantised(
    place: Workspace,
    predictor: TorchPredictor,
    dataset: Dataset,
    picked: CalibrationSet,
    *,
    target: bool = True,
) -> dict[str, bytes]:
    """The float file and its 8-bit forms, by file name."""
    fp32 = export_fp32(predictor)
    models = {
        bundle.FP32: fp32,
        bundle.INT8_CPU: int8_cpu(fp32, calibration.images(place, dataset, picked)),
    }
    if target:
        pixels = calibration.images(place, dataset, picked)
        models[bundle.INT8_TARGET] = int8_target(predictor, pixels)
    return models


def targets_of(models: dict[str, bytes]) -> tuple[Target, ...]:
    """What may be said about each file once it was compared here."""
    here = "compared with the network on evaluation frames in ONNX Runtime on this CPU"
    known = [
        Target(file=bundle.FP32, machine="onnxruntime-cpu", status="verified", why=here),
        Target(file=bundle.INT8_CPU, machine="onnxruntime-cpu", status="verified", why=here),
    ]
    if bundle.INT8_TARGET in models:
        findings = lint_symmetric(models[bundle.INT8_TARGET])
        known.append(
            Target(
                file=bundle.INT8_TARGET,
                machine="tensorrt",
                status="untested" if findings else "linted",
                why="; ".join(findings[:5])
                or "keeps the rules for explicit Q/DQ networks; never built or run on a device",
            )
        )
    return tuple(known)


def frames_to_compare(dataset: Dataset) -> list[Frame]:
    """Frames that models are judged on; the blind ones stay unseen until an audit."""
    frames = list(dataset.with_roles(*JUDGED_ON).frames)
    if not frames:
        raise ParameterError(
            "no frames with the role val or safety to compare the files on", where=dataset.ref
        )
    return frames


def write(folder: Path, predictor: TorchPredictor, exported: Exported) -> dict[str, Any]:
    """Write the bundle folder of an export, see `bundle.write_bundle`."""
    checkpoint: Ref | None = predictor.ref
    if checkpoint is None:
        raise WorkbenchError(
            "only a checkpoint that is on record can be bundled",
            hint="Load it with workbench.perception.predictor.load_checkpoint",
        )
    return bundle.write_bundle(
        folder,
        checkpoint=checkpoint,
        config=predictor.config,
        preprocessing=predictor.preprocessing,
        models=exported.models,
        calibration=exported.calibration,
        parity=exported.parity,
        targets=exported.targets,
    )
