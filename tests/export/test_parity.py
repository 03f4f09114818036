"""Parity finds a broken export and measures a lossy one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.conftest import make_predictor
from workbench.errors import ContractError, ParameterError
from workbench.export import parity
from workbench.export.bundle import FP32, INT8_CPU, INT8_TARGET
from workbench.perception.contract import DetectorConfig
from workbench.perception.predictor import OnnxPredictor, TorchPredictor
from workbench.perception.preprocessing import Preprocessing
from workbench.records.dataset import Dataset
from workbench.records.frames import Role
from workbench.workspace import Workspace

Models = dict[str, bytes]


@pytest.fixture(scope="module")
def report(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor, models: Models
) -> dict[str, object]:
    targets = {name: OnnxPredictor(content) for name, content in models.items()}
    frames = dataset.with_roles(Role.VAL, Role.SAFETY).frames
    return parity.compare(kept, predictor, targets, frames, score=0.4)


def test_the_float_file_agrees_fully(report: dict) -> None:
    found = report["targets"][FP32]
    assert found["max_abs_diff"] < 1e-4
    assert found["boxes"] == found["reference_boxes"] == found["matched"] > 20
    assert found["agreement"] == 1
    parity.require_float_parity(report)


@pytest.mark.parametrize("name", [INT8_CPU, INT8_TARGET])
def test_an_8_bit_file_agrees_mostly_and_its_distance_is_told(report: dict, name: str) -> None:
    found = report["targets"][name]
    assert found["max_abs_diff"] > report["targets"][FP32]["max_abs_diff"]
    assert 0.5 < found["agreement"] <= 1
    assert found["iou_mean"] > 0.8
    assert set(found["maps"]) == {f"{part}_{s}" for s in (8, 16, 32) for part in ("cls", "box")}


def test_the_report_counts_its_frames(report: dict) -> None:
    assert (report["frames"], report["frames_available"]) == (18, 18)
    assert [row["target"] for row in parity.table(report)] == [FP32, INT8_CPU, INT8_TARGET]


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


def test_a_broken_export_is_an_error(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    broken = {FP32: Shifted(predictor, 0.25)}
    report = parity.compare(kept, predictor, broken, dataset.frames[-4:], score=0.4)
    found = report["targets"][FP32]
    assert found["max_abs_diff"] == pytest.approx(0.25)
    assert found["agreement"] < 1
    assert found["score_shift_mean"] > 0
    assert found["worst_frame"]["frame"] in {frame.id for frame in dataset.frames[-4:]}
    with pytest.raises(ContractError, match="off the network's"):
        parity.require_float_parity(report)


def test_maps_that_are_no_numbers_are_an_error(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    broken = {FP32: Shifted(predictor, float("nan"))}
    with pytest.raises(ContractError, match="not finite"):
        parity.compare(kept, predictor, broken, dataset.frames[-2:])


def test_frames_are_spread_over_the_sequence() -> None:
    assert parity.evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert parity.evenly(list(range(3)), 10) == [0, 1, 2]


def test_no_frames_and_another_contract_are_refused(
    kept: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    with pytest.raises(ParameterError, match="no frames"):
        parity.compare(kept, predictor, {}, [])
    other = make_predictor(1)
    other.preprocessing = Preprocessing(width=96, height=64, mean=(0, 0, 0))
    with pytest.raises(ParameterError, match="another contract"):
        parity.compare(kept, predictor, {"x.onnx": other}, dataset.frames[:1])
