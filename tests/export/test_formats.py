"""The three files: what is in them, that plain ONNX Runtime runs them, and that they repeat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.detection.bundles import FP32_FILE, INT8_CPU_FILE, INT8_TARGET_FILE
from workbench.detection.config import from_onnx_metadata
from workbench.detection.predictor import OnnxPredictor, TorchPredictor
from workbench.detection.preprocessing import load_rgb, preprocess_batch
from workbench.export import calibration
from workbench.export.bundle import lint_symmetric
from workbench.export.formats import canonical_onnx, onnx_metadata
from workbench.export.quantization import CalibratedModel
from workbench.records.dataset import Dataset, media_path

Models = dict[str, bytes]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def batch(kept: Workspace, dataset: Dataset, predictor: TorchPredictor) -> np.ndarray:
    pixels = [load_rgb(media_path(kept, frame)) for frame in dataset.frames[-5:]]
    return preprocess_batch(pixels, predictor.preprocessing)[0]


def test_the_float_file_computes_what_the_network_does(
    models: Models, predictor: TorchPredictor, batch: np.ndarray
) -> None:
    found = OnnxPredictor(models[FP32_FILE]).raw(batch)
    for expected, actual in zip(predictor.raw(batch), found, strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("name", [INT8_CPU_FILE, INT8_TARGET_FILE])
def test_an_int8_file_is_near_the_network_and_smaller(
    models: Models, predictor: TorchPredictor, batch: np.ndarray, name: str
) -> None:
    found = OnnxPredictor(models[name]).raw(batch)
    for expected, actual in zip(predictor.raw(batch), found, strict=True):
        spread = np.ptp(expected)
        assert np.abs(actual - expected).mean() < 0.02 * spread
        assert np.abs(actual - expected).max() > 0  # it is not the float file again
    assert len(models[name]) < 0.5 * len(models[FP32_FILE])


@pytest.mark.parametrize("name", [FP32_FILE, INT8_CPU_FILE])
def test_a_batch_gives_what_its_frames_give_alone(
    models: Models, batch: np.ndarray, name: str
) -> None:
    model = OnnxPredictor(models[name])
    together = model.raw(batch)
    for index in range(len(batch)):
        alone = model.raw(batch[index : index + 1])
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_allclose(whole[index : index + 1], part, atol=1e-5)


@pytest.mark.parametrize("name", [FP32_FILE, INT8_CPU_FILE, INT8_TARGET_FILE])
def test_plain_onnx_runtime_runs_every_file(models: Models, name: str) -> None:
    session = onnxruntime.InferenceSession(models[name], providers=["CPUExecutionProvider"])
    frame = session.get_inputs()[0]
    assert (frame.name, frame.type, frame.shape[1:]) == ("images", "tensor(float)", [3, 64, 96])
    maps = session.run(None, {"images": np.zeros((1, 3, 64, 96), np.float32)})
    assert [output.shape for output in maps][:2] == [(1, 3, 8, 12), (1, 4, 8, 12)]


@pytest.mark.parametrize("name", [FP32_FILE, INT8_CPU_FILE, INT8_TARGET_FILE])
def test_a_file_holds_its_contract_and_no_local_paths(
    models: Models, predictor: TorchPredictor, name: str
) -> None:
    model = onnx.load_from_string(models[name])
    contract = from_onnx_metadata(onnx_metadata(model), where=name)
    assert contract == (predictor.config, predictor.preprocessing)
    assert model.producer_name == "workbench"
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(ROOT).encode() not in models[name]
    assert b"site-packages" not in models[name]


def test_writing_a_canonical_file_again_changes_nothing(models: Models) -> None:
    for content in models.values():
        model = onnx.load_from_string(content)
        assert canonical_onnx(model, onnx_metadata(model)) == content


def test_names_do_not_shape_a_canonical_file(models: Models) -> None:
    model = onnx.load_from_string(models[FP32_FILE])
    for node in model.graph.node:
        node.name, node.doc_string = f"other/{node.name}", "a note"
        node.input[:] = [f"x{name}" if name.startswith("w") else name for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = f"x{tensor.name}"
    model.producer_version = "9"
    assert canonical_onnx(model, onnx_metadata(model)) == models[FP32_FILE]


def test_a_changed_weight_changes_the_bytes(models: Models) -> None:
    model = onnx.load_from_string(models[FP32_FILE])
    values = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    values.flat[0] += 1e-3
    name = model.graph.initializer[0].name
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, name))
    assert canonical_onnx(model, onnx_metadata(model)) != models[FP32_FILE]


@pytest.mark.parametrize("target", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_another_process_makes_the_same_bytes(models: Models, target: bool) -> None:
    code = f"""
import sys, tempfile, torch
from pathlib import Path
from tests.export.conftest import make_dataset, make_predictor
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.export.exporter import ExportSettings, quantize

torch.set_num_threads(2)
with tempfile.TemporaryDirectory() as folder:
    dataset = make_dataset(Workspace(Path(folder) / ".workbench"))
    settings = ExportSettings(calibration_frames=16, target={target}, program=False)
    files = quantize(make_predictor(), dataset, settings).files
for name in sorted(files):
    print(name, digest.of_bytes(files[name]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = sorted(models) if target else [FP32_FILE, INT8_CPU_FILE]
    assert done.stdout.splitlines() == [f"{name} {digest.of_bytes(models[name])}" for name in names]


def test_other_calibration_frames_give_another_file(
    kept: Workspace, dataset: Dataset, models: Models
) -> None:
    picked = calibration.pick_calibration_frames(dataset, 3, seed=5)
    again = CalibratedModel(
        models[FP32_FILE], calibration.calibration_images(kept, dataset, picked)
    ).file()
    assert again != models[INT8_CPU_FILE]


def test_no_calibration_frames_are_refused(models: Models) -> None:
    with pytest.raises(ParameterError, match="no frames to calibrate"):
        CalibratedModel(models[FP32_FILE], [])


def test_the_target_file_keeps_the_rules_and_the_cpu_file_does_not(models: Models) -> None:
    assert lint_symmetric(models[INT8_TARGET_FILE]) == []
    assert any("not int8" in finding for finding in lint_symmetric(models[INT8_CPU_FILE]))
    assert lint_symmetric(models[FP32_FILE]) == ["nothing is quantised"]


def test_the_lint_reports_a_zero_point_an_invalid_scale_and_an_unknown_operator(
    models: Models,
) -> None:
    model = onnx.load_from_string(models[INT8_TARGET_FILE])
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    for tensor in model.graph.initializer:
        if tensor.name == first.input[1]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(-1), tensor.name))
        if tensor.name == first.input[2]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(3), tensor.name))
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "HardSwish"
    findings = lint_symmetric(model.SerializeToString())
    for word in ("zero point is not 0", "not finite and above zero", "HardSwish"):
        assert any(word in finding for finding in findings), (word, findings)
