"""A small pool of drawn drives, and an untrained detector: enough to embed, mine and publish."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageDraw

from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.detection.config import DetectorConfig
from workbench.detection.detector import Detector
from workbench.detection.preprocessing import Preprocessing
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import (
    Box,
    Conditions,
    Drive,
    Frame,
    Label,
    LabelSchema,
    Light,
    Origin,
    Role,
    Weather,
)
from workbench.records.model_types import Checkpoint, StepRun
from workbench.records.store import Store

SCHEMA = LabelSchema(name="test", version=1, classes=("car", "cyclist"))
SPEC = Preprocessing(width=96, height=64)
CONFIG = DetectorConfig(classes=SCHEMA.classes, width=0.25, score_threshold=0.05)
SIZE = (120, 80)


def picture(seed: int, *, night: bool) -> tuple[bytes, Box]:
    """A PNG with one bright box on a soft background, and where the box is."""
    rng = np.random.default_rng(seed)
    base = 30 if night else 140
    noise = rng.integers(-12, 12, (SIZE[1], SIZE[0], 3))
    image = Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))
    x, y = int(rng.integers(5, 70)), int(rng.integers(5, 40))
    w, h = int(rng.integers(16, 40)), int(rng.integers(12, 30))
    colour = tuple(int(value) for value in rng.integers(60, 255, 3))
    ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue(), Box(x=x, y=y, w=w, h=h)


def make_dataset(
    workspace: Workspace, drives: int = 6, per_drive: int = 8, *, simulated: bool = True
) -> Dataset:
    """Drives of two frames a second; the first is seed, the last safety, the others pool."""
    frames, labels = [], []
    for number in range(drives):
        role = {0: Role.SEED, drives - 1: Role.SAFETY}.get(number, Role.POOL)
        night = number % 3 == 2
        for index in range(per_drive):
            data, box = picture(1000 * number + index, night=night)
            frame = Frame(
                id=digest.of_bytes(data),
                drive=f"drive-{number}",
                index=index,
                timestamp_us=500_000 * index,
                width=SIZE[0],
                height=SIZE[1],
                suffix=".png",
                conditions=Conditions(
                    light=Light.NIGHT if night else Light.DAY, weather=Weather.CLEAR
                ),
                role=role,
            )
            path = media_path(workspace, frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            frames.append(frame)
            if role is not Role.POOL:
                cls = SCHEMA.classes[index % 2]
                labels.append(Label(frame=frame.id, cls=cls, box=box, origin=Origin.IMPORTED))
    return Dataset(
        name="drawn",
        label_schema=SCHEMA,
        drives=tuple(Drive(id=f"drive-{number}", simulated=simulated) for number in range(drives)),
        frames=tuple(frames),
        labels=tuple(labels),
        simulated=simulated,
    )


def make_checkpoint(store: Store, dataset: Ref, folder: Path, *, seed: int = 0) -> Ref:
    torch.manual_seed(seed)
    detector = Detector(CONFIG)
    detector.set_prior(torch.tensor([0.2, 0.1]))
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"weights-{seed}.safetensors"
    safetensors.torch.save_file(detector.state_dict(), weights)
    record = Checkpoint(
        dataset=dataset,
        classes=SCHEMA.classes,
        architecture=CONFIG.model_dump(mode="json"),
        training={},
        preprocessing=SPEC.model_dump(mode="json"),
    )
    return store.put(record, {"weights.safetensors": weights, "curves.json": b"{}"})


def record_step(store: Store, name: str, outputs: dict[str, Ref], **more: Any) -> Ref:
    """The record of a finished step with these outputs."""
    run = StepRun(
        step=name,
        key=digest.of_json([name, outputs]),
        notebook=f"notebook/{'1' * 64}",
        environment=f"environment/{'2' * 64}",
        modules="3" * 64,
        parameters={},
        outputs=outputs,
        **{"inputs": {}, **more},
    )
    return store.put(run)


@pytest.fixture
def dataset(workspace: Workspace, store: Store) -> Dataset:
    made = make_dataset(workspace)
    return datasets.load_dataset(store, datasets.save_dataset(store, made, made_by="test"))


@pytest.fixture
def model(store: Store, dataset: Dataset, tmp_path: Path) -> Ref:
    assert dataset.ref is not None
    made = make_checkpoint(store, dataset.ref, tmp_path / "weights")
    record_step(store, "baseline", {"checkpoint": made})
    return made
