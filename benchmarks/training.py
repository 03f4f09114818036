"""Our training loop beside a bare one: ``python -m benchmarks.training [--quick] [--json]``.

Both train the same detector with the same loss and optimiser. The bare loop has its batches ready
in memory: nothing is decoded, varied or normalised, no average of the weights is kept, nothing is
logged and torch may be as unrepeatable as it likes. They take turns in one process, and each is
judged by its fastest turn, because other work on the machine only ever makes a turn slower.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Row, main, row
from workbench import digest
from workbench.perception.detector import Detector, DetectorConfig
from workbench.perception.preprocessing import Preprocessing
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin
from workbench.training.config import TrainingConfig
from workbench.training.loader import Loader
from workbench.training.loop import train
from workbench.training.loss import DetectionLoss, as_truth
from workbench.workspace import Workspace

CLASSES = tuple(f"class-{number}" for number in range(10))
SPEC = Preprocessing()
GOAL = 0.95


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes fewer and shorter turns."""
    turns, steps = (2, 4) if quick else (4, 12)
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Workspace(Path(folder) / ".workbench")
        dataset = frames(place, 32)
        config = TrainingConfig(steps=steps)
        for _ in range(turns):
            ours.append(our_loop(place, dataset, config))
            bare.append(bare_loop(place, dataset, config))
    best, peer = max(ours), max(bare)
    return [
        row(
            "train on decoded frames",
            best,
            "images/s",
            peer=peer,
            peer_name="bare torch loop, batches ready",
            goal=f">= {GOAL:g}",
            met=best / peer >= GOAL,
        )
    ]


def our_loop(place: Workspace, dataset: Dataset, config: TrainingConfig) -> float:
    """Images a second of `workbench.training`, the steps alone."""
    trained = train(place, dataset, config, classes=CLASSES, preprocessing=SPEC)
    return trained.images_per_second


def bare_loop(place: Workspace, dataset: Dataset, config: TrainingConfig) -> float:
    """Images a second of the fewest lines that train the same network."""
    loader = Loader(place, dataset, config, classes=CLASSES, preprocessing=SPEC)
    kept = [loader.batch(step) for step in range(2)]
    batches = [
        (
            torch.from_numpy(batch.images).contiguous(memory_format=torch.channels_last),
            as_truth(batch.targets),
        )
        for batch in kept
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    shape = DetectorConfig(classes=CLASSES)
    model: Any = Detector(shape).train()
    model = model.to(memory_format=torch.channels_last)
    loss = DetectionLoss(shape, SPEC.width, SPEC.height)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    began = time.perf_counter()
    for step in range(config.steps):
        images, truth = batches[step % len(batches)]
        optimiser.zero_grad()
        loss(model(images), truth).total.backward()
        optimiser.step()
    seconds = time.perf_counter() - began
    torch.set_num_threads(before)
    return config.steps * config.batch / seconds


def frames(place: Workspace, count: int) -> Dataset:
    """Frames of noise with eight boxes each: what is in them changes no speed."""
    kept, labels = [], []
    rng = np.random.default_rng(0)
    for index in range(count):
        stream = io.BytesIO()
        pixels = rng.integers(0, 255, (288, 480, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG")
        frame = Frame(
            id=digest.of_bytes(stream.getvalue()),
            drive="noise",
            index=index,
            width=480,
            height=288,
            suffix=".jpg",
        )
        path = media_path(place, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        kept.append(frame)
        for x, y, w, h in rng.uniform((0, 0, 20, 20), (360, 180, 120, 100), (8, 4)).tolist():
            box = Box(x=x, y=y, w=w, h=h)
            cls = CLASSES[int(rng.integers(10))]
            labels.append(Label(frame=frame.id, cls=cls, box=box, origin=Origin.RENDERED))
    return Dataset(
        name="noise",
        label_schema=LabelSchema(name="benchmark", version=1, classes=CLASSES),
        drives=(Drive(id="noise", simulated=True),),
        frames=tuple(kept),
        labels=tuple(labels),
        simulated=True,
    )


if __name__ == "__main__":
    main(measure)
