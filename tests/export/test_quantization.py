"""The folded first layer, calibration methods, sensitivity, QAT and latency."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.export.conftest import make_predictor
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.detection.bundles import FP32_FILE, INT8_CPU_FILE
from workbench.detection.efficientnet import Lite0Detector
from workbench.detection.predictor import OnnxPredictor, TorchPredictor
from workbench.detection.preprocessing import Pixels, load_rgb
from workbench.export import calibration, latency, qat, sensitivity
from workbench.export.exporter import _range_methods
from workbench.export.formats import export_fp32
from workbench.export.parity import ReferenceSample
from workbench.export.quantization import CalibratedModel, fold_stem
from workbench.records.dataset import Dataset, media_path

Models = dict[str, bytes]


@pytest.fixture(scope="module")
def pixels(kept: Workspace, dataset: Dataset) -> list[Pixels]:
    return [load_rgb(media_path(kept, frame)) for frame in dataset.frames[:12]]


def test_the_folded_first_layer_computes_the_same(models: Models) -> None:
    model = onnx.load_from_string(models[FP32_FILE])
    other = fold_stem(model)
    assert [node.op_type for node in other.graph.node][:4] == [
        "Transpose",
        "Reshape",
        "Transpose",
        "Conv",
    ]
    batch = np.random.default_rng(0).uniform(-1.8, 2.2, (3, 3, 64, 96)).astype(np.float32)
    other.metadata_props.extend(model.metadata_props)
    found = OnnxPredictor(other.SerializeToString()).raw(batch)
    for expected, actual in zip(OnnxPredictor(models[FP32_FILE]).raw(batch), found, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert fold_stem(other).SerializeToString() == other.SerializeToString()  # nothing left to fold


def test_the_chosen_method_is_explained(models: Models, pixels: list[Pixels]) -> None:
    found = calibration.choose_method(
        models[FP32_FILE], pixels[:6], pixels[6:], methods=("minmax", "percentile")
    )
    assert [row.method for row in found.rows] == ["minmax", "percentile"]
    assert found.method in found.why
    assert all(f"{row.sqnr_db:.1f} dB" in found.why for row in found.rows)
    assert (
        found.calibrated.file()
        == CalibratedModel(models[FP32_FILE], pixels[:6], found.method).file()
    )
    with pytest.raises(ParameterError, match="unknown calibration method"):
        CalibratedModel(models[FP32_FILE], pixels, "guess")  # type: ignore[arg-type]


def planted(factor: float) -> TorchPredictor:
    """The same function, one channel of the class towers times ``factor``: one range for all."""
    predictor = make_predictor()
    for head in predictor.detector.heads:
        norm, after = head.cls_tower[1], head.cls
        norm.weight.data[2] *= factor
        norm.bias.data[2] *= factor
        after.weight.data[:, 2] /= factor
    return predictor


def test_sensitivity_finds_the_planted_layer(pixels: list[Pixels]) -> None:
    predictor = planted(300.0)
    fp32 = export_fp32(predictor)
    found = sensitivity.measure_sensitivity(
        predictor, fp32, CalibratedModel(fp32, pixels), pixels[:4]
    )
    assert len(found.layers) == 27
    assert found.whole.least_db < 30
    worst = min(found.layers, key=lambda row: row.alone_int8_db)
    assert "cls" in worst.layer.module
    calibrated, sample = CalibratedModel(fp32, pixels), ReferenceSample(fp32, pixels[:4])

    def least_db(layers: Sequence[sensitivity.Layer]) -> float:
        file = calibrated.file(keep_float=[layer.node for layer in layers])
        return sample.compare(file).least_db

    kept = sensitivity.layers_to_keep_float(found, least_db)
    assert kept
    assert all("cls" in layer.module for layer in kept)
    assert least_db(kept) >= sensitivity.MIN_HEAD_DB
    assert sensitivity.layers_to_keep_float(found, least_db, most=1) == kept[:1]
    assert found.as_json()["layers"][0]["module"] == worst.layer.module


def test_no_layer_is_kept_in_float_where_none_needs_it(
    models: Models, predictor: TorchPredictor, pixels: list[Pixels]
) -> None:
    found = sensitivity.measure_sensitivity(
        predictor, models[FP32_FILE], CalibratedModel(models[FP32_FILE], pixels), pixels[:2]
    )
    assert sensitivity.layers_to_keep_float(found, lambda layers: found.whole.least_db) == ()


def test_folding_batch_norms_changes_nothing(predictor: TorchPredictor) -> None:
    batch = np.random.default_rng(0).uniform(-1.8, 2.2, (2, 3, 64, 96)).astype(np.float32)
    once = qat.fold_batch_norms(predictor)
    for same in (once, qat.equalize_channels(once)):
        for expected, actual in zip(predictor.raw(batch), same.raw(batch), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-4)
    with pytest.raises(ParameterError, match="nothing to train on"):
        qat.distill(predictor, [], steps=3)


@pytest.mark.slow
def test_quantization_aware_training_repairs_what_calibration_breaks(pixels: list[Pixels]) -> None:
    predictor = planted(300.0)
    fp32 = export_fp32(predictor)
    sample = ReferenceSample(fp32, pixels[8:])
    broken = sample.compare(CalibratedModel(fp32, pixels[:8]).file())
    student = qat.distill(predictor, pixels[:8], steps=20)
    repaired = sample.compare(CalibratedModel(export_fp32(student), pixels[:8]).file())
    assert broken.least_db < 20
    assert repaired.least_db > broken.least_db + 10


def test_cold_start_memory_and_degraded_images_are_measured(
    models: Models, pixels: list[Pixels]
) -> None:
    started = latency.measure_cold_start({INT8_CPU_FILE: models[INT8_CPU_FILE]}, threads=1)
    assert started[INT8_CPU_FILE]["cold_start_ms"] > 0
    found = latency.measure_degraded(
        models[FP32_FILE], models[INT8_CPU_FILE], pixels[:3], threads=1
    )
    assert set(found) == {"clean", "noise", "dark"}
    assert found["dark"]["int8"]["median_ms"] > 0
    assert latency._degrade(pixels[0], "dark", 0).mean() < 0.3 * pixels[0].mean()


def test_a_network_names_how_its_ranges_are_made() -> None:
    named: Any = SimpleNamespace(detector=Lite0Detector)
    assert _range_methods(named, compare=False) == ("percentile",)
    assert _range_methods(named, compare=True) == ("percentile", "minmax", "entropy")
    other: Any = SimpleNamespace(detector=object())
    assert _range_methods(other, compare=False) == ("minmax",)
