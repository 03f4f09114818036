"""Pictures that a detector can learn in seconds: a red box is a car, a green one a cyclist."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.detection.preprocessing import Preprocessing
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin, Role
from workbench.training import Augmentation, TrainingConfig

CLASSES = ("car", "cyclist")
COLOURS = {"car": (220, 40, 40), "cyclist": (40, 200, 60)}
SPEC = Preprocessing(width=96, height=64)
TINY = TrainingConfig(
    steps=8, batch=4, width=0.25, threads=1, seed=5, augment=Augmentation(shift=0.05)
)


def scenes(workspace: Workspace, count: int = 8, *, role: Role | None = Role.SEED) -> Dataset:
    """``count`` frames of 96x64 with up to three boxes each; every fourth frame is empty."""
    frames, labels = [], []
    for index in range(count):
        rng = np.random.default_rng([7, index])
        pixels = rng.integers(60, 120, (64, 96, 3)).astype(np.uint8)
        boxes = [] if index % 4 == 3 else _place(rng)
        for name, (x, y, w, h) in boxes:
            pixels[y : y + h, x : x + w] = COLOURS[name]
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        frame = Frame(
            id=digest.of_bytes(stream.getvalue()), drive="d", index=index, width=96, height=64,
            suffix=".png", role=role,
        )  # fmt: skip
        path = media_path(workspace, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        frames.append(frame)
        labels.extend(
            Label(frame=frame.id, cls=name, box=Box(x=x, y=y, w=w, h=h), origin=Origin.RENDERED)
            for name, (x, y, w, h) in boxes
        )
    schema = LabelSchema(name="test", version=1, classes=CLASSES)
    return Dataset(
        name="scenes", label_schema=schema, drives=(Drive(id="d", simulated=True),),
        frames=tuple(frames), labels=tuple(labels), simulated=True,
        workspace=workspace,
    )  # fmt: skip


def _place(rng: np.random.Generator) -> list[tuple[str, tuple[int, int, int, int]]]:
    """One box in each of up to three columns, so that none hides another."""
    found = []
    for column in range(int(rng.integers(1, 4))):
        w, h = (int(side) for side in rng.integers(12, 28, 2))
        x, y = column * 32 + int(rng.integers(0, 32 - w)), int(rng.integers(0, 64 - h))
        found.append((CLASSES[int(rng.integers(0, 2))], (x, y, w, h)))
    return found
