"""Synthetic drives: soft scenes, with copies and leaks that a test adds."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.curation.conftest import SCHEMA
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Conditions, Drive, Frame, Light, Role, Weather

SIZE = (160, 96)


def scene(seed: int, step: float = 0.0) -> NDArray[np.uint8]:
    """RGB ``[96, 160, 3]``: blobs and blocks of a scene, moved right by ``step`` pixels."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(SIZE[0]) - step, np.arange(SIZE[1]))
    image = np.zeros((SIZE[1], SIZE[0], 3))
    for _ in range(14):
        cx, cy, size = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]), rng.uniform(6, 30)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size**2))
        image += blob[..., None] * rng.uniform(20, 110, 3)
    for _ in range(25):
        left, top = rng.uniform(-20, SIZE[0]), rng.uniform(0, SIZE[1])
        w, h = rng.uniform(4, 30, 2)
        inside = (x >= left) & (x < left + w) & (y >= top) & (y < top + h)
        image[inside] = rng.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def encoded(image: NDArray[np.uint8], kind: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def add(workspace: Workspace, frame: Frame, data: bytes) -> Frame:
    path = media_path(workspace, frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return frame


def frame_of(
    workspace: Workspace, data: bytes, drive: str, index: int, role: Role | None, kind: str = ".png"
) -> Frame:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    frame = Frame(
        id=digest.of_bytes(data),
        drive=drive,
        index=index,
        timestamp_us=500_000 * index,
        width=width,
        height=height,
        suffix=kind,
        conditions=Conditions(light=Light.DAY, weather=Weather.CLEAR),
        role=role,
    )
    return add(workspace, frame, data)


def clean(workspace: Workspace, drives: int = 10, per_drive: int = 8) -> Dataset:
    """Drives through scenes of their own, the first seven learned from, the last judged by."""
    frames = []
    for number in range(drives):
        role = Role.SEED if number < drives - 3 else Role.SAFETY
        role = Role.VAL if number == drives - 3 else role
        for index in range(per_drive):
            data = encoded(scene(number, step=3.0 * index))
            frames.append(frame_of(workspace, data, f"drive-{number:02}", index, role))
    return Dataset(
        name="planted",
        label_schema=SCHEMA,
        drives=tuple(Drive(id=f"drive-{number:02}") for number in range(drives)),
        frames=tuple(frames),
        labels=(),
        split={"method": "drive"},
    )


def with_frames(dataset: Dataset, *more: Frame) -> Dataset:
    frames = sorted((*dataset.frames, *more), key=lambda one: (one.drive, one.index, one.id))
    known = {drive.id for drive in dataset.drives}
    fresh = tuple(Drive(id=one) for one in sorted({frame.drive for frame in more} - known))
    return replace(dataset, frames=tuple(frames), drives=(*dataset.drives, *fresh))
