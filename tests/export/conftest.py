"""A small stored dataset of drawn frames, and a small detector exported once for all tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.detection.config import DetectorConfig
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.export.exporter import ExportSettings, Quantized, quantize
from workbench.records.dataset import Dataset, load_dataset, media_path, save_dataset
from workbench.records.frames import (
    Conditions,
    Drive,
    Frame,
    LabelSchema,
    Light,
    Role,
    VehicleType,
    Weather,
)
from workbench.records.store import Store

CLASSES = ("car", "pedestrian", "cyclist")
SLICES = (
    (Light.DAY, Weather.CLEAR, 30),
    (Light.NIGHT, Weather.CLEAR, 8),
    (Light.DAY, Weather.FOG, 3),
)


def drawn(seed: int, light: Light) -> bytes:
    """A road-like picture with a few blocks, PNG."""
    rng = np.random.default_rng(seed)
    level = 60 if light is Light.NIGHT else 170
    picture = Image.new("RGB", (120, 90), (level, level, level + 20))
    pen = ImageDraw.Draw(picture)
    for _ in range(5):
        x, y = rng.integers(0, 100), rng.integers(20, 70)
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        pen.rectangle((x, y, x + rng.integers(5, 30), y + rng.integers(5, 20)), fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def make_dataset(workspace: Workspace, *, judged_on: int = 6) -> Dataset:
    frames = []
    for light, weather, count in SLICES:
        for index in range(count + judged_on):
            content = drawn(len(frames), light)
            frame = Frame(
                id=digest.of_bytes(content),
                drive="drive",
                index=len(frames),
                width=120,
                height=90,
                suffix=".png",
                conditions=Conditions(light=light, weather=weather),
                role=Role.TRAIN if index < count else (Role.SAFETY, Role.VAL)[index % 2],
            )
            path = media_path(workspace, frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            frames.append(frame)
    dataset = Dataset(
        name="drawn",
        label_schema=LabelSchema(name="small", version=1, classes=CLASSES),
        drives=(Drive(id="drive", vehicle_type=VehicleType.CAR, simulated=True),),
        frames=tuple(frames),
        labels=(),
        simulated=True,
    )
    store = Store(workspace)
    return load_dataset(store, save_dataset(store, dataset, made_by="test"))


def make_predictor(seed: int = 0) -> TorchPredictor:
    """An untrained detector that gives boxes all the same."""
    import torch

    from workbench.detection.detector import Detector

    torch.manual_seed(seed)
    detector = Detector(DetectorConfig(classes=CLASSES, width=0.25))
    detector.set_prior(torch.tensor([0.3, 0.3, 0.3]))
    for head in detector.heads:
        torch.nn.init.normal_(head.cls.weight, std=0.3)
    return TorchPredictor(detector, Preprocessing(width=96, height=64))


@pytest.fixture(scope="session")
def two_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace that all export tests read; those that write use ``workspace``."""
    return Workspace(tmp_path_factory.mktemp("export") / ".workbench")


@pytest.fixture(scope="session")
def dataset(kept: Workspace) -> Dataset:
    return make_dataset(kept)


@pytest.fixture(scope="session")
def predictor(two_threads: None) -> TorchPredictor:
    return make_predictor()


SETTINGS = ExportSettings(calibration_frames=16, parity_frames=8, program=False)


@pytest.fixture(scope="session")
def quantized(dataset: Dataset, predictor: TorchPredictor) -> Quantized:
    return quantize(predictor, dataset, SETTINGS)


@pytest.fixture(scope="session")
def models(quantized: Quantized) -> dict[str, bytes]:
    """The three ONNX files, by name."""
    return quantized.files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"
