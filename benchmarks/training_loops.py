"""The loops that `benchmarks.training` times, each in a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.detection.config import DetectorConfig, GroundTruthBatch
from workbench.detection.detector import Detector
from workbench.detection.preprocessing import Preprocessing
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin
from workbench.training import augment
from workbench.training.checkpoint import TrainingResult
from workbench.training.config import TrainingConfig
from workbench.training.loader import DataLoader, TaskSpec
from workbench.training.losses import DetectionLoss, pad_targets
from workbench.training.trainer import train

CLASSES = tuple(f"class-{number}" for number in range(10))
SPEC = Preprocessing()
FRAMES = 32
WORKERS = (0, 1, 2)

Ready = list[tuple[torch.Tensor, GroundTruthBatch]]
Turn = Callable[[Workspace, Dataset, TrainingConfig, Ready], dict[str, float]]


class Side:
    """One of the loops in a process of its own: a line asks for a turn, a line answers."""

    def __init__(self, name: str, workspace: Workspace, config: TrainingConfig) -> None:
        program = f"from benchmarks import training_loops; training_loops.serve({name!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(workspace.root), str(config.steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )

    def __enter__(self) -> Side:
        self.turn()  # what a process allocates first is no loop's
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def turn(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        told: dict[str, float] = json.loads(self._process.stdout.readline())
        return told


def serve(name: str) -> None:
    """Take turns for as long as somebody asks."""
    workspace, config = Workspace(Path(sys.argv[1])), TrainingConfig(steps=int(sys.argv[2]))
    loaders = {f"loader_turn_{count}": partial(loader_turn, count) for count in WORKERS}
    turns: dict[str, Turn] = {"our_turn": our_turn, "bare_turn": bare_turn, **loaders}
    dataset = frames(workspace, FRAMES)
    ready = batches(dataset, config) if name == "bare_turn" else []
    for _ in sys.stdin:
        print(json.dumps(turns[name](workspace, dataset, config, ready)), flush=True)


def our_turn(
    workspace: Workspace, dataset: Dataset, config: TrainingConfig, _: Ready
) -> dict[str, float]:
    one = our_loop(dataset, config)
    return {"speed": one.images_per_second, "waited": one.waited, "peak": one.peak_mib}


def bare_turn(_: Workspace, __: Dataset, config: TrainingConfig, ready: Ready) -> dict[str, float]:
    return {"speed": bare_loop(ready, config)}


def loader_turn(
    workers: int, workspace: Workspace, dataset: Dataset, config: TrainingConfig, _: Ready
) -> dict[str, float]:
    return {"speed": with_data_loader(workspace, dataset, config, workers)}


def our_loop(dataset: Dataset, config: TrainingConfig) -> TrainingResult:
    return train(dataset, config, classes=CLASSES, preprocessing=SPEC)


def batches(dataset: Dataset, config: TrainingConfig) -> Ready:
    """All batches of a pass, ready; the same that ours makes on the way."""
    loader = DataLoader(dataset, config, TaskSpec(CLASSES, SPEC))
    made = [loader.batch(step) for step in range(config.steps_per_epoch(len(dataset.frames)))]
    return [(torch.from_numpy(batch.images), pad_targets(batch.targets)) for batch in made]


def bare_loop(ready: Ready, config: TrainingConfig, device: str = "cpu") -> float:
    """Images a second of the fewest lines that train the same network."""
    with threads(config.threads):
        model, loss, optimiser = network(device)
        there = [(images.to(device), truth.to(device)) for images, truth in ready]
        began = time.perf_counter()
        for step in range(config.steps):
            images, truth = there[step % len(there)]
            optimiser.zero_grad()
            loss(model(images), truth).total.backward()
            optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return config.steps * config.batch / (time.perf_counter() - began)


def compiled(ready: Ready, config: TrainingConfig) -> float:
    """The bare loop with its network compiled; what compiling takes is left out."""
    with threads(config.threads):
        model, loss, optimiser = network("cpu")
        fast: Any = torch.compile(model)
        began = 0.0
        for step in range(2 + config.steps):
            if step == 2:
                began = time.perf_counter()
            images, truth = ready[step % len(ready)]
            optimiser.zero_grad()
            loss(fast(images), truth).total.backward()
            optimiser.step()
        return config.steps * config.batch / (time.perf_counter() - began)


class Varied(torch.utils.data.Dataset[Any]):
    """Decoded frames for torch's DataLoader, varied as ours are."""

    def __init__(self, loader: DataLoader, config: TrainingConfig) -> None:
        self._cache, self._augment = loader._cache, config.augment

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, number: int) -> Any:
        assert self._cache is not None
        pixels, targets = self._cache[number % len(self._cache)]
        rng = np.random.default_rng(number)
        draws, settings = rng.random(augment.DRAW_COUNT), self._augment
        pixels, targets = augment.random_geometry(pixels, targets, settings, SPEC.pad, draws)
        color = augment.color_table(settings, draws)
        if color is not None:
            pixels = np.asarray(cv2.LUT(pixels, color[None]))
        pixels = augment.corrupt(pixels, settings, rng)
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().mul_(SPEC.scale)
        return image.sub_(SPEC.mean[0]).div_(SPEC.std[0]), targets


def collate(samples: list[Any]) -> tuple[torch.Tensor, GroundTruthBatch]:
    images = torch.stack([image for image, _ in samples])
    return images.contiguous(memory_format=torch.channels_last), pad_targets(
        [t for _, t in samples]
    )


def with_data_loader(
    workspace: Workspace, dataset: Dataset, config: TrainingConfig, workers: int
) -> float:
    loader = DataLoader(dataset, config, TaskSpec(CLASSES, SPEC))
    source = torch.utils.data.DataLoader(
        Varied(loader, config), config.batch, num_workers=workers, collate_fn=collate
    )
    with threads(config.threads):
        model, loss, optimiser = network("cpu")
        stream = iter(source)
        next(stream)  # the worker's start is not the loop's
        began = time.perf_counter()
        for _ in range(config.steps):
            images, truth = next(stream)
            optimiser.zero_grad()
            loss(model(images), truth).total.backward()
            optimiser.step()
        seconds = time.perf_counter() - began
        del stream
    return config.steps * config.batch / seconds


def network(device: str) -> tuple[Any, DetectionLoss, torch.optim.Optimizer]:
    shape = DetectorConfig(classes=CLASSES)
    model: Any = Detector(shape).train()
    model = model.to(device, memory_format=torch.channels_last)
    loss = DetectionLoss(shape)
    return model, loss, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def frames(workspace: Workspace, count: int) -> Dataset:
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
        path = media_path(workspace, frame)
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
        workspace=workspace,
    )
