"""The classic faults of exported models, each planted and each detected."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.export.conftest import SETTINGS, make_predictor
from workbench.core.errors import ContractError, ParameterError, VerificationError
from workbench.core.workspace import Workspace
from workbench.detection import predictor as predictors
from workbench.detection.bundles import FP32_FILE, INT8_CPU_FILE
from workbench.detection.predictor import ANSWERS_KEY, OnnxPredictor, TorchPredictor
from workbench.detection.preprocessing import Pixels, load_rgb, preprocess_batch, require_input
from workbench.export import calibration, exporter, formats, gate, latency
from workbench.export.bundle import lint_decoding
from workbench.export.exporter import Quantized
from workbench.export.formats import export_program, verify_program
from workbench.export.parity import ReferenceSample
from workbench.export.quantization import CalibratedModel
from workbench.records.base import Verdict
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Light, Role

Models = dict[str, bytes]


@pytest.fixture(scope="module")
def pixels(kept: Workspace, dataset: Dataset) -> list[Pixels]:
    return [load_rgb(media_path(kept, frame)) for frame in dataset.frames[:12]]


@dataclass(frozen=True)
class Interval:
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    estimate: Interval
    usable: bool = True
    method: str = "planted"


@dataclass(frozen=True)
class EvaluatedSlice:
    slice: str
    cls: str
    boxes: int


SLICES = (
    EvaluatedSlice("all", "all", 900),
    EvaluatedSlice("light=night", "all", 300),
    EvaluatedSlice("all", "bus", 20),
)
NOTHING = Difference(Interval(0.0, -0.001, 0.001))


def judged(losses: dict, *, shift: float = 0.01, head_db: float = 40.0) -> gate.ParityGate:
    def loss(metric: str, part: str, cls: str) -> Difference:
        return losses.get((metric, part, cls), NOTHING)

    parity = {"score_shift_p95": shift, "sqnr_db": head_db}
    return gate.judge_file(INT8_CPU_FILE, SLICES, loss, parity)


def test_calibration_from_one_slice_is_refused(dataset: Dataset) -> None:
    by_day = replace(
        dataset,
        frames=tuple(
            frame
            for frame in dataset.frames
            if frame.role is not Role.TRAIN or frame.conditions.light is Light.DAY
        ),
    )
    with pytest.raises(ParameterError, match="safety slice light=night"):
        calibration.pick_calibration_frames(by_day, 12)
    with pytest.raises(ParameterError, match="safety slice weather=fog"):
        night = [
            f
            for f in dataset.frames
            if f.conditions.light is Light.NIGHT or f.role is not Role.TRAIN
        ]
        calibration.pick_calibration_frames(
            replace(dataset, frames=tuple(night)), 12, safety_slices=["weather=fog"]
        )
    picked = calibration.pick_calibration_frames(by_day, 12, safety_slices=[])
    assert picked.uncovered == ("light=night",)
    with pytest.raises(ParameterError, match="unknown slice"):
        calibration.pick_calibration_frames(dataset, 12, safety_slices=["light=nihgt"])


def test_evaluation_frames_in_the_calibration_are_refused(dataset: Dataset) -> None:
    learned = dataset.role(Role.TRAIN)
    elsewhere = replace(learned, frames=learned.frames[:3])
    with pytest.raises(ParameterError, match="3 calibration frames are evaluated on too"):
        calibration.pick_calibration_frames(dataset, 1000, judged=[elsewhere])
    by_drive = replace(dataset, split={"method": "drive"})
    with pytest.raises(ParameterError, match="used both to calibrate and to evaluate"):
        calibration.pick_calibration_frames(by_drive, 12)
    picked = calibration.pick_calibration_frames(dataset, 12)
    assert (picked.apart, picked.shared_drives, picked.evaluated) == ("frame", 1, 18)


def test_random_calibration_is_detected(models: Models, pixels: list[Pixels]) -> None:
    rng = np.random.default_rng(0)
    gray = [rng.normal(114, 3, (90, 120, 3)).astype(np.uint8) for _ in range(8)]
    sample = ReferenceSample(models[FP32_FILE], pixels)
    wrong = sample.compare(CalibratedModel(models[FP32_FILE], gray).file())
    right = sample.compare(models[INT8_CPU_FILE])
    assert wrong.least_db < 30 < right.least_db
    found = judged({}, head_db=wrong.least_db)
    assert found.verdict is Verdict.FAIL
    with pytest.raises(ContractError, match="least SQNR"):
        gate.require_gates([found])
    assert judged({}, head_db=right.least_db).verdict is Verdict.PASS


def test_the_upper_bound_decides_and_a_proven_loss_is_refused() -> None:
    lost = Difference(Interval(0.03, 0.021, 0.04))
    found = judged({("ap", "light=night", "all"): lost})
    assert found.verdict is Verdict.FAIL
    with pytest.raises(ContractError, match=r"ap lost, light=night 0\.03"):
        gate.require_gates([found])
    unsure = judged({("ap", "all", "all"): Difference(Interval(0.001, -0.002, 0.006))})
    assert unsure.verdict is Verdict.INSUFFICIENT
    gate.require_gates([unsure])
    assert judged({("ap", "all", "all"): Difference(Interval(0, 0, 0), usable=False)}).verdict is (
        Verdict.INSUFFICIENT
    )


def test_a_slice_with_few_boxes_is_reported_and_decides_nothing() -> None:
    found = judged({("ap", "all", "bus"): Difference(Interval(0.3, 0.2, 0.4))})
    row = next(row for row in found.rows if row.name == "ap lost, bus")
    assert (row.verdict, row.required) == (Verdict.FAIL, False)
    assert found.verdict is Verdict.PASS


def test_score_shifts_are_detected_even_if_ap_is_fine() -> None:
    assert judged({}, shift=0.2).verdict is Verdict.FAIL
    assert (
        judged({("f1", "all", "all"): Difference(Interval(0.05, 0.03, 0.07))}).verdict
        is Verdict.FAIL
    )


def test_quantized_decoding_is_caught(quantized: Quantized, dataset: Dataset) -> None:
    models = quantized.files
    assert lint_decoding(models[INT8_CPU_FILE]) == []
    model = onnx.load_from_string(models[INT8_CPU_FILE])
    for output in model.graph.output:
        if output.name.startswith("cls"):
            inner = f"{output.name}_raw"
            for node in model.graph.node:
                node.output[:] = [inner if name == output.name else name for name in node.output]
            model.graph.node.append(helper.make_node("Sigmoid", [inner], [output.name], "decode"))
    wrong = model.SerializeToString()
    assert len(lint_decoding(wrong)) == 3
    comparison = exporter.compare(quantized, dataset, SETTINGS)
    files = {FP32_FILE: models[FP32_FILE], INT8_CPU_FILE: wrong}
    broken = replace(comparison, quantized=replace(quantized, files=files))
    with pytest.raises(ContractError, match="decoding is quantized"):
        exporter.check_targets(broken, ())


def test_another_memory_order_changes_nothing(
    predictor: TorchPredictor, pixels: list[Pixels]
) -> None:
    batch, _ = preprocess_batch(pixels[:2], predictor.preprocessing)
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(batch, 1, -1)), -1, 1)
    content = export_program(predictor)
    outputs = [formats._run_program(content, images) for images in (batch, strided)]
    for expected, laid, other in zip(predictor.raw(batch), *outputs, strict=True):
        np.testing.assert_allclose(laid, expected, atol=1e-5)
        np.testing.assert_array_equal(other, laid)
    with pytest.raises(ContractError, match="channels first"):
        require_input(np.moveaxis(strided, 1, -1), predictor.preprocessing)
    assert content == export_program(make_predictor())
    assert "within" in verify_program(content, predictor, batch)


class _Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("spacing", ["", " "])
def test_code_in_a_program_never_runs(
    predictor: TorchPredictor, tmp_path: Path, protocol: int, spacing: str
) -> None:
    """The attack: an archive whose weights torch unpickles, in every spelling of the request."""
    original = zipfile.ZipFile(io.BytesIO(export_program(predictor)))
    stream, ran = io.BytesIO(), tmp_path / "ran"
    with zipfile.ZipFile(stream, "w") as forged:
        for name in original.namelist():
            part = original.read(name)
            if name.endswith("_config.json"):
                part = re.sub(
                    rb'"use_pickle":\s*false', b'"use_pickle":%strue' % spacing.encode(), part
                )
            elif "/weights/" in name:
                part = pickle.dumps(_Touch(ran), protocol=protocol)
            forged.writestr(name, part)
    frames = np.zeros((1, 3, 64, 64), np.float32)
    with pytest.raises(VerificationError, match="did not export"):
        verify_program(stream.getvalue(), predictor, frames)
    assert not ran.exists()
    with contextlib.suppress(Exception):
        formats._run_program(stream.getvalue(), frames)
    assert ran.exists(), "torch runs this archive's code, so the attack is real"


@pytest.mark.skipif(
    not formats.openvino_available(), reason="the extra `openvino` is not installed"
)
def test_openvino_agrees_with_onnx_runtime(
    models: Models, predictor: TorchPredictor, pixels: list[Pixels]
) -> None:
    made = formats.convert_openvino(models[INT8_CPU_FILE])
    assert made == formats.convert_openvino(models[INT8_CPU_FILE])
    batch, _ = preprocess_batch(pixels[:2], predictor.preprocessing)
    if any("vnni" in flag for flag in latency.cpu_info()["flags"]):
        assert "run on this CPU in OpenVINO" in formats.verify_openvino(
            made, models[INT8_CPU_FILE], batch
        )
    else:  # OpenVINO's 8-bit sums saturate on such a CPU: it must be refused, not believed
        with pytest.raises(ContractError, match="VNNI"):
            formats.verify_openvino(made, models[INT8_CPU_FILE], batch)
    with pytest.raises(ContractError, match="from ONNX Runtime"):
        formats.verify_openvino(
            formats.convert_openvino(models[FP32_FILE]), other_weights(models[FP32_FILE]), batch
        )


def other_weights(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
    return model.SerializeToString()


def _has_vnni() -> bool:
    return "vnni" in Path("/proc/cpuinfo").read_text()


def test_a_machine_with_other_answers_refuses_the_model(models: dict[str, bytes]) -> None:
    """Kernels that compute other sums are played by weights that differ, under the same answers."""
    content = models[INT8_CPU_FILE]
    OnnxPredictor(content)
    model = onnx.load_from_string(content)
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(np.clip(values, -40, 40), weights.name))
    with pytest.raises(ContractError, match=r"computes other outputs.*dB from the golden answers"):
        OnnxPredictor(model.SerializeToString())
    broken = onnx.load_from_string(content)
    entry = next(entry for entry in broken.metadata_props if entry.key == ANSWERS_KEY)
    entry.value = "[]"
    with pytest.raises(ContractError, match="golden answers in the model file cannot be read"):
        OnnxPredictor(broken.SerializeToString())


@pytest.mark.skipif(_has_vnni(), reason="sums do not saturate on this CPU")
def test_sums_that_saturate_are_refused(
    models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = predictors._session
    monkeypatch.setattr(
        predictors,
        "_session",
        lambda source, threads, *, exact: session(source, threads, exact=False),
    )
    with pytest.raises(ContractError, match="computes other outputs"):
        OnnxPredictor(models[INT8_CPU_FILE])
