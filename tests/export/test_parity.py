"""Parity finds a broken export and measures a lossy one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.conftest import make_predictor
from workbench.core.errors import ContractError, ParameterError
from workbench.core.workspace import Workspace
from workbench.detection.bundles import FP32_FILE, INT8_CPU_FILE, INT8_TARGET_FILE
from workbench.detection.config import DetectorConfig
from workbench.detection.predictor import OnnxPredictor, TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.export import parity
from workbench.records.dataset import Dataset
from workbench.records.frames import Role

Models = dict[str, bytes]


@pytest.fixture(scope="module")
def report(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor, models: Models
) -> dict[str, object]:
    targets = {name: OnnxPredictor(content) for name, content in models.items()}
    frames = dataset.role(Role.VAL, Role.SAFETY).frames
    return parity.compare_models(kept, predictor, targets, frames, score=0.4)


def test_the_float_file_agrees_fully(report: dict) -> None:
    found = report["targets"][FP32_FILE]
    assert found["max_abs_diff"] < 1e-4
    assert found["boxes"] == found["reference_boxes"] == found["matched"] > 20
    assert found["agreement"] == 1
    parity.require_float_parity(report)


@pytest.mark.parametrize("name", [INT8_CPU_FILE, INT8_TARGET_FILE])
def test_an_int8_file_agrees_mostly_and_its_difference_is_reported(report: dict, name: str) -> None:
    found = report["targets"][name]
    assert found["max_abs_diff"] > report["targets"][FP32_FILE]["max_abs_diff"]
    assert 0.5 < found["agreement"] <= 1
    assert found["iou_mean"] > 0.8
    assert set(found["maps"]) == {f"{part}_{s}" for s in (8, 16, 32) for part in ("cls", "box")}


def test_the_report_counts_its_frames(report: dict) -> None:
    assert (report["frames"], report["frames_available"]) == (18, 18)
    assert [row["target"] for row in parity.parity_table(report)] == [
        FP32_FILE,
        INT8_CPU_FILE,
        INT8_TARGET_FILE,
    ]


class Shifted:
    """A runtime that reads one operator differently."""

    def __init__(self, inner: TorchPredictor, shift: float) -> None:
        self.inner, self.shift = inner, shift

    @property
    def config(self) -> DetectorConfig:
        return self.inner.config

    @property
    def preprocessing(self) -> Preprocessing:
        return self.inner.preprocessing

    def raw(self, batch: np.ndarray) -> list[np.ndarray]:
        return [output + np.float32(self.shift) for output in self.inner.raw(batch)]


def test_a_broken_export_is_refused(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    broken = {FP32_FILE: Shifted(predictor, 0.25)}
    report = parity.compare_models(kept, predictor, broken, dataset.frames[-4:], score=0.4)
    found = report["targets"][FP32_FILE]
    assert found["max_abs_diff"] == pytest.approx(0.25)
    assert found["agreement"] < 1
    assert found["score_shift_mean"] > 0
    assert found["worst_frame"]["frame"] in {frame.id for frame in dataset.frames[-4:]}
    with pytest.raises(ContractError, match="differ from the network's"):
        parity.require_float_parity(report)


def test_outputs_that_are_not_finite_are_refused(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    broken = {FP32_FILE: Shifted(predictor, float("nan"))}
    with pytest.raises(ContractError, match="NaN or infinity"):
        parity.compare_models(kept, predictor, broken, dataset.frames[-2:])


def test_frames_are_spread_over_the_sequence() -> None:
    assert parity.evenly_spaced(list(range(10)), 4) == [0, 2, 5, 7]
    assert parity.evenly_spaced(list(range(3)), 10) == [0, 1, 2]


def test_no_frames_and_another_contract_are_refused(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    with pytest.raises(ParameterError, match="no frames"):
        parity.compare_models(kept, predictor, {}, [])
    other = make_predictor(1)
    other.preprocessing = Preprocessing(width=96, height=64, mean=(0, 0, 0))
    with pytest.raises(ParameterError, match="another contract"):
        parity.compare_models(kept, predictor, {"x.onnx": other}, dataset.frames[:1])
