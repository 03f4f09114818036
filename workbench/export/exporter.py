"""Export of a trained detector, one call for each question.

    quantized = quantize(predictor, dataset)    which frames set the ranges, what stays in float?
    comparison = compare(quantized, dataset)    do the files agree with the network?
    latency = measure(comparison.quantized)     how fast are they here?
    targets = check_targets(comparison, matrix) on which chips may they run?
    save(store, comparison, targets)            the bundle

`export` asks them all; the export notebook asks them cell by cell and adds the parity gate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.core.errors import ContractError, ParameterError, WorkbenchError
from workbench.core.text import short_repr
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.bundles import (
    FP32_FILE,
    INT8_CPU_FILE,
    INT8_TARGET_FILE,
    PROGRAM_FILE,
    OperatingPoint,
)
from workbench.detection.config import PYRAMID_FAMILIES
from workbench.detection.model import Model
from workbench.detection.predictor import OnnxPredictor, TorchPredictor
from workbench.detection.preprocessing import (
    Pixels,
    Preprocessing,
    letterbox,
    load_frame,
    preprocess_batch,
)
from workbench.export import bundle, calibration, formats, gate, latency, parity, qat, sensitivity
from workbench.export.bundle import PlannedTarget, Target
from workbench.export.quantization import (
    RANGE_METHODS,
    CalibratedModel,
    RangeMethod,
    export_int8_target,
)
from workbench.records.base import Ref, Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Role
from workbench.records.model_types import CalibrationSet
from workbench.records.store import Store

__all__ = [
    "ExportSettings",
    "check_targets",
    "compare",
    "export",
    "measure",
    "quantize",
    "save",
]

_Evaluate = Callable[[Dataset, OnnxPredictor, str], Any]
"""Maps evaluation frames, a model and its file name to an evaluation, see `gate.judge_files`."""


@short_repr
@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        calibration_frames: Frames that set the INT8 ranges.
        parity_frames: Most evaluation frames to compare the files on.
        target: Also make the INT8 file for accelerators; about 15 s on two cores.
        program: Also make a `torch.export` program.
        openvino: Also make OpenVINO's files, an optional package.
        thorough: Compare calibration methods, measure every layer even where no output needs it,
            and measure cold start and degraded images.
        safety_slices: Slices that must be calibrated with, see `pick_calibration_frames`.
        threshold: Boxes below this score are not compared.
        qat_steps: Steps of quantization-aware training for files that fail the gate; 0 for none.
        seed: Of everything random.
        threads: Of each ONNX Runtime session.
    """

    calibration_frames: int = 64
    parity_frames: int = 100
    target: bool = True
    program: bool = True
    openvino: bool = False
    thorough: bool = False
    safety_slices: Sequence[str] = calibration.SAFETY_SLICES
    threshold: float = CONFIDENCE_THRESHOLD
    qat_steps: int = 0
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Quantized:
    """A network with its exported files.

    Attributes:
        predictor: The trained network.
        files: Content of the exported files by name.
        calibration: The calibration frames, the methods compared and the choice.
        method: The chosen calibration method.
        images: The calibration frames at network size.
        held_out: Training frames at network size that were not calibrated with.
        kept_float: Layers that stay in float in the INT8 files.
        sensitivity: Per-layer sensitivity, where it was measured.
    """

    predictor: TorchPredictor
    files: dict[str, bytes]
    calibration: CalibrationSet
    method: RangeMethod
    images: list[Pixels]
    held_out: list[Pixels]
    kept_float: tuple[sensitivity.Layer, ...] = ()
    sensitivity: sensitivity.Sensitivity | None = None

    def load(self, threads: int = 2) -> dict[str, OnnxPredictor]:
        """The ONNX files, loaded, by name."""
        return {
            name: OnnxPredictor(content, threads=threads)
            for name, content in self.files.items()
            if name.endswith(".onnx")
        }

    def sizes(self) -> dict[str, int]:
        """Bytes by file name."""
        return {name: len(content) for name, content in self.files.items()}


@dataclass(frozen=True)
class Comparison:
    """How far the files are from the network.

    Attributes:
        quantized: The compared files; trained for INT8 if they failed the gate.
        report: The parity report, which the bundle records.
        gates: The parity gate of each INT8 file; empty without evaluation.
    """

    quantized: Quantized
    report: Json
    gates: tuple[gate.ParityGate, ...] = ()


