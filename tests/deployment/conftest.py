"""A bundle in a folder, as it would lie in a car."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from tests.export.conftest import make_dataset, make_predictor
from workbench.core.workspace import Workspace
from workbench.detection.bundles import OperatingPoint
from workbench.detection.predictor import load_checkpoint
from workbench.export import exporter
from workbench.export.exporter import ExportSettings
from workbench.records.dataset import Dataset
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store

POINT = OperatingPoint(threshold=0.05, how="so low that a network without training finds boxes")


@pytest.fixture(scope="session")
def car(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("car") / ".workbench")


@pytest.fixture(scope="session")
def drives(car: Workspace) -> Dataset:
    return make_dataset(car)


def written(car: Workspace, drives: Dataset, folder: Path, seed: int) -> Path:
    predictor = make_predictor(seed)
    assert drives.ref
    record = Checkpoint(
        dataset=drives.ref,
        classes=predictor.classes,
        architecture=predictor.config.model_dump(mode="json"),
        training={},
        preprocessing=predictor.preprocessing.model_dump(mode="json"),
    )
    weights = safetensors.torch.save(predictor.detector.state_dict())
    ref = Store(car).put(record, {"weights.safetensors": weights, "curves.json": b"{}"})
    trained = load_checkpoint(Store(car), ref)
    settings = ExportSettings(calibration_frames=8, parity_frames=4, target=False, program=False)
    quantized = exporter.quantize(trained, drives, settings)
    exporter.write(folder, exporter.compare(quantized, drives, settings), (), POINT)
    return folder


@pytest.fixture(scope="session")
def whole(car: Workspace, drives: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(car, drives, tmp_path_factory.mktemp("bundles") / "one", 0)


@pytest.fixture(scope="session")
def other(car: Workspace, drives: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(car, drives, tmp_path_factory.mktemp("bundles") / "two", 1)


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two short sequences; the third image of the first cannot be read."""
    rng = np.random.default_rng(0)
    for name in ("a/frame_9", "a/frame_10", "a/frame_11", "a/frame_12", "b/frame_1"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (9, 12, 3)).astype(np.uint8))
        small.resize((120, 90), Image.Resampling.BILINEAR).save(path)
    (tmp_path / "images" / "a" / "frame_11.png").write_bytes(b"no image")
    return tmp_path / "images"
