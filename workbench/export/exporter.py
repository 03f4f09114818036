"""Export of a trained detector, step by step: quantize, compare, check, write the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import ContractError, ParameterError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.detection import bundles
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.config import COMPACT
from workbench.detection.predictor import OnnxPredictor, TorchPredictor
from workbench.detection.preprocessing import (
    Pixels,
    Preprocessing,
    letterbox,
    load_rgb,
    preprocess_batch,
)
from workbench.export import bundle, calibration, formats, latency, parity
from workbench.export.bundle import PlannedTarget, Target, assess_targets, lint_decoding
from workbench.export.formats import export_fp32, export_program, load_program
from workbench.export.parity import match_outputs
from workbench.export.quantization import CalibratedModel, RangeMethod, export_int8_target
from workbench.export.sensitivity import Layer
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame, Role
from workbench.records.model_types import CalibrationSet

ProgressCallback = Callable[[int, int], None]
COMPARED_ROLES = (Role.VAL, Role.SAFETY)


@dataclass(frozen=True)
class ExportConfig:
    """How to export.

    Args:
        calibration_frames: How many frames set the 8-bit ranges.
        seed: Of their choice.
        target: Also make the symmetric file for accelerators; about 15 s on two cores.
        parity_frames: Most evaluation frames to compare the files on.
        score: Boxes below are not compared.
        methods: Of calibration, to choose from; the first is kept unless another is better.
        compare_frames: Frames, learned from but not calibrated with, that the choice is made on.
        matrix: Targets to say something about, see `matrix.load`.
    """

    calibration_frames: int = 128
    seed: int = 0
    target: bool = True
    parity_frames: int = 100
    score: float = CONFIDENCE_THRESHOLD
    methods: tuple[RangeMethod, ...] = ("minmax",)
    compare_frames: int = 16
    matrix: tuple[PlannedTarget, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """The models by file name, and all that was found out about them."""

    models: dict[str, bytes]
    targets: tuple[Target, ...]
    calibration: CalibrationSet
    parity: dict[str, Any]
    latency: dict[str, Any]
    sensitivity: dict[str, Any] | None = None


def export_model(
    place: Workspace,
    predictor: TorchPredictor,
    dataset: Dataset,
    config: ExportConfig | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> ExportResult:
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
    picked = calibration.pick_calibration_frames(dataset, config.calibration_frames, config.seed)
    pixels = fit_images(
        calibration.calibration_images(place, dataset, picked), predictor.preprocessing
    )
    fp32 = export_fp32(predictor)
    fresh = unseen_images(place, dataset, picked, config.compare_frames, predictor.preprocessing)
    chosen = calibration.choose_method(fp32, pixels, fresh, methods=config.methods)
    models = make_files(predictor, chosen.calibrated, fp32, pixels, target=config.target)
    report = parity.compare_models(
        place,
        predictor,
        load_onnx_files(models),
        frames_to_compare(dataset),
        limit=config.parity_frames,
        score=config.score,
        progress=progress,
    )
    parity.require_float_parity(report, bundles.FP32_FILE)
    timed = {name: models[name] for name in (bundles.FP32_FILE, bundles.INT8_CPU_FILE)}
    known = check_targets(models, predictor, pixels, config.matrix)
    return ExportResult(models, known, chosen.noted(picked), report, latency.measure_latency(timed))


def unseen_images(
    place: Workspace, dataset: Dataset, picked: CalibrationSet, n: int, spec: Preprocessing
) -> list[Pixels]:
    """Frames to compare methods and layers on, see `calibration.unseen`."""
    frames = calibration.unseen_frames(dataset, picked, n)
    return fit_images((load_rgb(media_path(place, frame)) for frame in frames), spec)


def quantize_model(
    place: Workspace,
    predictor: TorchPredictor,
    dataset: Dataset,
    picked: CalibrationSet,
    *,
    target: bool = True,
    method: RangeMethod = "minmax",
) -> dict[str, bytes]:
    """The float file and its 8-bit forms, by file name."""
    pixels = fit_images(
        calibration.calibration_images(place, dataset, picked), predictor.preprocessing
    )
    fp32 = export_fp32(predictor)
    return make_files(predictor, CalibratedModel(fp32, pixels, method), fp32, pixels, target=target)


def make_files(
    predictor: TorchPredictor,
    calibrated: CalibratedModel,
    fp32: bytes,
    pixels: Sequence[Pixels],
    *,
    keep_float: Sequence[Layer] = (),
    target: bool = True,
    program: bool = False,
    openvino: bool = False,
) -> dict[str, bytes]:
    """All files of a bundle that are run, by name.

    Args:
        calibrated: Of ``fp32``.
        pixels: What the file for accelerators is calibrated with, see `fitted`.
        keep_float: Layers that stay in float in every 8-bit file.
        program: Also a `torch.export` program.
        openvino: Also OpenVINO's files, an extra.
    """
    int8 = calibrated.file(keep_float=[layer.node for layer in keep_float])
    made = {bundles.FP32_FILE: fp32, bundles.INT8_CPU_FILE: int8}
    if target:
        kept = [layer.module for layer in keep_float]
        made[bundles.INT8_TARGET_FILE] = export_int8_target(predictor, pixels, keep_float=kept)
    if program:
        made[bundles.PROGRAM_FILE] = export_program(predictor)
    return made | (formats.convert_openvino(int8) if openvino else {})


def distilled_files(
    predictor: TorchPredictor,
    pixels: Sequence[Pixels],
    method: RangeMethod,
    models: Mapping[str, bytes],
) -> dict[str, bytes]:
    """The 8-bit files again, from a network that learned to live with rounding.

    Args:
        predictor: Of `learning.distil`.
        models: The files so far: those of them that are 8-bit are made again, all in 8 bits.
    """
    fp32 = export_fp32(predictor)
    calibrated = CalibratedModel(fp32, pixels, method)
    made = make_files(
        predictor,
        calibrated,
        fp32,
        pixels,
        target=bundles.INT8_TARGET_FILE in models,
        openvino=formats.OPENVINO_XML in models,
    )
    del made[bundles.FP32_FILE]  # the float file stays the network that was trained
    return made


def fit_images(images: Iterable[Pixels], spec: Preprocessing) -> list[Pixels]:
    """Frames in the network's size, still 8-bit: many fit into memory, and nothing else changes."""
    return [letterbox(image, spec)[0] for image in images]