def export(
    model: Model,
    dataset: Dataset,
    settings: ExportSettings | None = None,
    *,
    matrix: Sequence[PlannedTarget] = (),
    progress: Progress | None = None,
) -> Model:
    """Export a trained model and save the bundle in its workspace.

    The parity gate needs an evaluation and is part of ``notebooks/steps/export.ipynb``.

    Args:
        model: A checkpoint.
        dataset: Calibrated on its seed and train frames, compared on its val and safety frames.
        settings: Of the export.
        matrix: Targets to assess, see `bundle.load_target_matrix`.
        progress: Called with the compared frames and their total.

    Returns:
        The bundle.

    Raises:
        ParameterError: The dataset lacks frames to calibrate with or to compare on.
        ContractError: The network cannot be exported, or the float file differs from it.
    """
    settings = settings or ExportSettings()
    quantized = quantize(model.torch_predictor, dataset, settings)
    comparison = compare(quantized, dataset, settings, progress=progress)
    targets = check_targets(comparison, matrix)
    timing = measure(comparison.quantized, settings)
    ref = save(Store(model.workspace), comparison, targets, latency=timing)
    return Model(model.workspace, ref)


def quantize(
    predictor: TorchPredictor,
    dataset: Dataset,
    settings: ExportSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Quantized:
    """Pick calibration frames, choose the method, and make all files.

    Where a raw output loses too much on frames that were not calibrated with, every layer is
    measured and the most sensitive ones stay in float. With ``settings.thorough`` every layer is
    measured anyway, and methods are compared.

    Args:
        predictor: The trained network.
        dataset: Frames of the roles seed and train are calibrated with.
        settings: Of the export.
        progress: Called with the measured layers and their total.

    Raises:
        ParameterError: No frames to calibrate with, or a safety slice is missing.
        ContractError: The network cannot be exported.
    """
    settings = settings or ExportSettings()
    workspace, spec = _workspace_of(dataset), predictor.preprocessing
    picked = calibration.pick_calibration_frames(
        dataset, settings.calibration_frames, settings.seed, safety_slices=settings.safety_slices
    )
    images = fit_images(calibration.calibration_images(workspace, dataset, picked), spec)
    held_out = held_out_images(dataset, picked, 24 if settings.thorough else 8, spec)
    fp32 = formats.export_fp32(predictor)
    choice = calibration.choose_method(
        fp32,
        images,
        held_out,
        methods=_range_methods(predictor, compare=settings.thorough),
        threads=settings.threads,
    )
    layers, rows = None, choice.rows
    sample = parity.ReferenceSample(fp32, held_out, threads=settings.threads)

    def least_db(in_float: Sequence[sensitivity.Layer]) -> float:
        nodes = [layer.node for layer in in_float]
        return sample.compare(choice.calibrated.file(keep_float=nodes)).least_db

    kept_float = sensitivity.always_float(predictor, fp32)
    if settings.thorough or least_db(kept_float) < sensitivity.AIM_DB:
        layers = sensitivity.measure_sensitivity(
            predictor,
            fp32,
            choice.calibrated,
            held_out,
            threads=settings.threads,
            progress=progress,
        )
        kept_float = sensitivity.layers_to_keep_float(layers, least_db, kept=kept_float)
    if settings.thorough and settings.target:
        rows += calibration.compare_observers(
            predictor, fp32, images, held_out, threads=settings.threads
        )
    files = {FP32_FILE: fp32} | _int8_files(
        predictor, choice.calibrated, images, settings, kept_float
    )
    if settings.program:
        files[PROGRAM_FILE] = formats.export_program(predictor)
    recorded = {"methods": rows, "chosen": choice.method, "why": choice.why}
    return Quantized(
        predictor,
        files,
        picked.model_copy(update=recorded),
        choice.method,
        images,
        held_out,
        kept_float,
        layers,
    )


def compare(
    quantized: Quantized,
    dataset: Dataset,
    settings: ExportSettings | None = None,
    *,
    evaluate: _Evaluate | None = None,
    difference: gate.PairedDifference | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the files with the network on evaluation frames, and apply the parity gate.

    INT8 files that fail the gate are trained for INT8 with ``settings.qat_steps``, and compared
    again. Without ``evaluate`` there is no gate.

    Args:
        quantized: The files.
        dataset: Frames of the roles val and safety are compared on.
        settings: Of the export.
        evaluate: Evaluates a model on these frames.
        difference: Paired difference of two evaluations, see `gate.judge_files`.
        progress: Called with the frames, and the steps of training, done and their total.

    Raises:
        ParameterError: The dataset has no evaluation frames.
        ContractError: A file's outputs are not finite.
    """
    settings = settings or ExportSettings()
    frames = evaluation_frames(dataset, settings.parity_frames)

    def run(files: Quantized) -> tuple[Json, tuple[gate.ParityGate, ...]]:
        loaded = files.load(settings.threads)
        report = parity.compare_models(
            _workspace_of(dataset),
            files.predictor,
            loaded,
            frames.frames,
            score=settings.threshold,
            progress=progress,
        )
        if evaluate is None or difference is None:
            return report, ()
        evaluations = {name: evaluate(frames, model, name) for name, model in loaded.items()}
        return report, gate.judge_files(evaluations, difference, report)

    report, gates = run(quantized)
    failed = [result.file for result in gates if result.verdict is Verdict.FAIL]
    if failed and settings.qat_steps:
        quantized = _train_for_int8(quantized, settings, progress)
        report, gates = run(quantized)
    if gates:
        report["gate"] = {result.file: result.model_dump(mode="json") for result in gates}
        report["trained_for_int8"] = {
            "steps": settings.qat_steps if failed else 0,
            "because_of": failed,
        }
    return Comparison(quantized, report, gates)


def measure(quantized: Quantized, settings: ExportSettings | None = None) -> Json:
    """Latency of the float and the INT8 file on this machine, see `latency.measure_latency`.

    With ``settings.thorough`` also cold start, memory, and degraded images.
    """
    settings = settings or ExportSettings()
    files = {name: quantized.files[name] for name in (FP32_FILE, INT8_CPU_FILE)}
    timing = latency.measure_latency(files, threads=settings.threads)
    timing["single_thread"] = latency.measure_latency(files, threads=1, runs=20)["models"]
    if settings.thorough:
        timing["starts"] = latency.measure_cold_start(files, threads=settings.threads)
        timing["degraded"] = latency.measure_degraded(
            files[FP32_FILE],
            files[INT8_CPU_FILE],
            quantized.held_out[:16],
            threads=settings.threads,
        )
    return timing


def check_targets(comparison: Comparison, matrix: Sequence[PlannedTarget]) -> tuple[Target, ...]:
    """The state of each file on each target of the matrix.

    The program and OpenVINO's files are run here on a few frames; the ONNX files were run by
    `compare`.

    Args:
        comparison: The compared files.
        matrix: Targets to assess.

    Raises:
        ContractError: The float file, the program or OpenVINO's files compute something else than
            the network, or decoding was quantized.
    """
    parity.require_float_parity(comparison.report, FP32_FILE)
    quantized = comparison.quantized
    files, predictor = quantized.files, quantized.predictor
    ran = {
        f"onnxruntime {name}": "compared with the network on evaluation frames in ONNX Runtime "
        "on this CPU"
        for name in (FP32_FILE, INT8_CPU_FILE)
    }
    if predictor.config.architecture in PYRAMID_FAMILIES:
        for name in (INT8_CPU_FILE, INT8_TARGET_FILE):
            if name in files and (findings := bundle.lint_decoding(files[name])):
                raise ContractError(f"decoding is quantized: {findings[0]}", where=name)
    batch, _ = preprocess_batch(quantized.images[:4], predictor.preprocessing)
    if PROGRAM_FILE in files:
        result = formats.verify_program(files[PROGRAM_FILE], predictor, batch)
        ran[f"torch.export {PROGRAM_FILE}"] = result
    if formats.OPENVINO_XML in files:
        result = formats.verify_openvino(files, files[INT8_CPU_FILE], batch)
        ran[f"openvino {formats.OPENVINO_XML}"] = result
    return bundle.assess_targets(matrix, files, ran)


def save(
    store: Store,
    comparison: Comparison,
    targets: Sequence[Target] = (),
    *,
    operating_point: OperatingPoint | None = None,
    latency: Json | None = None,
) -> Ref:
    """Save the bundle as an `ExportBundle` record.

    Args:
        store: Where to save it.
        comparison: Files and parity report.
        targets: State of each file on each target.
        operating_point: Threshold that users of the bundle act at; 0.3 without one.
        latency: Kept beside the record, outside its digest.

    Raises:
        WorkbenchError: The network is not a saved checkpoint.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        write(folder, comparison, targets, operating_point)
        return bundle.save_bundle(store, folder, latency=latency)


def write(
    folder: Path,
    comparison: Comparison,
    targets: Sequence[Target] = (),
    operating_point: OperatingPoint | None = None,
) -> Json:
    """Write the bundle's folder, see `bundle.write_bundle`; returns the manifest."""
    quantized = comparison.quantized
    predictor, layers = quantized.predictor, quantized.sensitivity
    if predictor.ref is None:
        raise WorkbenchError(
            "only a saved checkpoint can be bundled",
            hint="Load it with workbench.detection.predictor.load_checkpoint",
        )
    return bundle.write_bundle(
        folder,
        checkpoint=predictor.ref,
        config=predictor.config,
        preprocessing=predictor.preprocessing,
        models=quantized.files,
        calibration=quantized.calibration,
        parity=comparison.report,
        targets=targets,
        sensitivity=layers.as_json() if layers else None,
        supplier=predictor.supplier,
        operating_point=operating_point,
    )


def evaluation_frames(dataset: Dataset, limit: int) -> Dataset:
    """At most ``limit`` evenly spaced frames of the roles val and safety.

    Blind frames are never used: they stay unseen until an audit.

    Raises:
        ParameterError: There are none.
    """
    frames = dataset.role(Role.VAL, Role.SAFETY).frames
    if not frames:
        raise ParameterError(
            "no frames with the role val or safety to compare the files on", where=dataset.ref
        )
    chosen = {frame.id for frame in parity.evenly_spaced(frames, limit)}
    return dataset.where(lambda frame: frame.id in chosen)


def held_out_images(
    dataset: Dataset, picked: CalibrationSet, n: int, spec: Preprocessing
) -> list[Pixels]:
    """Training frames at network size that were not calibrated with, to compare methods on."""
    workspace = _workspace_of(dataset)
    frames = calibration.comparison_frames(dataset, picked, n)
    return fit_images((load_frame(workspace, frame) for frame in frames), spec)


def fit_images(images: Iterable[Pixels], spec: Preprocessing) -> list[Pixels]:
    """Frames at network size, still 8-bit: many fit into memory, and no result changes."""
    return [letterbox(image, spec)[0] for image in images]


def _range_methods(predictor: TorchPredictor, *, compare: bool) -> tuple[RangeMethod, ...]:
    """The method that the network names or the usual one; to compare, the others after it."""
    usual: RangeMethod = getattr(predictor.detector, "range_method", RANGE_METHODS[0])
    return (usual, *(one for one in RANGE_METHODS if one != usual)) if compare else (usual,)


def _int8_files(
    predictor: TorchPredictor,
    calibrated: CalibratedModel,
    images: Sequence[Pixels],
    settings: ExportSettings,
    kept_float: Sequence[sensitivity.Layer] = (),
) -> dict[str, bytes]:
    content = calibrated.file(keep_float=[layer.node for layer in kept_float])
    files = {INT8_CPU_FILE: formats.add_golden_answers(content, threads=settings.threads)}
    if settings.target:
        modules = [layer.module for layer in kept_float]
        files[INT8_TARGET_FILE] = export_int8_target(predictor, images, keep_float=modules)
    if settings.openvino:
        files |= formats.convert_openvino(files[INT8_CPU_FILE])
    return files


def _train_for_int8(
    quantized: Quantized, settings: ExportSettings, progress: Progress | None
) -> Quantized:
    """The INT8 files again, from a network trained for INT8; the float file stays as it is."""
    student = qat.distill(
        quantized.predictor,
        quantized.images,
        steps=settings.qat_steps,
        seed=settings.seed,
        progress=progress,
    )
    calibrated = CalibratedModel(formats.export_fp32(student), quantized.images, quantized.method)
    files = _int8_files(student, calibrated, quantized.images, settings, quantized.kept_float)
    return replace(quantized, files=quantized.files | files)


def _workspace_of(dataset: Dataset) -> Workspace:
    if dataset.workspace is None:
        raise ParameterError(
            "the dataset is in no workspace",
            where=dataset.name,
            hint="Load it with workbench.open().dataset(NAME)",
        )
    return dataset.workspace
