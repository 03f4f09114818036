"""The whole export in one call; the export notebook does the same, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.errors import ContractError, ParameterError, WorkbenchError
from workbench.export import bundle, calibration, latency, methods, parity
from workbench.export import openvino as intel
from workbench.export.matrix import Planned, assess
from workbench.export.onnx_file import export_fp32
from workbench.export.pairing import paired
from workbench.export.program import export_program, load_program
from workbench.export.quantise import Calibrated, Method
from workbench.export.sensitivity import Layer
from workbench.export.target_file import int8_target
from workbench.export.targets import Target, lint_decoding
from workbench.perception.contract import COMPACT
from workbench.perception.predictor import OnnxPredictor, TorchPredictor
from workbench.perception.preprocessing import Pixels, Preprocessing, fit, load_rgb, prepare_batch
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
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
        methods: Of calibration, to choose from; the first is kept unless another is better.
        compare_frames: Frames, learned from but not calibrated with, that the choice is made on.
        matrix: Targets to say something about, see `matrix.load`.
    """

    calibration_frames: int = 128
    seed: int = 0
    target: bool = True
    parity_frames: int = 100
    score: float = parity.SCORE
    methods: tuple[Method, ...] = ("minmax",)
    compare_frames: int = 16
    matrix: tuple[Planned, ...] = ()


@dataclass(frozen=True)
class Exported:
    """The models by file name, and all that was found out about them."""

    models: dict[str, bytes]
    targets: tuple[Target, ...]
    calibration: CalibrationSet
    parity: dict[str, Any]
    latency: dict[str, Any]
    sensitivity: dict[str, Any] | None = None


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
    pixels = fitted(calibration.images(place, dataset, picked), predictor.preprocessing)
    fp32 = export_fp32(predictor)
    fresh = unseen(place, dataset, picked, config.compare_frames, predictor.preprocessing)
    chosen = methods.choose(fp32, pixels, fresh, methods=config.methods)
    models = files(predictor, chosen.calibrated, fp32, pixels, target=config.target)
    report = parity.compare(
        place,
        predictor,
        runnable(models),
        frames_to_compare(dataset),
        limit=config.parity_frames,
        score=config.score,
        progress=progress,
    )
    parity.require_float_parity(report, bundle.FP32)
    timed = {name: models[name] for name in (bundle.FP32, bundle.INT8_CPU)}
    known = targets_of(models, predictor, pixels, config.matrix)
    return Exported(models, known, chosen.noted(picked), report, latency.measure(timed))


def unseen(
    place: Workspace, dataset: Dataset, picked: CalibrationSet, n: int, spec: Preprocessing
) -> list[Pixels]:
    """Frames to compare methods and layers on, see `calibration.unseen`."""
    frames = calibration.unseen(dataset, picked, n)
    return fitted((load_rgb(media_path(place, frame)) for frame in frames), spec)


def quantised(
    place: Workspace,
    predictor: TorchPredictor,
    dataset: Dataset,
    picked: CalibrationSet,
    *,
    target: bool = True,
    method: Method = "minmax",
) -> dict[str, bytes]:
    """The float file and its 8-bit forms, by file name."""
    pixels = fitted(calibration.images(place, dataset, picked), predictor.preprocessing)
    fp32 = export_fp32(predictor)
    return files(predictor, Calibrated(fp32, pixels, method), fp32, pixels, target=target)


def files(
    predictor: TorchPredictor,
    calibrated: Calibrated,
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
    made = {bundle.FP32: fp32, bundle.INT8_CPU: int8}
    if target:
        kept = [layer.module for layer in keep_float]
        made[bundle.INT8_TARGET] = int8_target(predictor, pixels, keep_float=kept)
    if program:
        made[bundle.PROGRAM] = export_program(predictor)
    return made | (intel.convert(int8) if openvino else {})


def taught(
    predictor: TorchPredictor,
    pixels: Sequence[Pixels],
    method: Method,
    models: Mapping[str, bytes],
) -> dict[str, bytes]:
    """The 8-bit files again, from a network that learned to live with rounding.

    Args:
        predictor: Of `learning.distil`.
        models: The files so far: those of them that are 8-bit are made again, all in 8 bits.
    """
    fp32 = export_fp32(predictor)
    calibrated = Calibrated(fp32, pixels, method)
    made = files(
        predictor,
        calibrated,
        fp32,
        pixels,
        target=bundle.INT8_TARGET in models,
        openvino=intel.XML in models,
    )
    del made[bundle.FP32]  # the float file stays the network that was trained
    return made


def fitted(images: Iterable[Pixels], spec: Preprocessing) -> list[Pixels]:
    """Frames in the network's size, still 8-bit: many fit into memory, and nothing else changes."""
    return [fit(image, spec)[0] for image in images]


def runnable(models: Mapping[str, bytes], threads: int = 2) -> dict[str, OnnxPredictor]:
    """Those of the files that ONNX Runtime runs, loaded."""
    return {
        name: OnnxPredictor(content, threads=threads)
        for name, content in models.items()
        if name.endswith(".onnx")
    }


def targets_of(
    models: Mapping[str, bytes],
    predictor: TorchPredictor,
    pixels: Sequence[Pixels],
    matrix: Sequence[Planned],
) -> tuple[Target, ...]:
    """What may be said about each file and target, once the ONNX files were compared here.

    The program and OpenVINO's files are run now, on a few frames.

    Raises:
        ContractError: One of them computes something else.
    """
    here = "compared with the network on evaluation frames in ONNX Runtime on this CPU"
    ran = {f"onnxruntime {name}": here for name in (bundle.FP32, bundle.INT8_CPU)}
    batch, _ = prepare_batch(list(pixels[:4]), predictor.preprocessing)
    for name in (bundle.INT8_CPU, bundle.INT8_TARGET):
        found = lint_decoding(models[name]) if name in models else []
        if found and predictor.config.architecture == COMPACT:
            raise ContractError(f"decoding is quantised: {found[0]}", where=name)
    if bundle.PROGRAM in models:
        ran[f"torch.export {bundle.PROGRAM}"] = _ran_program(models, predictor, batch)
    if intel.XML in models:
        files = {name: models[name] for name in (intel.XML, intel.BIN)}
        ran[f"openvino {intel.XML}"] = intel.verify(files, models[bundle.INT8_CPU], batch)
    return assess(matrix, models, ran)


def _ran_program(
    models: Mapping[str, bytes], predictor: TorchPredictor, batch: NDArray[np.float32]
) -> str:
    content = models[bundle.PROGRAM]
    found = load_program(content, sha256=digest.of_bytes(content)).raw(batch)
    pairs = zip(*paired(predictor.raw(batch), found, predictor.config), strict=True)
    apart = max(float(np.abs(one - other).max()) for one, other in pairs)
    if not apart <= parity.FLOAT_TOLERANCE:
        raise ContractError(f"exported program is up to {apart:g} off the network")
    return f"run here in torch on {len(batch)} frames, within {parity.FLOAT_TOLERANCE:g}"


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
        sensitivity=exported.sensitivity,
        supplier=predictor.supplier,
    )