def load_onnx_files(models: Mapping[str, bytes], threads: int = 2) -> dict[str, OnnxPredictor]:
    """Those of the files that ONNX Runtime runs, loaded."""
    return {
        name: OnnxPredictor(content, threads=threads)
        for name, content in models.items()
        if name.endswith(".onnx")
    }


def check_targets(
    models: Mapping[str, bytes],
    predictor: TorchPredictor,
    pixels: Sequence[Pixels],
    matrix: Sequence[PlannedTarget],
) -> tuple[Target, ...]:
    """What may be said about each file and target, once the ONNX files were compared here.

    The program and OpenVINO's files are run now, on a few frames.

    Raises:
        ContractError: One of them computes something else.
    """
    here = "compared with the network on evaluation frames in ONNX Runtime on this CPU"
    ran = {f"onnxruntime {name}": here for name in (bundles.FP32_FILE, bundles.INT8_CPU_FILE)}
    batch, _ = preprocess_batch(list(pixels[:4]), predictor.preprocessing)
    for name in (bundles.INT8_CPU_FILE, bundles.INT8_TARGET_FILE):
        found = lint_decoding(models[name]) if name in models else []
        if found and predictor.config.architecture == COMPACT:
            raise ContractError(f"decoding is quantised: {found[0]}", where=name)
    if bundles.PROGRAM_FILE in models:
        ran[f"torch.export {bundles.PROGRAM_FILE}"] = _ran_program(models, predictor, batch)
    if formats.OPENVINO_XML in models:
        files = {name: models[name] for name in (formats.OPENVINO_XML, formats.OPENVINO_BIN)}
        ran[f"openvino {formats.OPENVINO_XML}"] = formats.verify_openvino(
            files, models[bundles.INT8_CPU_FILE], batch
        )
    return assess_targets(matrix, models, ran)


def _ran_program(
    models: Mapping[str, bytes], predictor: TorchPredictor, batch: NDArray[np.float32]
) -> str:
    content = models[bundles.PROGRAM_FILE]
    found = load_program(content, sha256=digest.of_bytes(content)).raw(batch)
    pairs = zip(*match_outputs(predictor.raw(batch), found, predictor.config), strict=True)
    apart = max(float(np.abs(one - other).max()) for one, other in pairs)
    if not apart <= parity.FLOAT_TOLERANCE:
        raise ContractError(f"exported program is up to {apart:g} off the network")
    return f"run here in torch on {len(batch)} frames, within {parity.FLOAT_TOLERANCE:g}"


def frames_to_compare(dataset: Dataset) -> list[Frame]:
    """Frames that models are judged on; the blind ones stay unseen until an audit."""
    frames = list(dataset.role(*COMPARED_ROLES).frames)
    if not frames:
        raise ParameterError(
            "no frames with the role val or safety to compare the files on", where=dataset.ref
        )
    return frames


def write_export(folder: Path, predictor: TorchPredictor, exported: ExportResult) -> dict[str, Any]:
    """Write the bundle folder of an export, see `bundle.write_bundle`."""
    checkpoint: Ref | None = predictor.ref
    if checkpoint is None:
        raise WorkbenchError(
            "only a checkpoint that is on record can be bundled",
            hint="Load it with workbench.detection.predictor.load_checkpoint",
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
        sensitivity=exported.sensitivity,
        supplier=predictor.supplier,
    )
