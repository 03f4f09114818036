"""Our training loop beside a bare one: ``python -m benchmarks.training [--quick] [--json]``.

The bare loop is what is left when everything that makes a training useful is taken away: the same
network, loss, optimiser (fused AdamW) and decoded frames, their batches ready in memory as the
network takes them. It decodes, varies and normalises nothing, clips nothing, averages no weights,
keeps no curve, checks no loss, and torch may be as unrepeatable as it likes. The two take turns;
the ratio is the median over pairs of turns that followed each other, as a machine that slows down
slows both. Beside them stand torch's own DataLoader with the same frames, and a compiled network.

Repeats are trainings in new processes, whose weights are compared by digest. On a machine with CUDA
the last rows train there; elsewhere they say that they were not run.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Row, main, row
from workbench import digest
from workbench.perception.detector import Detector, DetectorConfig
from workbench.perception.models.protocol import Truth
from workbench.perception.preprocessing import Preprocessing
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin
from workbench.training import augment
from workbench.training.config import TrainingConfig
from workbench.training.loader import Loader, Material
from workbench.training.loop import train
from workbench.training.loss import DetectionLoss, as_truth
from workbench.training.trained import Trained
from workbench.workspace import Workspace

CLASSES = tuple(f"class-{number}" for number in range(10))
SPEC = Preprocessing()
GOAL, MOST_WAITED = 0.95, 0.02

Ready = list[tuple[torch.Tensor, Truth]]


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes fewer and shorter turns."""
    turns, steps = (3, 8) if quick else (12, 24)
    with tempfile.TemporaryDirectory() as folder:
        place = Workspace(Path(folder) / ".workbench")
        dataset = frames(place, 32)
        config = TrainingConfig(steps=steps)
        rows = speed(place, dataset, config, turns)
        rows.append(repeats(place, 2 if quick else 10))
        rows += on_a_gpu(place, dataset, quick)
    return rows


def speed(place: Workspace, dataset: Dataset, config: TrainingConfig, turns: int) -> list[Row]:
    """Images a second of ours, the bare loop, the DataLoader's and the compiled one."""
    ready = batches(place, dataset, config)
    our_loop(place, dataset, config)  # what a process allocates first is no loop's
    bare_loop(ready, config)
    ours: list[Trained] = []
    bare, loaded = [], []
    for _ in range(turns):
        bare.append(bare_loop(ready, config))
        ours.append(our_loop(place, dataset, config))
        loaded.append(with_data_loader(place, dataset, config))
    speeds = [one.images_per_second for one in ours]
    share = median(own / other for own, other in zip(speeds, bare, strict=True))
    waited = median(one.waited for one in ours)
    return [
        row(
            "train on decoded frames",
            median(speeds),
            "images/s",
            peer=median(speeds) / share,
            peer_name="bare torch loop, batches ready",
            goal=f">= {GOAL:g}",
            met=share >= GOAL,
        ),
        row(
            "the same frames by torch's DataLoader",
            median(speeds),
            "images/s",
            peer=median(loaded),
            peer_name="bare loop with torch.utils.data, 1 worker, the same variations",
        ),
        row(
            "network and loss compiled",
            median(speeds),
            "images/s",
            peer=compiled(ready, config),
            peer_name="bare loop, torch.compile (after warm-up)",
        ),
        row(
            "time spent waiting for frames",
            waited,
            "of the time",
            goal=f"<= {MOST_WAITED:g}",
            met=waited <= MOST_WAITED,
        ),
        row("peak memory of training", max(one.peak_mib for one in ours), "MiB"),
    ]


def our_loop(place: Workspace, dataset: Dataset, config: TrainingConfig) -> Trained:
    return train(place, dataset, config, classes=CLASSES, preprocessing=SPEC)


def batches(place: Workspace, dataset: Dataset, config: TrainingConfig) -> Ready:
    """All batches of a pass, ready; the same that ours makes on the way."""
    loader = Loader(place, dataset, config, Material(CLASSES, SPEC))
    made = [loader.batch(step) for step in range(config.steps_per_epoch(len(dataset.frames)))]
    return [(torch.from_numpy(batch.images), as_truth(batch.targets)) for batch in made]


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

    def __init__(self, loader: Loader, config: TrainingConfig) -> None:
        self._kept, self._how = loader._kept, config.augment

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, number: int) -> Any:
        assert self._kept is not None
        pixels, targets = self._kept[number % len(self._kept)]
        rng = np.random.default_rng(number)
        pixels, targets = augment.vary(pixels, targets, self._how, SPEC.pad, rng)
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().mul_(SPEC.scale)
        return image.sub_(SPEC.mean[0]).div_(SPEC.std[0]), targets


def collate(samples: list[Any]) -> tuple[torch.Tensor, Truth]:
    images = torch.stack([image for image, _ in samples])
    return images.contiguous(memory_format=torch.channels_last), as_truth([t for _, t in samples])


def with_data_loader(place: Workspace, dataset: Dataset, config: TrainingConfig) -> float:
    loader = Loader(place, dataset, config, Material(CLASSES, SPEC))
    source = torch.utils.data.DataLoader(
        Varied(loader, config), config.batch, num_workers=1, collate_fn=collate
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
    loss = DetectionLoss(shape, SPEC.width, SPEC.height).to(device)
    return model, loss, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


REPEAT = """
import json, sys
from pathlib import Path
from dataclasses import replace
from benchmarks.training import CLASSES, frames
from workbench import digest
from workbench.perception.preprocessing import Preprocessing
from workbench.training import Augmentation, TrainingConfig, train
from workbench.workspace import Workspace
from safetensors.torch import save
place = Workspace(Path(sys.argv[1]))
config = TrainingConfig(steps=6, augment=Augmentation.driving())
spec = Preprocessing(width=160, height=96)
trained = train(place, frames(place, 16), config, classes=CLASSES, preprocessing=spec)
print(json.dumps(digest.of_bytes(save(trained.weights))))
"""


def repeats(place: Workspace, count: int) -> Row:
    """How many of so many new processes give the weights of the first."""
    frames(place, 16)
    said = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", REPEAT, str(place.root)],
                check=True,
                capture_output=True,
                text=True,
                cwd=Path(__file__).resolve().parents[1],
            ).stdout
        )
        for _ in range(count)
    ]
    same = sum(one == said[0] for one in said)
    return row(
        "weights that repeat in new processes",
        same,
        f"of {count}",
        goal=f"= {count}",
        met=same == count,
    )


def on_a_gpu(place: Workspace, dataset: Dataset, quick: bool) -> list[Row]:
    """Throughput there against a bare loop, and bfloat16 against float32; none without CUDA."""
    if not torch.cuda.is_available():
        print("no CUDA device: rows of the GPU were not run", file=sys.stderr)
        return []
    config = TrainingConfig(steps=20 if quick else 100, batch=32, device="cuda", threads=2)
    our_loop(place, dataset, replace(config, steps=5))  # the first steps choose kernels
    ours = our_loop(place, dataset, config).images_per_second
    ready = batches(place, dataset, config)
    bare_loop(ready, replace(config, steps=5), "cuda")
    bare = bare_loop(ready, config, "cuda")
    half = our_loop(place, dataset, replace(config, precision="bfloat16")).images_per_second
    return [
        row(
            "GPU: train on decoded frames",
            ours,
            "images/s",
            peer=bare,
            peer_name="bare torch loop, batches on the GPU",
            goal=f">= {GOAL:g}",
            met=ours / bare >= GOAL,
        ),
        row("GPU: bfloat16", half, "images/s", peer=ours, peer_name="float32"),
    ]


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
